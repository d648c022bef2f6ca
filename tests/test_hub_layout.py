"""The folder `kernels/` as the kernels hub publishes it: the layout, the hub's rules, and that its loader runs it without selkey."""

import ast
import os
import site
import subprocess
import sys
from pathlib import Path

import hub_mistakes
import pytest
import torch

from selkey import reference
from selkey.bench import hub

pytest.importorskip("tomllib", reason="part of Python from 3.11 on")
pytest.importorskip("triton")
loader = pytest.importorskip("kernels._rust", reason="the package `kernels` is not installed")

# what the hub lets a kernel import beside itself
ALLOWED = {*sys.stdlib_module_names, "torch", "triton"}

EXAMPLE = (hub.KERNELS / "CARD.md").read_text().partition("```python\n")[2].partition("```")[0]

PROGRAM = """
import importlib.util, sys
from pathlib import Path

import torch
from kernels import get_loaded_kernels, get_local_kernel

assert importlib.util.find_spec("selkey") is None, "selkey can be imported here"
variant, given, result, cases = map(Path, sys.argv[1:5])
module = get_local_kernel(variant)
assert get_local_kernel(variant) is module
name = get_loaded_kernels()[0].metadata.id
assert module.__name__ == module.NAMESPACE == name and hasattr(getattr(torch.ops, name), "attention"), name
assert not [found for found in sys.modules if found.split(".")[0] == "selkey"]

inputs = torch.load(given)
leaves = {key: inputs[key].requires_grad_() for key in ("q", "k", "v", "sinks")}
out, lse = module.attention(*(inputs[key] for key in ("q", "k", "v", "indices")), sinks=inputs["sinks"], query_offset=1, return_lse=True)
(out * inputs["grad_out"]).sum().backward()
operator = getattr(torch.ops, name).attention.default
words = (inputs["q"].detach(), inputs["k"].detach(), None, inputs["indices"], *[None] * 6, 1, 1, 8, 0.3, None)
fake = torch.library.opcheck(operator, words, test_utils=("test_schema", "test_faketensor"))
assert set(fake.values()) == {"SUCCESS"}, fake
chosen = module.select(*(inputs[key] for key in ("q_index", "k_index", "weights")), k=5, query_offset=1)
# what the card says, word for word but for the path and the length of the list
card = {key: value.detach() for key, value in inputs.items() if key != "indices"}
exec(sys.argv[5].replace("path of this repository", str(variant)).replace("k=2048, query_offset=0", "k=5, query_offset=1"), card)
assert card["selkey"] is module and torch.equal(card["indices"], chosen)
sys.path.append(str(cases))
import hub_mistakes
found = {"out": out, "lse": lse, "chosen": chosen, "scores": module.index_scores(inputs["q_index"], inputs["k_index"], inputs["weights"])}
torch.save({key: value.detach() for key, value in found.items()} | {f"d{key}": leaf.grad for key, leaf in leaves.items()}
           | {"shown": card["out"].shape, "outcomes": hub_mistakes.outcomes(module)}, result)
sys.path.insert(0, str(variant))
import selkey as old
assert old.attention is module.attention
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "kernel"
    hub.assemble(folder)
    return folder


def run_elsewhere(program, words, cwd):
    """Run a program that finds the installed packages but not selkey (-S: no .pth file is read)."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(site.getsitepackages()), "TRITON_INTERPRET": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-S", "-c", program, *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def test_the_hubs_loader_runs_the_kernels_where_selkey_is_not(published, tmp_path):
    B, S, N, HQ, HK, D, DV, K = 2, 3, 12, 4, 2, 16, 8, 7
    inputs = {
        "q": torch.randn(B, S, HQ, D), "k": torch.randn(B, N, HK, D), "v": torch.randn(B, N, HK, DV), "sinks": torch.randn(HQ),
        "indices": torch.randint(-1, N, (B, S, HK, K), dtype=torch.int32), "grad_out": torch.randn(B, S, HQ, DV),
        "q_index": torch.randn(B, S, 2, 16), "k_index": torch.randn(B, N, 16), "weights": torch.randn(B, S, 2),
    }  # fmt: skip
    given, result = tmp_path / "inputs.pt", tmp_path / "result.pt"
    torch.save(inputs, given)
    # a CPU is not among the variants: the folder of one is named, as for a build of one's own
    words = [published / "build" / "torch-cuda", given, result, Path(hub_mistakes.__file__).parent, EXAMPLE]
    done = run_elsewhere(PROGRAM, words, tmp_path)
    assert done.returncode == 0, done.stderr
    found = torch.load(result)

    leaves = {key: inputs[key].double().requires_grad_() for key in ("q", "k", "v", "sinks")}
    nothing = dict.fromkeys(("index_lengths", "kv_lengths", "index_bias", "key_bias", "softcap"))
    out, lse, _ = reference.attention(
        leaves["q"], leaves["k"], leaves["v"], inputs["indices"], sinks=leaves["sinks"], query_offset=1, block_size=1, scale=D**-0.5,
        v_head_dim=DV, return_lse=True, return_weights=False, **nothing,
    )  # fmt: skip
    (out * inputs["grad_out"]).sum().backward()
    truth = {"out": out, "lse": lse} | {f"d{key}": leaf.grad for key, leaf in leaves.items()}
    for name, value in truth.items():
        # fp32 sums of at most 7 products against float64
        torch.testing.assert_close(found[name].double(), value.detach().double(), rtol=1e-5, atol=1e-5, msg=name)

    products = torch.relu(torch.einsum("bshd,bnd->bshn", inputs["q_index"], inputs["k_index"]) * 16**-0.5)
    scores = torch.einsum("bsh,bshn->bsn", inputs["weights"], products)
    torch.testing.assert_close(found["scores"], scores, rtol=1e-5, atol=1e-5)
    seen = torch.arange(N) <= torch.arange(S)[:, None] + 1
    best = scores.masked_fill(~seen, -torch.inf).topk(5).indices
    for b in range(B):
        for s in range(S):
            assert {i for i in found["chosen"][b, s].tolist() if i >= 0} == {i for i in best[b, s].tolist() if seen[s, i]}
    assert found["shown"] == (B, S, HQ, DV)
    # in the same process, because to start one takes longer than all of them
    expected = [("RuntimeError", "launched")] * len(hub_mistakes.GOES) + [(error, text) for _, _, error, text in hub_mistakes.MISTAKES]
    assert found["outcomes"] == expected


