"""Implementations of other packages: right on a CPU where they run, a reason where they do not, arguments as their packages want them.

What cannot be installed here is played by a stub of its package, which checks what it is given and computes the truth.
"""

import importlib.machinery
import math
import shutil
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

import selkey
from selkey.bench import caches, correctness, cost, inputs, machine, one_case, peer_workloads, records, room, timing, workloads
from selkey.bench.peers import PEERS, chosen, fla_nsa, flash_mla, flashinfer, installed
from selkey.bench.run import Plan, run
from selkey.bench.workloads import Case

pytestmark = pytest.mark.clean_memory

DECODE = Case("decode", 4, 2, 2, 16, 16, 100, 10)
PREFILL = Case("prefill", 4, 2, 2, 16, 16, 24, 6, q_len=24, dtype="fp32", causal=True, selector="stratified")
SHARED = Case("cache", 8, 2, 1, 64, 64, 96, 16, batch=3)
BLOCKS = Case("blocks", 32, 2, 2, 32, 32, 128, 64, page=16)
LATENT = Case("mla", 64, 1, 1, 576, 512, 192, 64, batch=2, is_latent=True)


def draw(case):
    return inputs.RandomPool(cost.cache_bytes(case), case.dtype, "cpu", 0).inputs(case, np.random.default_rng(0))


def is_right(case, name, given=None):
    """Does an implementation compute the truth?"""
    given = draw(case) if given is None else given
    ready = one_case.ready(PEERS[name], given)
    out = ready.attend(ready.plan(given) if hasattr(ready, "plan") else given)
    if room.format_of(ready) is None:
        return correctness.check(out, correctness.truth(given, PEERS[name].READS))["ok"]
    return caches.blocks(ready, out, given)["correct"]["ok"]


# What runs on every machine.


@pytest.mark.parametrize("name", ["sdpa", "sdpa_math", "sdpa_flash", "gather", "selkey"])
@pytest.mark.parametrize("case", [DECODE, PREFILL, replace(DECODE, batch=2, n_list_heads=4), SHARED, BLOCKS, LATENT])
def test_plain_implementations_are_right(case, name):
    reason = room.unavailable(case, PEERS[name], "cpu")
    if (case.is_latent, name) == (True, "sdpa_flash"):
        assert "keys and values of one width" in reason
    elif case.causal and name == "gather":
        assert "no empty slots" in reason and room.unavailable(replace(case, q_len=2), PEERS[name], "cpu") is None
    else:
        assert reason is None and is_right(case, name)


@pytest.mark.parametrize("name, case", [("kv_int8", replace(SHARED, n_list_heads=2)), ("kv_int4", SHARED), ("kv_mla_fp8", LATENT)])
def test_caches_with_lists_for_each_head_and_latents(name, case):
    pytest.importorskip("triton")
    assert room.unavailable(case, PEERS[name], "cpu") is None and is_right(case, name)
    assert room.copy_bytes(case, PEERS[name]) == cost.cache_bytes(case, name.removeprefix("kv_"))


def test_flex_attention_from_lists():
    if shutil.which("g++") is None:
        pytest.skip("torch.compile wants g++")
    from selkey.bench.peers import flex

    given = draw(replace(BLOCKS, dtype="fp32"))
    planned = flex.Compiled().plan(given)
    # a list of blocks of 16 keys, and a query head of the second KV head
    assert planned.mask.shape == (1, 32, 1, 128)
    named = set(inputs.named_keys(given.indices, 16)[0, 0, 1].tolist())
    zero, head = torch.tensor(0), torch.tensor(31)
    assert {n for n in range(128) if planned.mask.mask_mod(zero, head, zero, torch.tensor(n))} == named
    # uncompiled it is the same mathematics, without the seconds that a C++ compiler takes
    plain = SimpleNamespace(_flex=torch.nn.attention.flex_attention.flex_attention)
    out = flex.Compiled.attend(plain, planned)
    assert correctness.check(out, correctness.truth(given, "selected"))["ok"]
    causal = draw(PREFILL)
    out = flex.Compiled.attend(plain, flex.Compiled().plan(causal))
    assert correctness.check(out, correctness.truth(causal, "selected"))["ok"]


