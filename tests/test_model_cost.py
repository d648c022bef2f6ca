"""Bytes and operations of whole models against arithmetic by hand and against what the policies of selkey say of themselves."""

import pytest

from selkey import selection as policies
from selkey.bench import model_cost
from selkey.bench.model_cost import DENSE, Selection
from selkey.bench.models import model, parameters
from selkey.bench.selector_cost import SELECTORS, Shape

LLAMA, QWEN, V3, V32, OSS = (model(name) for name in ("llama-3-8b", "qwen3-32b", "deepseek-v3", "deepseek-v3.2", "gpt-oss-20b"))


def test_keys_of_a_selection():
    assert [Selection.of(text).keys(10_000) for text in ("dense", "100%", "2048", "2k", "5%", "0.001%", "1M")] == [
        10_000, 10_000, 2048, 2048, 500, 1, 10_000,
    ]  # fmt: skip
    assert Selection.of("5%", "quest") == Selection(0.05, "quest")
    assert model_cost.own_selection(V32) == Selection(2048, "indexer") and model_cost.own_selection(V3) is DENSE


@pytest.mark.parametrize("text", ["0", "0%", "101%", "-3", "five", "5 %k", ""])
def test_keys_that_do_not_parse(text):
    with pytest.raises(ValueError, match="expected a number of keys such as 2048, a share such as 5%, or dense"):
        Selection.of(text)


def test_selections_that_mean_nothing():
    with pytest.raises(ValueError, match="unknown selector 'qest': nearest: quest"):
        Selection(5, "qest")
    for k in (0, -1, 2.5, 1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="k must be a count of keys, a share below 1 or None"):
            Selection(k)


@pytest.mark.parametrize("k", [1, 7, 50, 80, None])
def test_mean_over_a_causal_sequence(k):
    context = 50
    by_hand = sum(min(k or context, seen) for seen in range(1, context + 1)) / context
    assert Selection(k).mean_keys(context) == pytest.approx(by_hand)
    assert Selection(0.1).mean_keys(context) == pytest.approx(0.1 * 25.5)


