"""`selkey heads`: scores on attention with known answers, what is not seen, flat memory, the page, and what is refused."""

import base64
import io
import json
import math
import random
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

import hf_models  # noqa: E402

from selkey.bench import generation_setup, heads_report, minilm, small_world  # noqa: E402
from selkey.bench.commands.heads import heads as command  # noqa: E402
from selkey.bench.plots import heads as pictures  # noqa: E402
from selkey.heads import ablation, keeps, lists, reading, redundancy, scores  # noqa: E402
from selkey.heads.text import encode  # noqa: E402
from selkey.hf import looking  # noqa: E402

IDS = torch.tensor([0, 5, 6, 7, 5, 6, 8, 5])


def scored(shares, ids=IDS, special=None, is_causal=True):
    """Scores of one head from its matrix of shares."""
    n = len(ids)
    special = torch.zeros(n, dtype=torch.bool) if special is None else special
    visible = torch.ones(n, n, dtype=torch.bool)
    sums = scores.Sums()
    sums.add(shares[:, None].float(), visible.tril() if is_causal else visible, torch.arange(n), ids, special, is_causal)
    row = sums.means()[0]
    return row | {"label": scores.label(row)}


def one_hot(places):
    return torch.nn.functional.one_hot(torch.tensor(places), len(IDS)).float()


@pytest.mark.parametrize(
    ("places", "name"),
    [
        ([0] * 8, "sink"),
        ([0, 0, 1, 2, 3, 4, 5, 6], "previous"),
        ([0, 1, 2, 3, 4, 5, 6, 7], "self"),
        # 5 stands at 1, 4 and 7, 6 at 2 and 5; what followed it stands one further
        ([0, 1, 2, 3, 1, 2, 6, 4], "duplicate"),
        ([0, 1, 2, 3, 2, 3, 6, 5], "induction"),
    ],
)
def test_heads_that_do_one_thing_have_its_score_and_its_name(places, name):
    row = scored(one_hot(places))
    expected = {"sink": 1.0, "previous": 1.0, "self": 1.0, "duplicate": 1.0, "induction": 1.0}[name]
    assert row[name] == pytest.approx(expected) and row["entropy"] == pytest.approx(0) and row["confidence"] == 1
    if name != "self":
        assert row["label"] == name or (name in ("duplicate", "induction") and row["label"] == "self")
    distance = [abs(i - place) for i, place in enumerate(places)][1:]
    assert row["distance"] == pytest.approx(sum(distance) / 7)


def test_the_token_after_is_no_induction():
    row = scored(torch.eye(8).roll(1, 1), is_causal=False)
    assert row["label"] == "next" and row["next"] == 1 and row["induction"] == 0


def test_even_attention_is_broad_and_has_the_chances_of_its_patterns():
    even = torch.ones(8, 8).tril()
    row = scored(even / even.sum(1, keepdim=True))
    assert row["entropy"] == pytest.approx(sum(math.log(i + 1) for i in range(1, 8)) / 7) and row["spread"] == pytest.approx(1)
    # of 5 at 4, 6 at 5 and 5 at 7: one of 5 keys, one of 6, two of 8
    assert row["duplicate"] == pytest.approx((1 / 5 + 1 / 6 + 2 / 8) / 3) == row["duplicate_chance"]
    assert row["next"] is None
    long = torch.full((40, 40), 1 / 40)
    assert scored(long, torch.arange(40), is_causal=False)["label"] == "broad"
    near = torch.eye(40) * 0.2 + torch.eye(40).roll(1, 1) * 0.25 + torch.eye(40).roll(-1, 1) * 0.25 + 0.3 / 40
    assert scored(near, torch.arange(40), is_causal=False)["label"] == "local"


def test_special_tokens_are_sinks_and_never_repeat_each_other():
    ids = torch.tensor([1, 5, 6, 2, 1, 5, 2])
    special = (ids == 1) | (ids == 2)
    row = scored(torch.eye(7).roll(4, 1), ids, special, is_causal=False)  # 1 → 5, 2 → 6, 5 → 2
    assert row["duplicate"] == pytest.approx(0.5) and row["sink"] == pytest.approx(1 / 3)
    last = scored(torch.eye(7)[[6] * 7], ids, special, is_causal=False)
    assert last["sink"] == 1 and last["label"] == "sink" and last["duplicate"] == 0


