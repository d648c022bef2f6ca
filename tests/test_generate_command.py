"""`selkey generate` on tiny folders: what it says, what it holds, and what it refuses."""

import json

import pytest
import torch
from click.testing import CliRunner

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from selkey.bench import generation_setup, small_world  # noqa: E402
from selkey.bench.commands.generate import generate  # noqa: E402
from selkey.bench.generation_text import Listener  # noqa: E402

PROMPT = small_world.question(120)[0]


def folder_of(path, model):
    model.save_pretrained(path)
    small_world.tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Llama that has learned nothing, and its words."""
    generation_setup.hush()
    return folder_of(tmp_path_factory.mktemp("llama"), small_world.untrained())


def asked(*arguments):
    return CliRunner().invoke(generate, [str(argument) for argument in arguments])


def found(*arguments):
    result = asked(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_without_a_policy_it_says_what_transformers_says(folder):
    run = found(folder, "--prompt", PROMPT, "--max-new-tokens", 8, "--compare")
    assert run["new_tokens"] == 8 and run["parts_at"] is None and run["dense"]["text"] == run["text"]
    assert run["keys_read_at_most"] == run["prompt_tokens"] + 7
    # two layers, keys and values of four heads of 32 columns, fp32
    assert run["dense_nbytes"] == run["dense"]["nbytes"] == 2 * 2 * 4 * 32 * 4 * (run["prompt_tokens"] + 7)
    assert run["pools"]["rows"]["nbytes"] == run["nbytes"] and run["decode_tok_s"] > 0 and run["prefill_tok_s"] > 0


def test_a_compressed_cache_holds_less_and_a_policy_reads_less(folder):
    run = found(folder, "--prompt", PROMPT, "--max-new-tokens", 4, "--format", "int4", "--policy", "sinks=2,window=16,quest=32")
    assert run["nbytes"] < 0.5 * run["dense_nbytes"] and run["cache"] == "every key stored, read by sinks=2,window=16,quest=32"
    assert run["keys_read_at_most"] == 2 + 16 + 32 and run["choosing_nbytes"] > 0


def test_a_bounded_cache_holds_the_same_after_any_prompt_and_what_is_pinned(folder):
    sizes = "sinks=2,pins=8,window=32,keep=16,folds=4"
    runs = []
    for words in (530, 640):
        # longer than one piece, and than what the model is made for
        prompt, note, _ = small_world.question(words)
        runs.append(found(folder, "--prompt", prompt, "--max-new-tokens", 4, "--bounded", sizes, "--pin", note))
    assert runs[0]["nbytes"] == runs[1]["nbytes"] < runs[0]["dense_nbytes"]
    for run in runs:
        assert run["pinned"][0]["spans"] == [[1, 3]] and run["pools"]["pins"]["rows"] == 2 * 2
        assert run["keys_read_at_most"] < 2 + 8 + 32 + 16 + 4 + 2 and "positions moved nearer" in run["cache"]


def test_a_pin_at_the_very_end_of_the_prompt(folder):
    words = " ".join(PROMPT.split()[-2:])
    run = found(folder, "--prompt", PROMPT, "--max-new-tokens", 3, "--bounded", "sinks=1,pins=4,window=8", "--pin", words)
    assert run["pinned"][0]["spans"] == [[run["prompt_tokens"] - 2, run["prompt_tokens"]]] and run["pools"]["pins"]["rows"] == 2 * 2


def test_sampling_follows_its_seed(folder, tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text(PROMPT, encoding="utf-8")
    arguments = (folder, "--prompt-file", path, "--max-new-tokens", 8, "--sample", "--temperature", 2.0)
    texts = [found(*arguments, "--seed", seed)["text"] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_text_and_tables(folder):
    result = asked(folder, "--prompt", PROMPT, "--max-new-tokens", 6, "--bounded", "window=16,pins=8,keep=0,folds=0", "--compare")
    assert result.exit_code == 0
    lines = result.stdout.split("\n")
    assert len(lines[0].split()) == 6
    for text in ("prefill, tokens/s", "decode, tokens/s", "bytes held", "window", "cache: bounded", "transformers alone says"):
        assert text in result.stdout
    assert all(len(line) <= 80 for line in lines if "pool" in line or "tokens" in line and "  " in line)


def test_a_model_that_selects_keys_itself(tmp_path):
    from selkey.bench.examples.selecting_model import tiny

    folder = folder_of(tmp_path, tiny())
    run = found(folder, "--prompt", PROMPT, "--max-new-tokens", 6, "--compare")
    assert "selects the keys itself" in run["cache"] and run["parts_at"] is None and run["keys_read_at_most"] is None
    result = asked(folder, "--prompt", PROMPT, "--bounded", "default")
    assert result.exit_code == 2 and "DeepseekV32ForCausalLM (transformers" in result.output


def test_models_without_keys_and_values_or_with_an_end(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

    words = len(small_world.tokenizer())
    mamba = MambaForCausalLM(MambaConfig(vocab_size=words, hidden_size=16, num_hidden_layers=1, state_size=4))
    result = asked(folder_of(tmp_path / "mamba", mamba), "--prompt", PROMPT)
    assert result.exit_code == 2 and "MambaForCausalLM (transformers" in result.output and "no past_key_values" in result.output
    learned = GPT2LMHeadModel(GPT2Config(vocab_size=words, n_embd=16, n_layer=1, n_head=2, n_positions=128))
    result = asked(folder_of(tmp_path / "learned", learned), "--prompt", PROMPT)
    assert result.exit_code == 2 and "more than the 128 that the model is made for" in result.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt", " "), "the prompt is empty"),
        ((), "one of --prompt and --prompt-file"),
        (("--prompt", "Snow", "--chat"), "--chat needs a tokenizer with a chat template"),
        (("--prompt", "Anna: lamp. Boris: crown.", "--bounded", "default", "--pin", "Ana: lamp."), "nearest: 'Anna: lamp.', tokens 0 to 1"),
        (("--prompt", "Snow", "--pin", "Snow"), "--pin needs --policy or --bounded"),
        (("--prompt", "Snow", "--policy", "sinks=1", "--bounded", "default"), "one of --policy and --bounded"),
        (("--prompt", "Snow", "--bounded", "window=0"), "window must be at least 1; got 0"),
        (("--prompt", "Snow", "--bounded", "windows=8"), "expected sizes such as sinks=4,window=512"),
        (("--prompt", "Snow", "--policy", "window=0"), "window must choose at least 1 key; got window=0"),
        (("--prompt", "Snow", "--policy", "sinks=4,window=-1"), "window: expected a positive count"),
        (("--prompt", "Snow", "--policy", "quest=7"), "page"),
        (("--prompt", "Snow", "--max-new-tokens", "0"), "expected a positive count"),
        (("--prompt", "Snow", "--format", "int5"), "format must be one of"),
        (("--prompt", "Snow", "--temperature", "1"), "--temperature needs --sample"),
        (("--demo",), "--demo brings its own model"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(folder, arguments, message):
    result = asked(folder, *arguments)
    assert result.exit_code == 2 and message in result.output.replace("\n", " "), result.output
    assert "Traceback" not in result.output and len([line for line in result.stderr.split("\n") if line.startswith("Error")]) == 1


def test_folders_and_files_that_are_none(folder, tmp_path):
    assert "does not exist" in asked(tmp_path / "absent", "--prompt", "x").output
    assert "give MODEL_DIR" in asked("--prompt", "x").output
    assert "holds no config.json" in asked(tmp_path, "--prompt", "x").output
    (tmp_path / "config.json").write_text('{"model_type": "nobody"}', encoding="utf-8")
    result = asked(tmp_path, "--prompt", "x")
    assert result.exit_code == 2 and "that transformers can load" in result.output and result.exception.__class__ is SystemExit
    bad = tmp_path / "prompt.txt"
    bad.write_bytes(b"Snow \xff")
    result = asked(folder, "--prompt-file", bad)
    assert result.exit_code == 2 and "is not UTF-8 text: byte 0xff at 5" in result.output


def test_the_demo_runs_whatever_it_has_learned(monkeypatch):
    monkeypatch.setattr(small_world, "STEPS", 2)
    run = found("--demo", "--max-new-tokens", 3)
    assert run["with_pin"]["pinned"][0]["words"] == run["note"] and run["without_pin"]["pinned"] == []
    assert run["with_pin"]["nbytes"] == run["without_pin"]["nbytes"] and run["answer"] in run["note"]


class Characters:
    """A tokenizer without spaces: a letter is a token, and so is each byte of other characters; 0 is special."""

    def decode(self, ids, skip_special_tokens):
        return bytes(id for id in ids if id).decode(errors="replace")


def test_text_comes_as_soon_as_it_is_whole():
    pieces, fed = [], []
    listener = Listener(Characters(), pieces.append, lambda: fed.append(len(listener.tokens)))
    listener.put(torch.tensor([[1, 2, 3]]))
    for id in (*b"ab", 0, *"文é".encode(), *"é".encode()[:1]):
        listener.put(torch.tensor([id]))
    assert pieces == ["a", "b", "文", "é"] and fed == list(range(9))
    listener.end()
    assert "".join(pieces) == "ab文é\ufffd" == "".join(listener.parts)
    # what never becomes a character is not waited for
    listener = Listener(Characters(), pieces.append)
    for id in [1] + [0x80] * 20:
        listener.put(torch.tensor([id]))
    assert len(pieces) >= 7


def test_an_interruption_loses_no_text(folder, monkeypatch):
    whole = asked(folder, "--prompt", PROMPT, "--max-new-tokens", 4).stdout.split("\n")[0]
    put = Listener.put

    def interrupt(self, value):
        put(self, value)
        if len(self.tokens) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Listener, "put", interrupt)
    result = asked(folder, "--prompt", PROMPT, "--max-new-tokens", 4)
    assert result.exit_code == 130 and result.stdout.split() == whole.split()[:3] and "Interrupted." in result.stderr
