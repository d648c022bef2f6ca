"""What is particular to the CPU backend: its tiles and their joints, PyTorch's kernel inside, memory layouts, memory, cost."""

import json
import os
import random
import subprocess
import sys
import time

import pytest
import torch

import selkey
from selkey import cpu, cpu_heads, rows, tiles
from selkey.testing import Case, assert_close, make_inputs, odd_strides, run


def random_case(numbers):
    HK, shared = numbers.choice([1, 2, 3]), numbers.choice([1, 2, 5])
    D = numbers.choice([8, 20])
    return Case(
        B=numbers.choice([1, 2, 3]), S=numbers.choice([1, 2, 5]), N=numbers.choice([1, 17, 60]), HQ=HK * shared, HK=HK,
        G=numbers.choice([1, HK, HK * shared]), D=D, DV=numbers.choice([D, D, 5]), K=numbers.choice([1, 7, 40]),
        block_size=numbers.choice([1, 1, 3, 16, 100]), dtype=numbers.choice([torch.float32, torch.bfloat16, torch.float16]),
        index_dtype=numbers.choice([torch.int32, torch.int64]), mla=numbers.random() < 0.2, varlen=numbers.random() < 0.3,
        strided=numbers.random() < 0.5, empty_slots=numbers.choice([0.0, 0.3, 0.9]), causal=numbers.choice([None, "int", "tensor"]),
        kv_lengths=numbers.random() < 0.3, index_lengths=numbers.choice([None, "query", "list"]),
        index_bias=numbers.random() < 0.4, key_bias=numbers.random() < 0.4, sinks=numbers.random() < 0.4,
        softcap=numbers.choice([None, None, 2.0]), scale=numbers.choice([None, -0.3]),
    )  # fmt: skip


def tiles_of(monkeypatch, tile_bytes, stretch_entries=1 << 17, partials=16):
    monkeypatch.setattr(cpu, "TILE_BYTES", tile_bytes)
    monkeypatch.setattr(tiles, "STRETCH_ENTRIES", stretch_entries)
    monkeypatch.setattr(cpu, "PARTIALS", partials)


def results_with(wanted, inputs):
    """(out, lse, weights) from the path that gives no more than is wanted: "out", "lse" or "weights"; None for the rest."""
    results = run("cpu", inputs, return_lse=wanted != "out", return_weights=wanted == "weights")
    return (results, None, None) if wanted == "out" else (*results, None)[:3]


@pytest.mark.parametrize("part", range(8))
def test_any_call_in_any_tiles_matches_the_reference(monkeypatch, seed, part):
    numbers = random.Random(seed)
    for _ in range(12):
        tiles_of(monkeypatch, numbers.choice([1, 500, 5000, 1 << 22]), numbers.choice([1, 7, 1 << 17]), numbers.choice([2, 3, 16]))
        monkeypatch.setattr(cpu_heads, "FEWEST_QUERIES", numbers.choice([1, 64]))
        case, wanted = random_case(numbers), numbers.choice(["out", "lse", "weights"])
        inputs = make_inputs(case, seed=numbers.randrange(2**31))
        try:
            assert_close(results_with(wanted, inputs), inputs)
        except AssertionError as error:
            raise AssertionError(f"{case}, {wanted} wanted, tiles of {cpu.TILE_BYTES} bytes") from error