def call_of(q, k, v, **changes):
    """A causal call whose output is dense attention."""
    logits = torch.einsum("bshd,bnhd->bhsn", q, k) * q.shape[-1] ** -0.5
    seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril(k.shape[1] - q.shape[1])
    shares = logits.masked_fill(~seen, float("-inf")).softmax(-1)
    out = torch.einsum("bhsn,bnhd->bshd", shares, v)
    parts = dict(q=q, k=k, v=v, out=out, scale=q.shape[-1] ** -0.5, mask=seen[None, None], is_causal=False, softcap=None, sinks=None)
    return SimpleNamespace(**parts | changes), shares[0].transpose(0, 1)


def test_lists_give_true_shares_and_say_what_they_miss(monkeypatch):
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 20, 3, 8) * 2, torch.randn(1, 50, 3, 8), torch.randn(1, 50, 3, 8)
    call, true = call_of(q, k, v)
    rows = torch.tensor([0, 3, 7, 19])
    monkeypatch.setattr(lists, "_AT_ONCE", 3 * 50 * 2)
    chunks = list(lists.chunks(call, rows, 6))
    assert [len(chunk.rows) for chunk in chunks] == [2, 2]
    shares = torch.cat([chunk.shares for chunk in chunks])
    torch.testing.assert_close(shares, true[rows])
    keys, listed = (torch.cat([getattr(chunk, name) for chunk in chunks]) for name in ("keys", "listed"))
    best = true[rows].topk(6)
    torch.testing.assert_close(listed, best.values)
    assert torch.equal(keys, best.indices)
    # a sink of the model takes its part of all of them
    sinks = torch.tensor([1.0, 2.0, float("-inf")])
    call.sinks = sinks
    with_sinks = next(lists.chunks(call, rows[:1], 6))
    logits = torch.einsum("hd,nhd->hn", q[0, 0], k[0, :31]) * call.scale
    rest = logits.exp().sum(1) / (logits.exp().sum(1) + sinks.exp())
    torch.testing.assert_close(with_sinks.listed[0], best.values[0] * rest[:, None])


def test_kept_mass_shared_lists_and_errors():
    torch.manual_seed(1)
    q, k, v = torch.randn(1, 16, 2, 8) * 3, torch.randn(1, 16, 2, 8), torch.randn(1, 16, 2, 8)
    call, true = call_of(q, k, v)
    kept = keeps.Kept((2, 16))
    for chunk in lists.chunks(call, torch.arange(16), 16):
        kept.add(call, chunk, torch.ones(len(chunk.rows), dtype=torch.bool))
    one, other = kept.means(2)
    assert one["kept"][16] == pytest.approx(1) and one["output_error"][16] < 1e-5 < one["output_error"][2]
    assert one["kept"][2] == pytest.approx(float(true[:, 0].topk(2).values.sum(1).mean()), abs=1e-5)
    common = true.mean(1).topk(2).indices
    assert other["kept_shared"][2] == pytest.approx(float(true[:, 1].gather(1, common).sum(1).mean()), abs=1e-5)
    assert other["kept_shared"][2] < other["kept"][2]
    assert keeps.lives_with(one) == 2 and keeps.lives_with(other | {"kept": {2: 0.89}}) is None


def test_similarity_of_the_same_of_half_and_of_nothing():
    same, apart = [0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]
    half = [0.5, 0, 0.5, 0]
    found = redundancy.similarity(torch.tensor([[same, same, apart, half]]))
    np.testing.assert_allclose(found, [[1, 1, 0, 0.5], [1, 1, 0, 0.5], [0, 0, 1, 0.5], [0.5, 0.5, 0.5, 1]], atol=1e-6)
    order, groups = redundancy.order(found)
    assert groups == [[0, 1]] and sorted(order) == [0, 1, 2, 3] and abs(order.index(0) - order.index(1)) == 1


@pytest.fixture(scope="module")
def llama():
    return hf_models.tiny("llama")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    generation_setup.hush()
    path = tmp_path_factory.mktemp("world")
    small_world.untrained().save_pretrained(path)
    small_world.tokenizer().save_pretrained(path)
    return str(path)


