"""Model presets against published parameter counts and cache sizes, and what a model refuses."""

import pytest

from selkey.bench.models import MODELS, model, parameters
from selkey.bench.sourced import KINDS, Sourced

# 10⁹ parameters (all, active), cache bytes of a token in bf16
PUBLISHED = {
    "gpt2": (0.124, None, 36_864),
    "gpt2-medium": (0.355, None, 98_304),
    "gpt2-large": (0.774, None, 184_320),
    "gpt2-xl": (1.558, None, 307_200),
    "gpt3-175b": (174.6, None, 4_718_592),
    "llama-2-7b": (6.738, None, 524_288),
    "llama-3-8b": (8.030, None, 131_072),
    "llama-3-70b": (70.554, None, 327_680),
    "mistral-7b": (7.242, None, 131_072),
    "qwen2.5-7b": (7.615, None, 57_344),
    "qwen3-8b": (8.191, None, 147_456),
    "qwen3-32b": (32.762, None, 262_144),
    "qwen3-30b-a3b": (30.532, 3.353, 98_304),
    "deepseek-v3": (671.03, 37.55, 70_272),
    "gpt-oss-20b": (20.9, 4.2, 49_152),
    "gpt-oss-120b": (116.8, 5.7, 73_728),
}
# GiB of one sequence of 32k, 128k and 1M tokens, every layer keeping every key
GIBIBYTES = {
    "gpt2": (1.125, 4.5, 36),
    "gpt2-medium": (3, 12, 96),
    "gpt2-large": (5.625, 22.5, 180),
    "gpt2-xl": (9.375, 37.5, 300),
    "gpt3-175b": (144, 576, 4608),
    "llama-2-7b": (16, 64, 512),
    "llama-3-8b": (4, 16, 128),
    "llama-3-70b": (10, 40, 320),
    "mistral-7b": (4, 16, 128),
    "qwen2.5-7b": (1.75, 7, 56),
    "qwen3-8b": (4.5, 18, 144),
    "qwen3-32b": (8, 32, 256),
    "qwen3-30b-a3b": (3, 12, 96),
    "deepseek-v3": (2.14, 8.58, 68.6),
    "gpt-oss-20b": (1.5, 6, 48),
    "gpt-oss-120b": (2.25, 9, 72),
}
# the same where windows are kept to
REAL_GIBIBYTES = {"gpt-oss-20b": 3.0, "gpt-oss-120b": 4.5}


def same(value, published, digits=3):
    return value == pytest.approx(published, rel=0.51 * 10 ** (1 - digits))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name):
    total, active, _ = PUBLISHED[name]
    count = parameters(model(name))
    assert same(count.total / 1e9, total)
    assert same(count.active / 1e9, active or total, 2 if name.startswith("gpt-oss") else 3)
    assert sum(count.by_part.values()) == count.total


def test_parameters_to_the_last_one():
    # as the published checkpoints count them
    assert parameters(model("gpt2")).total == 124_439_808
    assert parameters(model("llama-3-8b")).total == 8_030_261_248
    assert parameters(model("qwen3-32b")).total == 32_762_123_264
    assert parameters(model("mixtral-8x7b")).total == 46_702_792_704


def test_matrices_of_one_token_by_hand():
    # a layer: q, k, v 2048 × (2048 + 2 · 512), out 2048 × 2048, MLP 3 · 2048 · 8192; 16 layers; LM head 2048 × 128256 though it is tied
    layer = 2048 * (2048 + 1024) + 2048 * 2048 + 3 * 2048 * 8192
    assert parameters(model("llama-3.2-1b")).matmul_active == 16 * layer + 2048 * 128256
    assert parameters(model("llama-3.2-1b")).by_part["lm_head"] == 0


@pytest.mark.parametrize("name", GIBIBYTES)
def test_cache_is_the_published_size(name):
    from selkey.bench.model_cost import kv_bytes, kv_bytes_per_token

    published = model(name)
    assert kv_bytes_per_token(published) == PUBLISHED[name][2]
    flat = published.replace(window=None, window_layers=0)
    for context, gibibytes in zip((2**15, 2**17, 2**20), GIBIBYTES[name], strict=True):
        assert same(kv_bytes(flat, context) / 2**30, gibibytes)
        assert kv_bytes(flat, context, batch=3) == 3 * kv_bytes(flat, context)