# What is not installed, or does not fit, is a row that says so.


def test_every_skip_is_a_row_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setattr("selkey.bench.run.ABOVE_ROOF", math.inf)
    monkeypatch.setitem(timing._SMALLEST_FLUSH, "cpu", 2**20)
    monkeypatch.setattr("selkey.bench.ceilings.SMALLEST_WORKING_SET", 2**22)
    monkeypatch.setattr("selkey.bench.ceilings.MATRIX_SIZES", {"cpu": (64,), "cuda": (64,)})
    monkeypatch.setattr(installed.importlib.util, "find_spec", lambda name: None)
    names = ("sdpa_cudnn", "flashinfer", "fla_nsa", "flash_mla", "attention_gym", "selkey")
    cases = [replace(case, implementations=names) for case in (DECODE, SHARED, replace(BLOCKS, context=256), LATENT)]
    env = machine.environment("cpu") | {"last_cache_bytes": None}
    plan = Plan(env, tuple(cases), False, "bf16", "cpu", 0, 0.3, 2**31, "selkey bench")
    writer = records.Writer(tmp_path / "records.jsonl")
    run(plan, PEERS, writer, lambda *_: None)
    found = {(row["case"]["workload"], row["impl"]["name"]): row["status"] for row in writer.rows}
    assert len(writer.rows) == len(found) == len(cases) * len(names)
    assert {status["state"] for (_, name), status in found.items() if name != "selkey"} == {"skip"}
    assert {status["state"] for (_, name), status in found.items() if name == "selkey"} == {"ok"}
    assert found["cache", "flashinfer"]["reason"] == "flashinfer is not installed: pip install flashinfer-python"
    assert found["blocks", "fla_nsa"]["reason"] == "fla is not installed: pip install flash-linear-attention"
    assert found["mla", "flash_mla"]["reason"].startswith("flash_mla is not installed: pip install git+https")
    assert found["mla", "attention_gym"]["reason"].startswith("attn_gym is not installed")
    assert "one page table for all heads" in found["decode", "flashinfer"]["reason"]
    assert "--workload blocks" in found["decode", "fla_nsa"]["reason"] and "--workload mla" in found["decode", "flash_mla"]["reason"]
    assert found["decode", "sdpa_cudnn"]["reason"] == "PyTorch has no cudnn attention on a CPU: --device cuda"


@pytest.mark.parametrize(
    "name, case, part",
    [
        ("kv_bf16", replace(SHARED, dtype="fp32"), "--dtype bf16"),
        ("kv_int8", LATENT, "stores keys and values"),
        ("kv_mla_fp8", SHARED, "stores latent rows"),
        ("kv_int8", replace(SHARED, n_list_heads=8), "one for each query head"),
        ("flashinfer", replace(SHARED, head_dim=96, v_head_dim=96), "heads of 64, 128 and 256"),
        ("flashinfer", replace(SHARED, dtype="fp32"), "--dtype bf16"),
        ("fla_nsa", replace(BLOCKS, n_heads=24), "this case has 12"),
        ("flash_mla", replace(LATENT, k=50), "multiple of 64"),
        ("flash_mla", replace(LATENT, n_heads=16), "this case has 16"),
        ("flash_mla", replace(LATENT, q_len=4), "it decodes"),
        ("flex_attention", replace(PREFILL, context=2**20, q_len=2**20), "lower --contexts"),
    ],
)
def test_reasons(name, case, part):
    assert part in PEERS[name].unavailable(case, "cpu")


def test_a_gpu_is_asked_for(monkeypatch):
    monkeypatch.setattr(installed.importlib.util, "find_spec", lambda name: object())
    assert flashinfer.unavailable(SHARED, "cpu") == "flashinfer runs on a GPU: --device cuda"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert flashinfer.unavailable(SHARED, "cuda") is None
    assert flash_mla.unavailable(LATENT, "cuda") == "flash_mla wants a GPU of capability 9.0 or later"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert flash_mla.unavailable(LATENT, "cuda") is None