def test_a_text_in_pieces_is_read_as_the_model_reads_it_whole(llama, monkeypatch):
    monkeypatch.setattr(reading, "PIECE", 24)
    text, _, _ = small_world.question(60)
    found = reading.read(llama, small_world.tokenizer(), text, ks=(2, 8))
    ids = found.text.ids
    with torch.no_grad():
        whole = llama(ids[None], output_attentions=True)
    attention = torch.stack(whole.attentions)[:, 0].flatten(0, 1).transpose(0, 1)  # [n, heads, n]
    assert found.is_causal and found.heads == [(layer, head) for layer in range(2) for head in range(4)]
    keys, shares = found.keys.long(), found.shares.float()
    torch.testing.assert_close(shares, attention.gather(-1, keys.clamp_min(0)) * (keys >= 0), atol=1e-3, rtol=1e-2)
    missed = 1 - shares.sum(-1).mean(0)
    assert [row["not_seen"] for row in found.scores] == pytest.approx(missed.clamp_min(0).tolist(), abs=1e-6) and missed.max() > 0.05
    rows = found.maps[found.maps.isfinite()].view(8, -1, reading.CELLS).sum(-1)
    torch.testing.assert_close(rows, torch.ones_like(rows), atol=1e-3, rtol=0)

    # the first head of the second layer left out, the slow way
    def without(module, given):
        return (given[0].index_fill(-1, torch.arange(8), 0),)

    def loss(logits):
        return float(torch.nn.functional.cross_entropy(logits[0, :-1], ids[1:]))

    with torch.no_grad():
        hook = llama.model.layers[1].self_attn.o_proj.register_forward_pre_hook(without)
        lost = loss(llama(ids[None]).logits)
        hook.remove()
    assert found.loss == pytest.approx(loss(whole.logits), abs=1e-4)
    assert found.scores[4]["importance"] == pytest.approx(lost - found.loss, abs=1e-4) and abs(lost - found.loss) > 1e-3
    assert llama.config._attn_implementation == "eager"


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gpt_oss"])
def test_windows_softcap_and_sinks_are_the_models_own(family, monkeypatch):
    monkeypatch.setattr(reading, "PIECE", 16)
    model = hf_models.tiny(family)
    found = reading.read(model, small_world.tokenizer(), small_world.question(40)[0])
    with torch.no_grad():
        attention = torch.stack(model(found.text.ids[None], output_attentions=True).attentions)[:, 0].flatten(0, 1).transpose(0, 1)
    keys = found.keys.long()
    expected = attention.gather(-1, keys.clamp_min(0)) * (keys >= 0)
    torch.testing.assert_close(found.shares.float(), expected, atol=2e-3, rtol=1e-2)


def test_long_texts_are_looked_at_in_stretches_and_in_flat_memory(llama):
    assert torch.equal(reading.sampled(10, 10), torch.arange(10))
    rows = reading.sampled(12000, 2048)
    assert len(rows) == 2048 and rows[0] == 0 and rows[-1] == 11999 and len(heads_report._runs(rows.numpy())) == 64
    text = small_world.text(3000, 0.3, random.Random(0))
    found = reading.read(llama, small_world.tokenizer(), text, queries=128)
    assert len(found.rows) == 128 and found.keys.shape == (128, 8, 16) and found.text.is_far
    said = " ".join(heads_report.sentences(found))
    assert "Looked from 128 of the" in said and "4 stretches" in said and "says that it was made for 512" in said and "is not shown" in said
    assert heads_report.as_json(found, "", "")["compared_from"] == 128 and "from all 128 tokens" in heads_report.compared_from(found)
    assert "from 64 tokens spread evenly" in heads_report.compared_from(replace(found, compared=64))


@pytest.fixture(scope="module")
def page(folder, tmp_path_factory):
    """A run of the command with its page."""
    out = tmp_path_factory.mktemp("out")
    text = "Anna: lamp. </script><b>Snow</b> & Boris: crown. " + small_world.question(40)[0]
    arguments = [text, "--model", folder, "--out", str(out), "--layer", "1", "--head", "2", "--json", "--k", "2,8"]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout), (out / "heads.html").read_text(encoding="utf-8"), out


