"""Models that select keys themselves give with "selkey" the logits of "eager", whole, in chunks, token by token, padded and in batches."""

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("transformers")

from hf_models import SELECTING, VOCABULARY, tiny  # noqa: E402
from transformers import DynamicCache, StaticCache  # noqa: E402

from selkey import hf  # noqa: E402
from selkey.hf import implementation, masks  # noqa: E402

LENGTH = 40
# Sums of a few dozen fp32 products in another order, through 3 layers: 1e-6 was seen. A key too many or too few changes logits by 0.1.
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=SELECTING)
def family(request):
    """(name, the model with selkey, the same with eager)."""
    return request.param, hf.use(tiny(request.param)), tiny(request.param)


def prompts(batch=2, length=LENGTH, seed=1):
    return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def logits(model, ids, **keywords):
    with torch.no_grad():
        return model(ids, **keywords).logits


def assert_same(found, expected):
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


@contextmanager
def noted_lists(monkeypatch):
    """The widths of the lists that attention ran over, in blocks or keys."""
    widths, original = [], implementation.attention

    def note(q, k, v, lists, **keywords):
        widths.append(lists.shape[-1])
        return original(q, k, v, lists, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(implementation, "attention", note)
        yield widths


def test_a_whole_prompt(family, monkeypatch):
    name, selkey_model, eager = family
    ids = prompts()
    with noted_lists(monkeypatch) as widths:
        found = logits(selkey_model, ids)
    assert_same(found, logits(eager, ids))
    # the test is worth something: keys were selected, and fewer than there are (but for compressed entries that are all read)
    assert widths and min(widths) < LENGTH


def test_padding_on_the_left(family):
    name, selkey_model, eager = family
    ids, mask = prompts(), torch.ones(2, LENGTH, dtype=torch.int64)
    mask[0, :5] = 0
    found = logits(selkey_model, ids, attention_mask=mask)
    if name == "minimax_m3_vl":
        # its indexer takes padding for keys, so that what a padded query sees decides: "eager" lets it see all, "sdpa" nothing
        eager.set_attn_implementation("sdpa")
    expected = logits(eager, ids, attention_mask=mask)
    eager.set_attn_implementation("eager")
    assert_same(found[0, 5:], expected[0, 5:])
    assert_same(found[1], expected[1])


def test_padding_on_the_right(family):
    _, selkey_model, eager = family
    ids, mask = prompts(), torch.ones(2, LENGTH, dtype=torch.int64)
    mask[0, -7:] = 0
    found, expected = (logits(model, ids, attention_mask=mask) for model in (selkey_model, eager))
    assert_same(found[0, :-7], expected[0, :-7])
    assert_same(found[1], expected[1])


def test_chunks_then_single_tokens_from_a_cache(family):
    _, selkey_model, eager = family
    ids = prompts()
    for pieces in ((17, 11, 12), (36, 1, 1, 1, 1)):
        cache, found = DynamicCache(config=selkey_model.config), []
        for piece in ids.split(pieces, 1):
            found.append(logits(selkey_model, piece, past_key_values=cache))
        cache, expected = DynamicCache(config=eager.config), []
        for piece in ids.split(pieces, 1):
            expected.append(logits(eager, piece, past_key_values=cache))
        assert_same(torch.cat(found, 1), torch.cat(expected, 1))


def test_a_batch_says_what_its_entries_say(family):
    _, selkey_model, _ = family
    ids = prompts(4)
    together = logits(selkey_model, ids)
    for b in (0, 3):
        assert_same(together[b], logits(selkey_model, ids[b : b + 1])[0])


def test_greedy_text(family):
    name, selkey_model, eager = family
    ids, mask = prompts(2, 20), torch.ones(2, 20, dtype=torch.int64)
    if name != "minimax_m3_vl":
        mask[0, :3] = 0
    arguments = dict(attention_mask=mask, max_new_tokens=8, do_sample=False)
    assert torch.equal(selkey_model.generate(ids, **arguments), eager.generate(ids, **arguments))


@pytest.mark.parametrize("name", ["deepseek_v32", "minimax_m3_vl"])
def test_a_static_cache(name):
    selkey_model, eager, ids = hf.use(tiny(name)), tiny(name), prompts()
    results = []
    for model in (selkey_model, eager):
        cache = StaticCache(config=model.config, max_cache_len=64)
        results.append(torch.cat([logits(model, piece, past_key_values=cache) for piece in ids.split((30, 9, 1), 1)], 1))
    assert_same(*results)


def masks_of_the_caller():
    """4-D masks ``[2, 1, LENGTH, LENGTH]`` that are added to logits: causal, without a stretch, falling off, the same for all queries."""
    distance = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    lowest = torch.finfo(torch.float32).min
    causal = torch.zeros(LENGTH, LENGTH).masked_fill(distance < 0, lowest)
    made = {
        "causal": causal,
        "gap": causal.masked_fill((distance > 3) & (distance < 9), lowest),
        "falling": causal - 0.1 * distance.clamp(min=0),
        "all": torch.zeros(1, LENGTH).expand(LENGTH, LENGTH),
    }
    return {name: mask.expand(2, 1, LENGTH, LENGTH) for name, mask in made.items()}


@pytest.mark.parametrize("name", ["deepseek_v32", "deepseek_v4"])
@pytest.mark.parametrize("mask", masks_of_the_caller())
def test_masks_of_the_caller(name, mask):
    selkey_model, eager, ids = hf.use(tiny(name)), tiny(name), prompts()
    made, arguments = masks_of_the_caller()[mask], dict(use_cache=False)
    expected = logits(eager, ids, attention_mask=made, **arguments)
    assert_same(logits(selkey_model, ids, attention_mask=made, **arguments), expected)
    if name == "deepseek_v32" and mask != "falling":
        assert_same(logits(selkey_model, ids, attention_mask=made == 0, **arguments), expected)


class _Largest(TorchDispatchMode):
    """The most elements of a tensor that is made inside."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            # a view is not made
            if isinstance(tensor, torch.Tensor) and tensor._base is None and not function.is_view:
                self.elements = max(self.elements, tensor.numel())
        return made


@pytest.mark.parametrize("form", ["indices", "blocks", "masked blocks", "mask"])
def test_attention_makes_nothing_of_the_size_of_all_pairs(form, monkeypatch):
    N, K, heads = 1024, 8, 2
    monkeypatch.setattr(implementation, "_AT_ONCE", 1 << 14)
    monkeypatch.setattr(masks, "_AT_ONCE", 1 << 14)
    q, k, v = torch.randn(3, 1, heads, N, 4)
    module = torch.nn.Module()
    module.config = type("Config", (), {"model_type": "glm5_next_text", "index_topk": K, "index_kpool": 1})()
    module.indexer = type("Indexer", (), {"block_size": 4})()
    mask = torch.ones(N, N, dtype=torch.bool).tril()[None, None]
    lists = torch.randint(N, (1, N, K), dtype=torch.int32)
    keywords = {}
    if form == "indices":
        keywords["indices"] = lists
    elif form == "mask":
        module.build_attention_mask_from_topk = None
        mask = torch.zeros(1, N, N, dtype=torch.bool).scatter_(-1, lists.long(), True)[None] & mask
    else:
        keywords["block_indices"] = (lists // 4).unsqueeze(1).expand(1, heads, N, K)[..., :2]
        mask = mask if form == "masked blocks" else None
    with _Largest() as made:
        implementation.attend(module, q, k, v, mask, **keywords)
    assert 0 < made.elements < N * N // 8
