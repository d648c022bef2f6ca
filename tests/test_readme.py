"""What the README shows is what happens."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_examples_run_as_they_stand(tmp_path):
    *examples, distributed = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    # other tests run beside this one
    one_thread = dict(os.environ, OMP_NUM_THREADS="1")
    result = subprocess.run([sys.executable, "-c", "".join(examples)], capture_output=True, text=True, cwd=tmp_path, env=one_thread)
    assert result.returncode == 0, result.stderr
    first, second, cache, report, pages, *transformers = result.stdout.splitlines()
    assert (first, second) == ("torch.Size([1, 1, 32, 128]) torch.Size([1, 1, 32])", "torch.Size([1, 1, 32, 128])")
    # 136 of 512 bytes a token and head
    assert cache == "34 MiB; bf16: 128"
    shares = ast.literal_eval(report)
    assert list(shares) == ["sinks", "pins", "window", "keep", "folds"] and shares["pins"] >= 0.2
    assert (tmp_path / "conversation.safetensors").exists()
    # 1,024 of 8,192 random keys: a small part of the attention
    shape, missed = re.fullmatch(r"(torch\.Size\(\[.*\]\)) (\d\.\d+)", pages).groups()
    assert shape == "torch.Size([1, 1, 8, 64])" and 0.7 < float(missed) < 1
    # 40 tokens and 4 more; and 20, and 300, in as many bytes; an indexer a layer
    assert transformers == ["torch.Size([1, 44])", "360 True [3, 4, 5, 6, 7, 8]", "2"]
    assert (tmp_path / "memory.safetensors").exists()
    # runs under torchrun only; its import has to be right
    assert re.match(r"from selkey\.distributed import key_parallel_attention\n", distributed)


def test_every_file_that_the_readmes_name_exists():
    for folder in (ROOT, ROOT / "kernels", ROOT / "bench"):
        text = (folder / "README.md").read_text()
        links = re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r'src(?:set)?="([^"]+)"', text)
        for name in links + re.findall(r"`([\w/]+\.(?:py|txt|json))`", text):
            if not name.startswith("http"):
                assert (folder / name).exists(), f"{folder.name}/README.md names {name}"


def test_every_command_that_the_readme_names_exists():
    commands = set(re.findall(r"`selkey (\w+)", README))
    assert commands >= {"bench", "plot", "codegen"}
    listed = subprocess.run(
        [sys.executable, "-c", "from selkey.bench.cli import main; main()", "--help"], capture_output=True, text=True
    ).stdout
    for command in commands:
        assert re.search(rf"^  {command} ", listed, re.MULTILINE), command
