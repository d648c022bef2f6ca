"""Attention over several processes equals attention on one: results, gradients, and errors that no rank waits behind."""

import multiprocessing
import time
from pathlib import Path

import pytest
import torch.multiprocessing

from selkey import agreement, distributed
from selkey.testing import Case, make_inputs

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")


def test_several_processes_equal_one(tmp_path, monkeypatch):
    world_size = 4
    monkeypatch.syspath_prepend(Path(__file__).parent)
    import distributed_worker

    # a fresh process imports torch, once for all ranks
    multiprocessing.set_forkserver_preload(["torch.distributed.tensor", "selkey.testing"])
    context = torch.multiprocessing.start_processes(
        distributed_worker.main, (world_size, str(tmp_path)), nprocs=world_size, join=False, start_method="forkserver"
    )
    try:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and not context.join(timeout=1):
            pass
        hung = [process.pid for process in context.processes if process.is_alive()]
    except Exception as error:
        # A rank that fails takes the others down; theirs are only consequences, but say where they were.
        failures = [path.read_text() for path in sorted(tmp_path.glob("failure-*"))]
        pytest.fail("\n".join(failures) or str(error), pytrace=False)
    finally:
        for process in context.processes:
            process.kill()
    assert not hung, f"{len(hung)} of {world_size} processes hang"
    done = [(tmp_path / f"done-{rank}").read_text().splitlines() for rank in range(world_size)]
    assert len(done[0]) > 40 and all(each == done[0] for each in done)


@pytest.mark.parametrize("operator", [distributed.key_parallel_attention, distributed.head_parallel_attention])
def test_without_processes_the_error_says_what_to_call(operator):
    with pytest.raises(RuntimeError, match="call torch.distributed.init_process_group first"):
        operator(**make_inputs(Case(S=1)).arguments)


@pytest.mark.parametrize(
    "start, expected",
    [(0, [0, 7, -1, -1, -1]), (6, [-1, 1, -1, -1, -1]), (2**31 - 4, [-1, -1, 3, -1, -1]), (2**31, [-1] * 5), (2**40, [-1] * 5)],
)
def test_shards_may_start_beyond_the_largest_int32(start, expected):
    indices = torch.tensor([0, 7, 2**31 - 1, -1, -(2**31)], dtype=torch.int32)
    q, k = torch.zeros(1, 1, 1, 4), torch.zeros(1, 8, 1, 4)
    arguments = {"q": q, "k": k, "indices": indices, "block_size": 1, "kv_lengths": None, "query_offset": start + 5}
    own = distributed._counted_from(start, arguments)
    assert own["indices"].tolist() == expected and own["indices"].dtype == torch.int32
    assert own["query_offset"] == 5


def test_bytes_sent_follow_from_the_shapes():
    # 3 other ranks, 100 queries, 8 heads: 64 columns of 2 bytes and an fp32 lse.
    assert distributed.key_parallel_bytes(100, 8, 64, 2, 4) == 3 * 100 * 8 * (128 + 4)
    # Of 100 · 512 rows in each of 2 heads, 3/4 lie elsewhere; the 4 ranks share in sending them.
    assert distributed.gathered_keys_bytes(100, 512, 2, 128, 64, 2, 4) == 100 * 512 * 2 * 0.75 / 4 * (128 + 64) * 2
    for bytes_of in (
        lambda W: distributed.key_parallel_bytes(7, 8, 64, 2, W),
        lambda W: distributed.gathered_keys_bytes(7, 9, 1, 8, 8, 2, W),
    ):
        assert bytes_of(1) == 0


def test_checksums_see_order_sign_and_place():
    lists = torch.tensor([[[0, 1, 2, 3]], [[7, 6, 4, 5]]], dtype=torch.int32)
    changed = [lists, lists.flip(-1), lists.flip(0), -lists, ~lists, lists + 1, lists.clone()]
    changed[-1][0, 0] += torch.tensor([1, -2, 1, 0], dtype=torch.int32)
    assert len({int(agreement.checksum(each)) for each in changed}) == len(changed)
    assert agreement.checksum(lists) == agreement.checksum(lists.long())
