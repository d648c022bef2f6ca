"""The time model of single calls: its lines through probes, and what it says of implementations whose time is known."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from selkey.bench import predicted, workloads
from selkey.bench.predicted import Line, Predictor
from selkey.bench.workloads import Case

DECODE = Case("decode", 32, 8, 8, 128, 128, 16384, 2048)
PREFILL = Case("prefill", 8, 2, 2, 64, 64, 8192, 256, q_len=8192, causal=True, selector="stratified")


class FakeClock:
    """Time is what the implementation says that its call took."""

    device = "cpu"

    def time_us(self, call, *, cold=True):
        return call()


def fake_peer(formula, reads="selected", extra=0, name="fake"):
    """An implementation that takes formula(queries, heads, rows read by each list, lists, width) µs."""

    def attend(inputs):
        (B, S, HQ, D), (N, HK) = inputs.q.shape, inputs.k.shape[1:3]
        G, K = inputs.indices.shape[2:]
        return formula(B * S, HQ, N if reads == "all" else K, HK if reads == "all" else G, D)

    return SimpleNamespace(NAME=name, READS=reads, attend=attend, extra_bytes=lambda case, device: extra)


def predictor(ready=lambda peer, drawn: peer, read_gbps=1e9):
    return Predictor(FakeClock(), ready, read_gbps)


@pytest.mark.parametrize("reads", ["selected", "all"])
@pytest.mark.parametrize(
    "case", [DECODE, replace(DECODE, n_heads=64, n_kv_heads=64, n_list_heads=64), replace(DECODE, head_dim=512, v_head_dim=512)]
)
def test_an_implementation_with_a_linear_time_is_predicted_exactly(case, reads):
    """100 µs a call, 0.05 a row and 0.001 a byte of it, at sizes that no probe had."""
    peer = fake_peer(lambda queries, heads, rows, lists, D: 100 + rows * lists * (0.05 + 0.001 * 4 * D), reads)
    read = (case.context if reads == "all" else case.k) * case.n_kv_heads
    assert predictor().predict_us(case, peer) == pytest.approx(100 + read * (0.05 + 0.001 * 4 * case.head_dim))


def test_many_queries_are_predicted_from_shorter_sequences():
    peer = fake_peer(lambda queries, heads, rows, lists, D: 500 + queries * (queries + 1) / 2 * heads * 0.01, "all")
    assert predictor().predict_us(PREFILL, peer) == pytest.approx(500 + 8192 * 8193 / 2 * 8 * 0.01)
    lengths = [probe.context for probe in predicted.probe_cases(PREFILL)]
    assert lengths == [512, 1024]
    assert [probe.q_len for probe in predicted.probe_cases(replace(PREFILL, context=512, q_len=512))] == [128, 256]


def test_nothing_is_predicted_to_be_faster_than_memory_is_read():
    peer = fake_peer(lambda *_: 1.0)
    rows = 8 * 2048
    assert predictor(read_gbps=10).predict_us(DECODE, peer) == pytest.approx(rows * 512 / 10 / 1e3)


def test_few_kv_heads_leave_threads_idle_in_dense_attention(monkeypatch):
    monkeypatch.setattr(predicted.torch, "get_num_threads", lambda: 4)
    formula = lambda queries, heads, rows, lists, D: rows * lists * 0.1
    one = replace(DECODE, n_heads=4, n_kv_heads=1, n_list_heads=1)
    assert predictor().predict_us(one, fake_peer(formula, "all")) == pytest.approx(4 * 16384 * 0.1)
    assert predictor().predict_us(one, fake_peer(formula)) == pytest.approx(2048 * 0.1)


def test_memory_beyond_what_the_allocator_keeps_costs_its_mapping(monkeypatch):
    one = predictor()
    monkeypatch.setattr(one, "_fresh_us_per_byte", 1e-3)
    formula = lambda *_: 10.0
    assert one.predict_us(DECODE, fake_peer(formula, extra=2**24)) == pytest.approx(10)
    assert one.predict_us(DECODE, fake_peer(formula, extra=2**26)) == pytest.approx(10 + 2**26 * 1e-3)


def test_probes_are_asked_once_a_class_and_a_format_is_filled():
    filled = []

    def ready(peer, drawn):
        filled.append(drawn.k.shape[1])
        return peer

    one, peer = predictor(ready), fake_peer(lambda *_: 10.0)
    for context in (4096, 65536):
        one.predict_us(replace(DECODE, context=context), peer)
    assert filled == [1152, 6144, 6144]
    one.predict_us(replace(DECODE, n_heads=8), peer)
    assert len(filled) == 6


def test_what_cannot_be_modelled_is_none():
    def broken(inputs):
        raise RuntimeError("no such kernel")

    assert predictor().predict_us(DECODE, fake_peer(broken)) is None
    assert predictor().predict_us(replace(PREFILL, backward=True), fake_peer(lambda *_: 1.0)) is None


def test_lines_never_fall():
    """Noise that makes a longer probe faster gives a constant, not a negative price."""
    assert predicted.decode_line([100, 90, 80], [(1, 10), (5, 50), (5, 100)]) == Line(100, 0, 0)
    assert predicted.prefill_line([100, 90], [(1, 0), (5, 0)]) == Line(100, 0)
    found = predicted.decode_line([14, 42, 52], [(1, 10), (5, 50), (5, 100)])
    assert (found.call, found.row, found.byte) == pytest.approx((7, 5, 0.2))


def test_every_case_of_the_default_sweeps_has_a_class():
    cases = workloads.k_sweep(4096, dtype="bf16") + workloads.decode_sweep(
        (8, 24), (4096,), (256,), fix=("hidden", "head_dim"), hidden=4096, head_dim=128, dtype="bf16"
    )
    assert {predicted.shape_class(case) for case in cases} == {(4, 1, "bf16"), (1, 1, "bf16")}
    for case in cases:
        for probe in predicted.probe_cases(case):
            assert predicted.shape_class(probe) == predicted.shape_class(case)