def test_the_loader_takes_a_variant_for_every_backend_and_none_for_a_cpu(published):
    from kernels.backends import CPU, CUDA, ROCm
    from packaging.version import Version

    from kernels import variants

    there = variants.get_variants_local(published / "build")
    system = {"cpu": "x86_64", "os": "linux", "torch_version": Version("2.13"), "torch_cxx11_abi": True, "tvm_ffi_version": None}
    for backend, names in ((CUDA(Version("13.0")), ["torch-cuda"]), (ROCm(Version("7.0")), ["torch-rocm"]), (CPU(), [])):
        found, _ = variants._resolve_variant_for_system(variants=there, selected_backend=backend, **system)
        assert [variant.variant_str for variant in found] == names


def test_the_hub_reads_the_files_that_it_asks_for(published):
    build = loader.Build.open(published)
    assert [str(backend).lower() for backend in build.general.backends] == ["cuda", "rocm"]
    ids = set()
    for backend in ("cuda", "rocm"):
        variant = published / "build" / f"torch-{backend}"
        metadata = loader.Metadata.read_from_file(variant / "metadata.json")
        assert (str(metadata.name), metadata.version, metadata.license) == ("selkey", 0, "Apache-2.0")
        assert metadata.id.isidentifier() and metadata.python_depends == [] and metadata.kernel_depends == []
        metadata.digest.validate(loader.Digest.hash_variant(loader.DigestAlgorithm.SHA256, variant))
        ids.add(metadata.id)
    assert len(ids) == 2
    text = (published / "LICENSE").read_text()
    assert text == (hub.KERNELS.parent / "LICENSE").read_text() and "Apache License" in text and "Version 2.0, January 2004" in text
    for name in ("flake.nix", "CARD.md", "torch-ext/selkey/__init__.py", "torch-ext/selkey/formats/int4.py"):
        assert (published / name).is_file(), name
    assert {path.suffix for path in (published / "torch-ext").rglob("*") if path.is_file()} <= {".py", ".json"}


def test_every_kernel_is_published_and_imports_nothing_but_itself_torch_and_triton(published):
    package = published / "torch-ext" / "selkey"
    ours = {path.relative_to(hub.KERNELS).as_posix() for path in hub.KERNELS.rglob("*.py")} - {hub.FACE}
    assert ours | {"__init__.py"} == {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    for path in package.rglob("*.py"):
        # the versions of Python that the loader itself runs on
        tree = ast.parse(path.read_text(), feature_version=(3, 10))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [] if node.level else [node.module]
                depth = len(path.relative_to(package).parts)
                assert node.level <= depth, f"{path.name} reaches out of the package"
            assert {name.partition(".")[0] for name in names} <= ALLOWED, f"{path.name} imports {names}"
            # what is registered is registered by the face, whose namespace is the package's own
            is_registration = isinstance(node, ast.Attribute) and node.attr in ("custom_op", "Library", "triton_op", "impl", "define")
            assert not is_registration or path.name == "__init__.py", f"{path.name} registers operators"


def test_an_id_changes_with_the_sources(tmp_path, monkeypatch):
    copy = tmp_path / "kernels"
    hub.shutil.copytree(hub.KERNELS, copy)
    monkeypatch.setattr(hub, "KERNELS", copy)

    def identity(name):
        return loader.Metadata.read_from_file(hub.assemble(tmp_path / name)[0] / "metadata.json").id

    first, again = identity("a"), identity("b")
    (copy / "combine.py").write_text((copy / "combine.py").read_text() + "\n")
    assert first == again != identity("c")


def test_nothing_is_overwritten_and_an_installed_package_is_no_source(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="nothing is overwritten"):
        hub.assemble(tmp_path / "there")
    monkeypatch.setattr(hub, "KERNELS", Path(tmp_path))
    with pytest.raises(FileNotFoundError, match="assembled from a checkout"):
        hub.assemble(tmp_path / "new")
    assert not (tmp_path / "new").exists()