@pytest.mark.parametrize("name", REAL_GIBIBYTES)
def test_windows_are_kept_to(name):
    from selkey.bench.model_cost import kv_bytes

    published = model(name)
    assert same(kv_bytes(published, 2**17) / 2**30, REAL_GIBIBYTES[name], 2)
    # below the window every layer keeps every key
    assert kv_bytes(published, 100) == 100 * PUBLISHED[name][2]


def test_width_of_a_head_is_no_quotient():
    other = [each for each in MODELS.values() if not each.is_latent and each.n_heads * each.head_dim != each.hidden]
    assert {"qwen3-32b", "qwen3-30b-a3b", "gpt-oss-20b", "gpt-oss-120b"} <= {each.name for each in other}


def test_the_indexer_caches_a_key_of_its_own():
    from selkey.bench.model_cost import kv_bytes_per_token

    assert kv_bytes_per_token(model("deepseek-v3.2")) == 70_272 + 61 * 132
    v3, v32 = model("deepseek-v3"), model("deepseek-v3.2")
    assert (v32.index_heads, v32.index_dim, v32.index_topk) == (64, 128, 2048)
    # queries from the latent, one key and one weight a head, and the norm of the key
    assert parameters(v32).total - parameters(v3).total == 61 * (1536 * 64 * 128 + 7168 * (128 + 64) + 256)


@pytest.mark.parametrize("name", MODELS)
def test_every_figure_has_a_source(name):
    figures = model(name).figures()
    assert set(model(name).derived) <= set(figures)
    assert figures["n_heads"].value == model(name).n_heads
    assert all(figure.kind in KINDS and figure.source for figure in figures.values())


def test_kinds_differ_where_a_figure_is_derived():
    deepseek = model("deepseek-v3")
    assert deepseek.figure("n_kv_heads").kind == deepseek.figure("head_dim").kind == "derived"
    assert deepseek.figure("n_heads") == Sourced(128, "configuration", deepseek.source)
    changed = model("qwen3-8b").replace(n_heads=64)
    assert changed.figure("n_heads").kind == "derived" and "qwen3-8b" in changed.figure("n_heads").source
    assert changed.figure("n_kv_heads").kind == "configuration"


@pytest.mark.parametrize("name, field", [("mistral-7b", "window"), ("mistral-7b", "max_context"), ("llama-2-7b", "max_context")])
def test_what_a_source_does_not_say_has_one_of_its_own(name, field):
    assert "config.json, recalled" in model(name).figure(field).source and "gpt-fast" in model(name).figure("n_heads").source


def test_there_are_enough():
    assert len(MODELS) >= 17 and all(each.name == name for name, each in MODELS.items())


def test_unknown_name_is_met_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown model 'qwen3-32': nearest: qwen3-32b"):
        model("qwen3-32")
    with pytest.raises(ValueError, match="there are gpt2, gpt2-medium"):
        model("§")
    assert model("Qwen3-32B") is model("qwen3-32b")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"n_heads": 12}, "n_heads of qwen3-8b must be a multiple of n_kv_heads, 8; got 12"),
        ({"n_layers": 0}, "n_layers of qwen3-8b must be at least 1; got 0"),
        ({"window": 128}, "window and window_layers of qwen3-8b go together"),
        ({"window": 128, "window_layers": 37}, "window_layers of qwen3-8b must lie between 0 and n_layers, 36; got 37"),
        ({"active_experts": 2}, "active_experts of qwen3-8b must be at most n_experts, 0; got 2"),
        ({"latent_dim": 512}, "qwen3-8b caches a latent"),
    ],
)
def test_impossible_models_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        model("qwen3-8b").replace(**changes)


def test_a_figure_without_a_source_is_refused():
    with pytest.raises(ValueError, match="kind must be one of"):
        Sourced(1, "guess", "somebody")
    with pytest.raises(ValueError, match="source"):
        Sourced(1, "datasheet", "")