def test_every_implementation_predicts_its_memory():
    cases = [DECODE, PREFILL, SHARED, BLOCKS, LATENT]
    for name, one in PEERS.items():
        for case in cases:
            for device in ("cpu", "cuda"):
                if room.unavailable(case, one, "cpu") is None:
                    assert one.extra_bytes(case, device) >= cost.output_bytes(case), (name, case.workload)


def test_memory_of_other_dtypes():
    one = PEERS["attention_gym"]
    # an output of 2 · 64 · 576 numbers
    assert one.extra_bytes(replace(LATENT, dtype="fp32"), "cuda") - one.extra_bytes(LATENT, "cuda") == 2 * 2 * 64 * 576


def test_names():
    names = chosen.chosen("all")
    assert {"sdpa", "sdpa_math", "flex_attention", "flashinfer", "fla_nsa", "flash_mla", "attention_gym", "selkey"} <= set(names)
    assert not any(name.startswith("kv_") for name in names) and chosen.chosen("selkey,kv_int4") == ("selkey", "kv_int4")


# Arguments, against stubs of the packages.


def stub(monkeypatch, name, **members):
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    for key, value in members.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def test_flashinfer_gets_pages_of_one_token(monkeypatch):
    class Wrapper:
        def __init__(self, workspace, kv_layout, use_tensor_cores):
            assert workspace.dtype == torch.uint8 and workspace.numel() >= 2**20 and kv_layout == "NHD" and use_tensor_cores

        def plan(self, indptr, indices, last_page_len, num_qo_heads, num_kv_heads, head_dim, page_size, **options):
            assert (num_qo_heads, num_kv_heads, head_dim, page_size) == (8, 2, 64, 1)
            assert indptr.dtype == indices.dtype == last_page_len.dtype == torch.int32
            assert indptr.tolist() == [0, 16, 32, 48] and last_page_len.tolist() == [1, 1, 1]
            assert options == {"q_data_type": torch.bfloat16, "kv_data_type": torch.bfloat16, "sm_scale": 64**-0.5}
            self.starts, self.pages, self.scale = indptr, indices.long(), options["sm_scale"]

        def run(self, q, kv):
            k, v = kv
            assert q.shape == (3, 8, 64) and k.shape == v.shape == (3 * 96, 1, 2, 64) and k.is_contiguous()
            outs = []
            for b in range(3):
                rows = self.pages[self.starts[b] : self.starts[b + 1]]
                keys, values = k[rows, 0].transpose(0, 1), v[rows, 0].transpose(0, 1)
                query = q[b].unflatten(0, (2, -1))
                outs.append(torch.nn.functional.scaled_dot_product_attention(query, keys, values, scale=self.scale).flatten(0, 1))
            return torch.stack(outs)

    monkeypatch.setattr(flashinfer, "WORKSPACE_BYTES", 2**20)
    stub(monkeypatch, "flashinfer", BatchDecodeWithPagedKVCacheWrapper=Wrapper)
    assert is_right(SHARED, "flashinfer")


def test_native_sparse_attention_gets_blocks(monkeypatch):
    def parallel_nsa(q, k, v, g_cmp, g_slc, g_swa, block_indices, block_counts, block_size, window_size, scale):
        assert g_cmp is None and g_slc is None and g_swa is None and window_size == 0
        assert block_indices.dtype == torch.int64 and block_indices.shape == (1, 1, 2, 4) and block_counts == 4 and block_size == 16
        assert q.shape == (1, 1, 32, 32) and k.shape == v.shape == (1, 128, 2, 32) and k.is_contiguous()
        return selkey.attention(q, k, v, block_indices, block_size=block_size, scale=scale)

    stub(monkeypatch, "fla")
    stub(monkeypatch, "fla.ops")
    stub(monkeypatch, "fla.ops.nsa")
    stub(monkeypatch, "fla.ops.nsa.parallel", parallel_nsa=parallel_nsa)
    assert fla_nsa.unavailable(replace(BLOCKS, n_heads=32), "cpu") == "fla runs on a GPU: --device cuda"
    assert is_right(BLOCKS, "fla_nsa")