def test_the_command_writes_a_page_and_pictures(page):
    found, html, out = page
    assert {path.name for path in out.iterdir()} >= {
        "heads.html", "heads_maps.png", "heads_scores.dark.png", "heads_redundancy.png", "heads_kept.png", "heads_layer1_head2.png",
    }  # fmt: skip
    assert {str(path) for path in out.iterdir()} == set(found["written"]) and len(found["written"]) == 11
    # of a short text all tokens that ask
    assert found["compared_from"] == found["tokens"] and f"the attention from all {found['tokens']} tokens, over all keys" in html
    assert len(found["heads"]) == 8 and found["k"] == [2, 8] and {"kept", "not_seen", "importance", "label"} <= set(found["heads"][0])
    data = json.loads(html.split('id="data">')[1].split("</script>")[0])
    assert len(data["tokens"]) == found["tokens"] and "</script><b>Snow</b>" in " ".join(data["tokens"]) and data["chosen"] == 6
    keys = np.frombuffer(base64.b64decode(data["keys"]), np.uint16).reshape(8, -1, data["shown"])
    shares = np.frombuffer(base64.b64decode(data["shares"]), np.uint8).reshape(keys.shape)
    assert keys.shape[1] == found["tokens"] and keys.max() <= found["tokens"] and (shares[keys == 0] == 0).all()
    mass = ((shares / 255.0) ** 2).sum(-1)[:, 1:].mean(1)
    assert mass == pytest.approx([1 - row["not_seen"] for row in found["heads"]], abs=0.02)


def test_the_page_needs_nothing_and_runs_nothing_of_the_text(page):
    _, html, _ = page
    assert html.count("</script>") == 2 and "<b>Snow" not in html
    assert "http" not in html.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "") and "innerHTML" not in html


def test_a_page_is_written_over_a_page_only(folder, tmp_path):
    (tmp_path / "heads.html").write_text("mine", encoding="utf-8")
    result = CliRunner().invoke(command, ["Snow falls on", "--model", folder, "--out", str(tmp_path)])
    assert result.exit_code == 2 and "is no page of selkey heads" in result.output.replace("\n", " ")
    assert (tmp_path / "heads.html").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("name", ["heads_maps.png", "heads_layer0.dark.png"])
def test_a_picture_is_written_over_a_picture_of_selkey_heads_only(page, folder, tmp_path, name):
    *_, out = page
    for path in out.glob("heads_maps*.png"):
        heads_report.check_target(path, "picture", pictures.MARK)
    (tmp_path / name).write_bytes(b"a photograph")
    result = CliRunner().invoke(command, ["Snow falls on", "--model", folder, "--out", str(tmp_path), "--layer", "0"])
    assert result.exit_code == 2 and "is no picture of selkey heads" in " ".join(result.output.split())
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"a photograph"]


def test_a_text_of_nothing_is_refused_before_anything_is_loaded(tmp_path):
    (tmp_path / "blank.txt").write_text(" \n")
    asked = "import sys; from selkey.bench.commands.heads import heads; sys.argv[1:] = [sys.argv[1]]\ntry: heads()\n"
    asked += "finally: assert 'torch' not in sys.modules and 'transformers' not in sys.modules, 'loaded'"
    for text in ("", str(tmp_path / "blank.txt")):
        done = subprocess.run([sys.executable, "-c", asked, text], capture_output=True, text=True)
        assert done.returncode == 2 and "the text is empty" in done.stderr, done.stderr


def test_terminal_and_page_call_columns_the_same(llama):
    found = reading.read(llama, small_world.tokenizer(), small_world.question(40)[0])
    console = Console(file=io.StringIO(), width=80)
    heads_report.show(console, found)
    table = console.file.getvalue().split("Shares in")[0]
    assert "…" not in table and "imp." in table and "loss" not in table and "unseen" not in table
    html = heads_report.page(found, "a model", "a text")
    for heading in ("previous", "duplicate", "induction", "not shown", "importance"):
        assert f"<dt>{heading}" in html and f'["{heading}"' in html, heading
    assert not any(f'["{heading}"' in html for heading in ("before", "same", "followed"))
    assert "the others are dots" not in html
    html = heads_report.page(replace(found, text=replace(found.text, pieces=[*found.text.pieces[:-1], ""])), "a model", "a text")
    assert "the others are dots" in html