def test_cache_of_fixed_head_dim_and_of_fixed_hidden():
    # 32 layers, 32k tokens, bf16: head_dim 128 grows with the heads, hidden size 4096 does not
    base = model("llama-2-7b")
    fixed = [model_cost.kv_bytes(base.replace(n_heads=n, n_kv_heads=n), 2**15) / 1e9 for n in (8, 32, 64)]
    assert fixed == pytest.approx([4.29, 17.18, 34.36], abs=5e-3)
    for n in (8, 32, 64):
        widths = {"head_dim": 4096 // n, "v_head_dim": 4096 // n}
        assert model_cost.kv_bytes(base.replace(n_heads=n, n_kv_heads=n, **widths), 2**15) / 1e9 == pytest.approx(17.18, abs=5e-3)


def test_formats_count_their_scales():
    # int4 at 128 columns: 64 bytes of codes and 4 of scale, for a key and for a value
    assert model_cost.kv_bytes_per_token(LLAMA, "int4") == 32 * 8 * 2 * (64 + 4)
    assert model_cost.kv_bytes_per_token(V3, "fp8") == model_cost.kv_bytes_per_token(V3, "mla_fp8") == 61 * 656
    with pytest.raises(ValueError, match="unknown format 'int5': nearest: int"):
        model_cost.kv_bytes(LLAMA, 1, format="int5")
    with pytest.raises(ValueError, match="'mla_fp8' does not hold the rows of this model: use one of fp32"):
        model_cost.kv_bytes(LLAMA, 1, format="mla_fp8")
    with pytest.raises(ValueError, match="'int4' does not hold the rows of this model: use one of mla_bf16, mla_fp8"):
        model_cost.kv_bytes(V3, 1, format="int4")


def test_keys_read_respect_windows():
    assert model_cost.keys_read(OSS, 4096, DENSE) == 12 * 4096 + 12 * 128
    assert model_cost.keys_read(OSS, 4096, Selection(256)) == 12 * 256 + 12 * 128
    assert model_cost.keys_read(OSS, 64, DENSE) == 24 * 64
    causal = model_cost.keys_read(OSS, 200, DENSE, causal=True)
    assert causal == pytest.approx(12 * sum(min(128, p) + p for p in range(1, 201)) / 200)


@pytest.mark.parametrize("batch, distinct", [(1, 8), (2, 128 * (1 - (120 / 128) ** 2)), (10**6, 128)])
def test_distinct_experts(batch, distinct):
    assert model_cost.expected_experts(model("qwen3-30b-a3b"), batch) == pytest.approx(distinct)


def test_distinct_experts_are_what_chance_gives():
    # all ways in which 2 tokens draw 2 of 4 experts: 2, 3 or 4 distinct in 6, 24 and 6 of 36
    few = model("mixtral-8x7b").replace(n_experts=4, active_experts=2)
    assert model_cost.expected_experts(few, 2) == pytest.approx((6 * 2 + 24 * 3 + 6 * 4) / 36)


def test_weights_read_leave_the_input_table_out():
    read = model_cost.decode_bytes(LLAMA, 1)
    assert read["weights"] + read["lm_head"] == 2 * (parameters(LLAMA).total - 128256 * 4096)
    assert model_cost.decode_bytes(LLAMA, 1, weight_bits=4.5)["weights"] == read["weights"] * 4.5 / 16
    # a tied table is read once, as the LM head
    tied = model("llama-3.2-1b")
    assert sum(model_cost.decode_bytes(tied, 1)[part] for part in ("weights", "lm_head")) == 2 * parameters(tied).total


def test_weights_of_experts_grow_with_the_batch():
    sparse = model("qwen3-30b-a3b")
    one, many = (model_cost.decode_bytes(sparse, 1, batch=batch)["weights"] for batch in (1, 4096))
    assert one + 2 * 151936 * 2048 == pytest.approx(2 * (parameters(sparse).active - 151936 * 2048))
    assert many == pytest.approx(2 * (parameters(sparse).total - 2 * 151936 * 2048))


def test_attention_and_selector_are_apart():
    read = model_cost.decode_bytes(LLAMA, 2**17, selection=Selection(0.05, "corners"))
    keys = round(0.05 * 2**17)
    vectors = 32 * 32 * 256 * 2
    assert read["attention"] == 32 * 8 * 512 * keys + vectors
    assert read["selector"] == model_cost.kv_bytes(LLAMA, 2**17) / 16
    assert read["list"] == 32 * 8 * 4 * -(-keys // 16)
    dense = model_cost.decode_bytes(LLAMA, 2**17, selection=DENSE)
    assert dense["attention"] == model_cost.kv_bytes(LLAMA, 2**17) + vectors and dense["selector"] == dense["list"] == 0


def test_selected_rows_take_whole_sectors():
    # a token of one KV head is 2 · 68 bytes in int4; 136 bytes from anywhere on touch 160 of 32-byte sectors on average
    counts = model_cost.attention_bytes(LLAMA, 2**17, format="int4", selection=Selection(1024))
    fixed = 32 * 32 * 256 * 2 + 32 * 8 * 4 * 1024
    assert counts.algorithmic - fixed == 32 * 8 * 136 * 1024
    assert counts.unique - fixed == counts.touched - fixed == 32 * 8 * 160 * 1024
    # one list for all heads reads the 8 heads in one piece, 1088 bytes, which is 34 sectors
    joined = model_cost.attention_bytes(LLAMA, 2**17, format="int4", selection=Selection(1024, "indexer"))
    assert joined.touched - 32 * 32 * 256 * 2 - 32 * 4 * 1024 == 32 * 1088 * 1024
    # streamed rows take none besides
    streamed = model_cost.attention_bytes(LLAMA, 2**17, format="int4", selection=DENSE)
    assert streamed.algorithmic == streamed.touched == 32 * 8 * 136 * 2**17 + 32 * 32 * 256 * 2


@pytest.mark.parametrize("k", [64, 2048])
@pytest.mark.parametrize("rows", [16, 1000, 2**17])
@pytest.mark.parametrize("name", ["quest", "summaries", "tree"])
def test_selectors_cost_what_the_policies_say(name, rows, k):
    policy = {"quest": policies.Quest, "summaries": policies.SummaryPages, "tree": policies.PageTree}[name](k)
    sizes = policies.Sizes(3, rows, 32, 8, 128, 68)
    shape = Shape(n_heads=32, n_kv_heads=8, key_dim=128, key_bytes=68)
    assert 3 * SELECTORS[name].step_bytes(shape, rows, k) == policy.bytes_per_step(sizes)


def test_the_indexer_costs_what_the_policy_says():
    policy = policies.TopK(2048)
    sizes = policies.Sizes(1, 4096, 128, 1, 576, 656)
    assert SELECTORS["indexer"].step_bytes(model_cost.selector_shape(V32), 4096, 2048) == policy.bytes_per_step(sizes) == 4096 * 132


def test_index_keys_are_held_once():
    held = model_cost.memory(V32, 2**15, selection=Selection(2048, "indexer"))
    assert held["selector"] == 0 and held["kv"] == 2**15 * 61 * (1152 + 132)
    assert model_cost.memory(V3, 2**15, selection=Selection(2048, "indexer"))["selector"] == 2**15 * 61 * 132


def test_an_added_indexer_is_named():
    # 32 · 4096 · (8192 + 192) and norms: 1.10 B; the model's own is not added
    assert model_cost.added_indexer(LLAMA, Selection(2048, "indexer")) == ["an indexer of 64 × 128 is added: 1.1 B parameters"]
    assert model_cost.added_indexer(V32, Selection(2048, "indexer")) == model_cost.added_indexer(LLAMA, Selection(2048, "quest")) == []


def test_memory_of_selectors():
    corners = model_cost.memory(LLAMA, 2**17, selection=Selection(64, "quest"))["selector"]
    assert corners == model_cost.kv_bytes(LLAMA, 2**17) / 16
    page = 8 * (128 * 2 + 8)
    pages = 2**17 // 16
    assert model_cost.memory(LLAMA, 2**17, selection=Selection(64, "summaries"))["selector"] == 32 * pages * page
    # 8192, 1024, 128, 16, 2, 1
    assert model_cost.memory(LLAMA, 2**17, selection=Selection(64, "tree"))["selector"] == 32 * (8192 + 1024 + 128 + 16 + 2 + 1) * page
    assert model_cost.memory(LLAMA, 2**17, selection=Selection(64))["selector"] == 0


def test_memory_of_a_step():
    held = model_cost.memory(QWEN, 2**17)
    assert held["weights"] + held["kv"] == pytest.approx(99.9e9, rel=1e-3)
    assert (held["weights"] + held["kv"]) / 2**30 == pytest.approx(93.0, abs=0.05)
    assert held["overhead"] == 1e9 and model_cost.memory(QWEN, 2**17, overhead=0.0)["overhead"] == 0
    # selecting keys frees nothing
    assert model_cost.memory(QWEN, 2**17, selection=Selection(0.05))["kv"] == held["kv"]


@pytest.mark.parametrize("name", ["gpt2", "llama-3-8b", "qwen3-30b-a3b", "deepseek-v3", "deepseek-v3.2", "gpt-oss-20b"])
def test_matrices_cost_two_operations_an_element(name):
    one = model(name)
    parts = model_cost.flops_per_token(one, 1000, DENSE)
    assert sum(parts.values()) - parts["attention"] == 2 * parameters(one).matmul_active


def test_attention_of_a_long_context():
    # 64 layers, 64 heads of 128 over 131072 keys: 0.275 TFLOP
    assert model_cost.flops_per_token(QWEN, 2**17)["attention"] == 4 * 64 * 128 * 64 * 2**17 == pytest.approx(0.275e12, rel=2e-3)


def test_share_of_attention_in_causal_operations():
    for context, share in ((2**11, 0.035), (2**13, 0.125), (2**15, 0.36), (2**17, 0.70), (2**20, 0.95)):
        parts = model_cost.flops_per_token(LLAMA, context, causal=True)
        assert parts["attention"] / sum(parts.values()) == pytest.approx(share, abs=6e-3)


def test_operations_through_a_latent():
    # one token a query: 128 heads × (576 + 512) columns a key; many queries: keys of 192 and values of 128
    assert model_cost.flops_per_token(V3, 1000)["attention"] == 61 * 2 * 128 * 1088 * 1000
    assert model_cost.flops_per_token(V3, 999, causal=True)["attention"] == 61 * 2 * 128 * (192 + 128) * 500
    # choosing by 64 heads of 128: 5.9 % of that a key
    indexer = model_cost.flops_per_token(V32, 10**6)
    projections = 2 * 61 * (1536 * 64 * 128 + 7168 * (128 + 64))
    assert indexer["selector"] - projections == 61 * 2 * 64 * 128 * 10**6
    assert (indexer["selector"] - projections) / model_cost.flops_per_token(V3, 10**6)["attention"] == pytest.approx(0.059, abs=5e-4)


def test_a_share_of_the_keys_is_still_quadratic():
    whole, share = (model_cost.flops_per_token(LLAMA, 2**17, one, causal=True)["attention"] for one in (DENSE, Selection(0.05)))
    assert share == pytest.approx(whole / 20)
    near, far = (model_cost.flops_per_token(LLAMA, context, Selection(2048), causal=True)["attention"] for context in (2**17, 2**20))
    assert far == pytest.approx(near, rel=0.01)


def test_a_tree_is_not_linear():
    near, far = (model_cost.selector_bytes(LLAMA, context, selection=Selection(512, "tree")) for context in (2**17, 2**20))
    assert far < 1.5 * near
    linear = [model_cost.selector_bytes(LLAMA, context, selection=Selection(512, "summaries")) for context in (2**17, 2**20)]
    assert linear[1] == 8 * linear[0]