def test_flash_mla_gets_the_records_of_a_cache(monkeypatch):
    pytest.importorskip("triton")

    def with_kvcache(q, k_cache, block_table, cache_seqlens, head_dim_v, schedule, num_splits, softmax_scale, causal, is_fp8, indices):
        assert (block_table, cache_seqlens, num_splits, causal, is_fp8) == (None, None, None, False, True)
        assert k_cache.shape == (6, 64, 1, 656) and k_cache.dtype == torch.float8_e4m3fn and schedule == "schedule"
        assert indices.shape == (2, 1, 64) and indices.dtype == torch.int32 and head_dim_v == 512
        # 512 codes, 4 scales, 64 numbers of 16 bits, as the package documents them
        record = k_cache.view(torch.uint8).flatten(0, 2)[indices.flatten().long()]
        codes, scales, position = record.split((512, 16, 128), -1)
        latent = codes.view(torch.float8_e4m3fn).float().unflatten(-1, (4, 128)) * scales.contiguous().view(torch.float32)[..., None]
        rows = torch.cat((latent.flatten(-2), position.contiguous().view(torch.bfloat16).float()), -1).view(2, 1, 64, 576)
        query = q.float().transpose(1, 2)
        out = torch.nn.functional.scaled_dot_product_attention(query, rows, rows[..., :512], scale=softmax_scale, enable_gqa=True)
        return out.transpose(1, 2).to(q.dtype), None

    stub(monkeypatch, "flash_mla", get_mla_metadata=lambda: ("schedule", None), flash_mla_with_kvcache=with_kvcache)
    assert is_right(LATENT, "flash_mla")


def test_attention_gym_gets_rows_that_are_both(monkeypatch):
    def gather_attn(query, local_kv, sparse_kv, kv_indices, attention_sink=None, *, sliding_window_size, scale):
        assert query.shape == (2, 64, 1, 576) and sparse_kv.shape == (2, 1, 192, 576) and local_kv.shape == (2, 1, 1, 576)
        assert kv_indices.shape == (2, 1, 64) and sliding_window_size == 0 and attention_sink is None
        rows = sparse_kv[:, 0].transpose(0, 1)[:, :, None].transpose(0, 1)  # [B, N, 1, D]
        return selkey.attention(query.transpose(1, 2), rows, rows, kv_indices[:, :, None], scale=scale).transpose(1, 2)

    stub(monkeypatch, "attn_gym")
    stub(monkeypatch, "attn_gym.sparse", gather_attn=gather_attn)
    assert is_right(LATENT, "attention_gym")


# Costs of what is new.


def test_bytes_of_blocks_and_latents():
    # 64 keys in lists of four blocks, for each of 2 KV heads; rows of 2 · 64 bytes; q and out 32 · 32 · 2 bytes each
    counts = cost.byte_counts(BLOCKS, "selected", 2 * 64, 64)
    assert counts.algorithmic == 2 * 64 * 128 + 2 * 2048 + 2 * 4 * 4
    (mla,) = peer_workloads.mla((65536,), (2048,), dtype="bf16")
    # 1152 bytes a token, 656 with codes: the value is not stored again
    assert cost.cache_bytes(mla) == 65536 * 1152 and cost.cache_bytes(mla, "mla_fp8") == 65536 * 656
    assert records.case_block(mla, "mla_fp8")["kv_bits"] == pytest.approx(8 * 656 / 576)
    # the figure of the paper: 2 · 128 · (576 + 512) operations a key
    assert cost.flops(mla, "selected") == 278_528 * 2048


def test_lists_of_blocks():
    given = draw(BLOCKS)
    assert given.indices.shape == (1, 1, 2, 4) and int(given.indices.max()) < 8
    assert inputs.named_keys(torch.tensor([[2, -1]]), 3).tolist() == [[6, 7, 8, -1, -1, -1]]
    assert inputs.unique_rows(inputs.named_keys(given.indices, 16), 2, 128) == 2 * 64
    assert {"blocks", "mla"} < set(workloads.WORKLOADS)