@pytest.mark.parametrize("wanted", ["out", "lse", "weights"])
@pytest.mark.parametrize("block_size, dtype", [(1, torch.float32), (5, torch.float32), (5, torch.bfloat16), (1, torch.float16)])
def test_lists_may_be_cut_after_every_slot(monkeypatch, seed, block_size, dtype, wanted):
    case = Case(B=1, S=2, K=9, D=16, DV=16, block_size=block_size, dtype=dtype, empty_slots=0.5, index_bias=True, key_bias=True, sinks=True)
    inputs = make_inputs(case, seed=seed)
    key_bytes = case.HK * 2 * case.D * 4
    for keys in range(1, case.K * block_size + 1, block_size // 2 + 1):
        tiles_of(monkeypatch, keys * key_bytes, partials=3)
        assert_close(results_with(wanted, inputs), inputs)


@pytest.mark.parametrize("block_size", [2**31, 2**62, 2**70])
def test_a_block_longer_than_all_keys_holds_them_all(seed, block_size):
    inputs = make_inputs(Case(block_size=37, empty_slots=0.0), seed=seed)
    indices = torch.tensor([0, 1, 2**63 - 1, -(2**63), 2**62, 0]).expand(2, 3, 2, 6)
    inputs = inputs.map(lambda x: x.nan_to_num(0.5, 0.5, 0.5) if x.is_floating_point() else x).replace(indices=indices)
    expected = run("reference", inputs.replace(indices=indices.clamp(-1, 2), block_size=37))
    for actual, right in zip(run("cpu", inputs.replace(block_size=block_size)), expected, strict=True):
        torch.testing.assert_close(actual, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("keywords", [{}, {"return_weights": False}, {"softcap": 3.0}], ids=str)
@pytest.mark.parametrize("DV", [20, 12])
def test_without_v_the_values_are_the_first_columns_of_the_keys(seed, DV, keywords):
    inputs = make_inputs(Case(D=20, DV=DV, mla=True), seed=seed).replace(softcap=keywords.get("softcap"))
    results = run("cpu", inputs, return_weights=keywords.get("return_weights", True))
    assert_close((*results, None)[:3], inputs)


@pytest.mark.parametrize("name", ["index_lengths", "kv_lengths", "query_offset"])
@pytest.mark.parametrize("number", [-(2**63), -(2**63) + 1, 2**63 - 2, 2**63 - 1])
def test_lengths_and_offsets_may_be_any_int64(seed, name, number):
    inputs = make_inputs(Case(DV=20, block_size=3), seed=seed)
    inputs = inputs.map(lambda x: x.nan_to_num(0.5, 0.5, 0.5) if x.is_floating_point() else x)
    shape = (2, 3) if name == "index_lengths" else (2,)
    moderate = inputs.replace(**{name: torch.full(shape, max(-99, min(99, number)))})
    assert_close(run("cpu", inputs.replace(**{name: torch.full(shape, number)})), moderate)


@pytest.mark.parametrize("with_weights", [False, True])
def test_float64_is_computed_in_float64(seed, with_weights):
    inputs = make_inputs(Case(DV=20, index_bias=True, key_bias=True, sinks=True), seed=seed)
    inputs = inputs.map(lambda x: x.double() if x.is_floating_point() else x)
    for actual, expected in zip(
        run("cpu", inputs, return_weights=with_weights), run("reference", inputs, return_weights=with_weights), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_pytorchs_kernel_is_used_where_it_fits_and_the_results_are_right_without_it(monkeypatch, seed, dtype):
    inputs = make_inputs(Case(DV=20, dtype=dtype, index_bias=True, key_bias=True, sinks=True), seed=seed)
    calls = []
    kernel = cpu._flash
    if kernel is None:
        pytest.skip("this PyTorch has no such kernel")
    monkeypatch.setattr(cpu, "_flash", lambda *args, **kwargs: calls.append(args[0].dtype) or kernel(*args, **kwargs))
    for wanted in ("out", "lse", "weights"):
        assert_close(results_with(wanted, inputs), inputs)
    assert calls == [dtype, torch.float32]
    monkeypatch.setattr(cpu, "_flash", None)
    for wanted in ("out", "lse"):
        assert_close(results_with(wanted, inputs), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("live", [slice(0, 0), slice(0, 1), slice(1299, 1300), slice(600, 700)])
def test_runs_of_empty_slots_longer_than_the_blocks_of_pytorchs_kernel(dtype, live):
    """The kernel reads keys in blocks of at most 512: a wholly masked block first, last and in between."""
    q, k, v = (torch.randn(1, n, 2, 16).to(dtype) for n in (2, 50, 50))
    indices = torch.full((1, 2, 1, 1300), -1)
    indices[0, 0, 0, live] = torch.arange(live.stop - live.start) % 50
    indices[0, 1, 0, 650] = 7
    inputs = make_inputs(Case()).replace(q=q, k=k, v=v, indices=indices, v_head_dim=None)
    for wanted in ("out", "lse", "weights"):
        assert_close(results_with(wanted, inputs), inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lse_of_16_bit_inputs_is_as_good_as_that_of_fp32(dtype):
    q, k, v = (torch.randn(1, n, 2, 64).to(dtype) * 3 for n in (3, 300, 300))
    indices = torch.randint(300, (1, 3, 1, 200))
    _, lse = selkey.attention(q, k, v, indices, return_lse=True, backend="cpu")
    _, truth = selkey.attention(q.double(), k.double(), v.double(), indices, return_lse=True, backend="reference")
    torch.testing.assert_close(lse.double(), truth, rtol=1e-6, atol=1e-5)


def layouts(tensor):
    """The same values ``[B, N, HK, W]`` in other layouts."""
    fused = torch.stack([tensor, tensor + 1, tensor - 1], dim=2)
    return {
        "contiguous": tensor.clone(),
        "heads first": tensor.transpose(1, 2).contiguous().transpose(1, 2),
        "keys first": tensor.transpose(0, 1).contiguous().transpose(0, 1),
        "one of three": fused[:, :, 0],
        "columns first": tensor.mT.contiguous().mT,
        "padded": torch.cat([tensor, tensor], dim=-1)[..., : tensor.shape[-1]],
        "odd": odd_strides(tensor),
        "one head for all": tensor[:, :, :1].expand(tensor.shape),
        "one entry for all": tensor[:1].expand(tensor.shape),
        "every second key": tensor.repeat_interleave(2, dim=1)[:, ::2],
    }


@pytest.mark.parametrize("layout", layouts(torch.zeros(1, 1, 1, 1)))
@pytest.mark.parametrize("is_shared, heads", [(True, 3), (False, 3), (False, 6)])
@pytest.mark.parametrize("size", [(2, 11, 3, 4), (2, 11, 3, 1), (2, 1, 3, 4), (1, 11, 3, 4)])
def test_rows_are_read_where_they_lie(layout, is_shared, heads, size):
    tensor = layouts(torch.randn(size))[layout]
    B, N, HK, W = size
    table = rows.Rows(tensor, heads, is_shared)
    assert table.table.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()

    positions = torch.randint(N, (4, 1 if is_shared else heads, 5))
    entry = torch.randint(B, (4, 1, 1))
    live = torch.rand(positions.shape) < 0.7
    tile = rows.Tile(slice(0, 5), positions, live, entry if B > 1 else None)
    space = torch.empty(4 * heads * 5 * W)
    table.fetch(tile, space)
    expected = tensor[entry, positions, torch.arange(heads)[:, None] * HK // heads] * live[..., None]
    assert torch.equal(table.by_head(tile, space), expected)


@pytest.mark.parametrize("varlen", [False, True])
@pytest.mark.parametrize("keywords", [{}, {"return_weights": False}, {"softcap": 3.0}], ids=str)
def test_inputs_are_not_modified(seed, varlen, keywords):
    case = Case(DV=20, varlen=varlen, causal="tensor", kv_lengths=True, index_lengths="list", index_bias=True, key_bias=True, sinks=True)
    inputs = make_inputs(case, seed=seed)
    before = inputs.map(torch.clone).arguments
    run("cpu", inputs, **keywords)
    for name, tensor in before.items():
        if isinstance(tensor, torch.Tensor):
            torch.testing.assert_close(inputs[name], tensor, rtol=0, atol=0, equal_nan=True)


def test_results_do_not_share_memory_with_inputs_or_each_other():
    q = torch.randn(1, 1, 2, 8)
    out, lse, weights = selkey.attention(q, q, q, torch.zeros(1, 1, 1, 1, dtype=torch.int32), return_lse=True, return_weights=True)
    addresses = [x.untyped_storage().data_ptr() for x in (q, out, lse, weights)]
    assert len(set(addresses)) == 4


MEMORY_CASES = {
    # copies of all rows that are read would take 256 MiB; for "many keys" a mask [S, N] would
    "many queries": dict(S=256, N=512, HQ=8, HK=4, G=1, K=512, D=64),
    "one long list": dict(S=1, N=512, HQ=4, HK=2, G=1, K=1 << 21, D=8),
    "one long list a head": dict(S=1, N=512, HQ=32, HK=8, G=32, K=1 << 15, D=32),
    "many heads": dict(S=4, N=512, HQ=128, HK=128, G=1, K=1024, D=64),
    "huge blocks": dict(S=1, N=1 << 16, HQ=2, HK=2, G=1, K=16, D=16, block_size=1 << 16),
    "many keys": dict(S=4096, N=1 << 16, HQ=2, HK=1, G=1, K=4, D=8),
}


# In a process of its own, where no other test's heap is measured; large blocks are mapped one by one (`environment` below), so
# that what is freed is gone at once and the highest resident size is what lay there together.
PEAKS = """
import ctypes, json, pathlib, re, sys
import torch, selkey

def kibibytes(name):
    return int(re.search(name + r":\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])

def extra(S, N, HQ, HK, G, K, D, block_size=1, softcap=None):
    q, k, v = torch.randn(1, S, HQ, D), torch.randn(1, N, HK, D), torch.randn(1, N, HK, D)
    indices = torch.randint(0, N // block_size, (1, S, G, K), dtype=torch.int32)
    indices[..., ::7] = -1
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the highest mark restarts from here
    before = kibibytes("VmRSS")
    selkey.attention(q, k, v, indices, block_size=block_size, softcap=softcap, backend="cpu")
    return kibibytes("VmHWM") - before - 4 * S * HQ * (D + 1) // 1024

extra(4, 64, 2, 2, 1, 8, 8)
print(json.dumps({name: extra(**sizes) / 1024 for name, sizes in json.loads(sys.argv[1]).items()}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_beside_the_outputs_is_bounded():
    """MiB; a tile and its copies are 8 to 16, and a first call of a library now and then some more."""
    # in turns PyTorch's kernel and the steps one by one
    cases = {name: sizes | {"softcap": 5.0 if number % 2 else None} for number, (name, sizes) in enumerate(MEMORY_CASES.items())}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 17)}
    command = [sys.executable, "-c", PEAKS, json.dumps(cases)]
    extras = json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300).stdout)
    assert extras.keys() == cases.keys()
    assert max(extras.values()) < 40, extras


def fastest(calls, rounds):
    """Smallest time of each of `calls`, which take turns so that a busy machine slows all alike."""
    times = [[] for _ in calls]
    for _ in range(rounds):
        for call, seconds in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    return [min(seconds) for seconds in times]


def heads_first(B, N, HK, D):
    return torch.full((B, HK, N, D), 0.5, dtype=torch.bfloat16).transpose(1, 2)


def keys_first(B, N, HK, D):
    return torch.full((B, N, HK, D), 0.5, dtype=torch.bfloat16)


@pytest.mark.clean_memory
@pytest.mark.parametrize("make", [keys_first, heads_first])
def test_the_time_of_a_query_does_not_depend_on_the_number_of_keys(make):
    """16 times the keys, the same list length: at most 3 times the time.

    Caches make it 1.2 to 1.5 on a quiet machine; the rest is room for a busy one. One pass over all keys would make it 10.
    """
    q = torch.randn(1, 1, 8, 64, dtype=torch.bfloat16)

    def call_over(N):
        k, v = make(1, N, 2, 64), make(1, N, 2, 64)
        return lambda: selkey.attention(q, k, v, torch.randint(N, (1, 1, 1, 1024), dtype=torch.int32), backend="cpu")

    short, long = fastest([call_over(8192), call_over(131072)], rounds=25)
    assert long < 3 * short


@pytest.mark.clean_memory
def test_the_time_of_a_prefill_grows_with_its_length_and_not_with_its_square():
    """8 times the queries and keys, the same list length: at most 20 times the time, where dense attention takes 64."""

    def call_of(S):
        q, k, v = torch.randn(1, S, 8, 32), torch.randn(1, S, 2, 32), torch.randn(1, S, 2, 32)
        indices = torch.randint(S, (1, S, 1, 32), dtype=torch.int32)
        return lambda: selkey.attention(q, k, v, indices, query_offset=0, backend="cpu")

    short, long = fastest([call_of(512), call_of(4096)], rounds=5)
    assert long < 20 * short


@pytest.mark.parametrize("S, G, goes", [(64, 1, True), (63, 1, False), (64, 2, False)])
def test_heads_go_one_by_one_where_a_list_fills_a_tile_and_queries_are_many(monkeypatch, S, G, goes):
    inputs = make_inputs(Case(B=1, S=S, N=40, HQ=4, HK=2, G=G, D=8, DV=8, K=20))
    called = []
    monkeypatch.setattr(cpu, "head_by_head", lambda *given, **named: called.append(1) or cpu_heads.head_by_head(*given, **named))
    monkeypatch.setattr(cpu, "TILE_BYTES", 4 * 20 * 2 * 16)
    assert_close(run("cpu", inputs), inputs)
    assert bool(called) == goes
    called.clear()
    monkeypatch.setattr(cpu, "TILE_BYTES", 4 * 20 * 2 * 16 + 1)
    run("cpu", inputs)
    assert not called