def test_importance_below_0_has_another_colour_than_above(llama):
    found = reading.read(llama, small_world.tokenizer(), small_world.question(40)[0])
    for number, row in enumerate(found.scores):
        row["importance"] = (-0.05, 10.25)[number % 2]
    drawn = pictures.score_table(found, "a model", "")
    image = next(axis.images[0] for axis in drawn.axes if axis.images and axis.images[0].get_label() == "importance")
    assert image.norm(0) == 0.5 and image.norm.vmin == -image.norm.vmax == -10.25
    assert {text.get_text() for text in image.axes.texts} == {"-.05", "10.25"}


def test_heads_are_compared_from_as_many_tokens_as_are_fast():
    assert redundancy.sizes(15, 200, 200) == (200, 200) and redundancy.sizes(15, 300, 300) == (64, 300)
    assert redundancy.sizes(256, 200, 200)[0] == 64 and redundancy.sizes(300, 200, 200)[0] == 16 and redundancy.sizes(300, 9, 5)[0] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((" ",), "the text is empty"),
        (("",), "the text is empty"),
        (("Snow",), "makes 1 of the model's tokens"),
        (("absent.txt",), "there is no file absent.txt"),
        (("{tmp}",), "is a folder"),
        (("{tmp}/binary.bin",), "bytes of 0"),
        (("{tmp}/latin.txt",), "is not UTF-8 text: byte 0xff at 5"),
        (("Snow falls", "--layer", "2"), "--layer must be 0 to 1"),
        (("Snow falls", "--layer", "0", "--head", "4"), "--head must be 0 to 3"),
        (("Snow falls", "--head", "1"), "--head needs --layer"),
        (("Snow falls", "--k", "4,0"), "expected a positive count"),
        (("Snow falls", "--k", "5k"), "at most 4096 keys"),
        (("Snow falls", "--model", "{tmp}/nothing"), "is no folder"),
        (("Snow falls", "--model", "{tmp}"), "holds no config.json"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(folder, tmp_path, arguments, message):
    (tmp_path / "binary.bin").write_bytes(b"\x7fELF\0\0\1")
    (tmp_path / "latin.txt").write_bytes(b"Snow \xff")
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    if "--model" not in given:
        given += ["--model", folder]
    result = CliRunner().invoke(command, [*given, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2 and message in " ".join(result.output.split()), result.output
    assert not (tmp_path / "out").exists()


def test_models_whose_heads_cannot_be_seen(tmp_path):
    from transformers import MambaConfig, MambaForCausalLM

    mamba = MambaForCausalLM(MambaConfig(vocab_size=len(small_world.tokenizer()), hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(ValueError, match="no attention layer|AttentionInterface"):
        reading.read(mamba.eval(), small_world.tokenizer(), "Snow falls on the quiet hill.")
    with pytest.raises(ValueError, match="selects its keys itself|selects"):
        reading.read(hf_models.tiny("glm_moe_dsa"), small_world.tokenizer(), small_world.question(40)[0])


@pytest.mark.skipif(minilm.missing() is not None, reason=minilm.missing() or "")
def test_a_real_encoder_in_pieces(monkeypatch):
    monkeypatch.setattr(ablation, "TOKENS", 16)
    tokenizer, model = minilm.load()
    text = minilm._TEXT.read_text(encoding="utf-8")
    encoded = encode(model, tokenizer, text)
    assert "".join(piece for piece, special in zip(encoded.pieces, encoded.special.tolist(), strict=True) if not special) == text
    assert len(encoded.spans) == 2 and encoded.spans[0] == (0, 512) and not looking.is_causal(model)
    found = reading.read(model, tokenizer, text[:900])
    by_name = {(row["layer"], row["head"]): row["label"] for row in found.scores}
    assert by_name[0, 2] == "previous" and by_name[1, 8] == "next" and by_name[2, 9] == "duplicate"
    assert found.importance == "hidden" and all(0 < row["importance"] < 1 for row in found.scores) and found.tried <= ablation.TOKENS
