"""Timers against a GPU that only pretends, rotation, warming up, and what throttling looks like."""

from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from selkey.bench import throttle, timers, timing


class PretendedCuda:
    """A host and streams on a timeline in microseconds: work is done in the order of its stream, some time after it was launched.

    Attributes:
        host: what the host's clock says.
        log: names in the order of their launches, or of their capture.
        kernels: (name, begin, end) of what ran.
    """

    LAUNCH = 5.0

    def __init__(self):
        self.host, self.capturing, self.log, self.kernels, self.captures = 0.0, None, [], [], 0
        self.main = self.current = SimpleNamespace(end=0.0)
        self.streams = [self.main]

    def work(self, name, microseconds):
        def call():
            self.log.append(name)
            if self.capturing is None:
                self._launch([(name, microseconds)])
            else:
                self.capturing.append((name, microseconds))

        return call

    def _launch(self, work):
        self.host += self.LAUNCH
        for name, microseconds in work:
            begin = max(self.host, self.current.end)
            self.current.end = begin + microseconds
            self.kernels.append((name, begin, self.current.end))

    def Event(self, enable_timing):  # noqa: N802, a name of torch.cuda
        event = SimpleNamespace()

        def elapsed_time(other):
            if self.host < max(event.at, other.at):
                raise RuntimeError("both events must be completed")
            return (other.at - event.at) / 1e3

        event.record = lambda: setattr(event, "at", max(self.host, self.current.end))
        event.synchronize = lambda: setattr(self, "host", max(self.host, event.at))
        event.elapsed_time = elapsed_time
        return event

    def CUDAGraph(self):  # noqa: N802
        graph = SimpleNamespace(work=[])
        graph.replay = lambda: self._launch(graph.work)
        return graph

    @contextmanager
    def graph(self, graph):
        assert all(stream.end <= self.main.end for stream in self.streams), "work of another stream has not been waited for"
        self.capturing, self.captures = graph.work, self.captures + 1
        yield
        self.capturing = None

    @contextmanager
    def stream(self, stream):
        assert stream.end >= self.main.end, "the stream does not wait for what was launched before"
        self.current = stream
        yield
        self.current = self.main

    def Stream(self):  # noqa: N802
        stream = SimpleNamespace(end=0.0)
        stream.wait_stream = lambda other: setattr(stream, "end", max(stream.end, other.end))
        self.streams.append(stream)
        return stream

    def current_stream(self):
        self.main.wait_stream = lambda other: setattr(self.main, "end", max(self.main.end, other.end))
        return self.main

    def synchronize(self):
        self.host = max(self.host, *(stream.end for stream in self.streams))


def test_the_pretended_device_is_late():
    """What a timer must not do gives a wrong time or an error here."""
    cuda = PretendedCuda()
    start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    start.record()
    cuda.work("flush", 500.0)()
    cuda.work("call", 30.0)()
    end.record()
    with pytest.raises(RuntimeError, match="must be completed"):
        start.elapsed_time(end)
    end.synchronize()
    assert start.elapsed_time(end) > 0.5 and cuda.kernels == [("flush", 5.0, 505.0), ("call", 505.0, 535.0)]


def test_events_leave_the_flush_out():
    cuda = PretendedCuda()
    timer = timers.Events(cuda)
    assert timer.time_us(cuda.work("call", 30.0), cuda.work("flush", 500.0)) == pytest.approx(30.0)
    assert cuda.log == ["flush", "call"]
    # nothing in front: the launch is in the time
    assert timer.time_us(cuda.work("call", 30.0), None) == pytest.approx(35.0) and cuda.log[2:] == ["call"]


def test_graph_subtracts_its_flushes():
    cuda = PretendedCuda()
    timer, flush, call = timers.Graph(cuda), cuda.work("flush", 500.0), cuda.work("call", 7.0)
    assert timer.time_us(call, flush) == pytest.approx(7.0)
    # each once before it is captured
    assert cuda.log[0] == "flush" and cuda.log[11:13] == ["flush", "call"] and len(cuda.log) == 1 + 10 + 2 + 20
    assert timer.time_us(call, None) == pytest.approx(7.0)


def test_a_call_is_captured_once_while_it_lives():
    cuda = PretendedCuda()
    timer, flush, call = timers.Graph(cuda), cuda.work("flush", 500.0), cuda.work("call", 7.0)
    assert [timer.time_us(call, flush) for _ in range(3)] == pytest.approx([7.0] * 3) and cuda.captures == 2
    launched = len(cuda.log)
    timer.time_us(call, flush)
    assert len(cuda.log) == launched  # replayed alone
    assert timer.time_us(cuda.work("other", 9.0), flush) == pytest.approx(9.0) and cuda.captures == 3
    assert len(timer._graphs) == 1  # the graph of the other went with it
    assert timer.time_us(call, cuda.work("other flush", 300.0)) == pytest.approx(7.0) and cuda.captures == 5


def test_a_call_lost_in_the_noise_of_its_flush_has_no_time():
    cuda = PretendedCuda()
    timer = timers.Graph(cuda)
    with pytest.raises(RuntimeError, match="shorter than the noise of the flush"):
        timer.time_us(cuda.work("nothing", 0.0), cuda.work("flush", 500.0))
    found = iter([10.0, 12.0, 40.0, 15.0])  # graphs with the call and without, the first pair negative: it does not count
    timer._replayed_us = lambda graph: next(found)
    assert timer.time_us(cuda.work("short", 1.0), cuda.work("flush", 500.0)) == pytest.approx(2.5)


@dataclass(frozen=True)
class Given:
    k: torch.Tensor
    scale: float


def test_rotation_reads_as_many_copies_as_the_cache_needs():
    # 2 · 50 MB of cache and 12 MB a call: nine copies, and one that the first is not read again too early
    assert timers.copies_needed(12e6, 50e6) == 9
    assert timers.copies_needed(200e6, 50e6) == 1
    cuda, read = PretendedCuda(), []
    given = Given(torch.arange(64.0).view(8, 8).t(), 0.5)

    def call(inputs):
        read.append(inputs.k.data_ptr())
        cuda.work("call", 3.0)()

    rotation = timers.Rotation(call, given, touched_bytes=256, cache_bytes=1000)
    assert timers.Graph(cuda).time_us(rotation, cuda.work("flush", 500.0)) == pytest.approx(3.0)
    assert "flush" not in cuda.log
    assert len(set(read)) == 8 + 1 and rotation.proof() == {"copies_referenced": 9, "copies_needed": 8, "cold": True}
    for copy in rotation.copies:
        assert copy.k.stride() == given.k.stride() and torch.equal(copy.k, given.k) and copy.scale == 0.5


def test_rotation_over_one_copy_is_no_proof():
    rotation = timers.Rotation(lambda inputs: None, Given(torch.ones(4), 1.0), touched_bytes=16, cache_bytes=40)
    rotation.calls = [rotation.calls[0]] * len(rotation.calls)
    assert rotation.proof() == {"copies_referenced": 1, "copies_needed": 5, "cold": False}


def test_profiler_sums_kernels_and_says_when_it_sees_none():
    cuda = PretendedCuda()
    gpu, host = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
    events = [
        SimpleNamespace(device_type=gpu, self_device_time_total=4.0),
        SimpleNamespace(device_type=gpu, self_device_time_total=2.5),
        SimpleNamespace(device_type=host, self_device_time_total=100.0),
    ]
    seen = []

    @contextmanager
    def profile(**_):
        begin = cuda.host
        yield SimpleNamespace(events=lambda: events)
        seen.extend(name for name, start, end in cuda.kernels if end > begin and start < cuda.host)
        assert all(end <= cuda.host for _, _, end in cuda.kernels), "the profile ended before its kernels"

    assert timers.Profiler(cuda, profile).time_us(cuda.work("call", 9.0), cuda.work("flush", 500.0)) == 6.5
    assert cuda.log == ["flush", "call"] and seen == ["call"]  # the flush lies before what is profiled
    events[:] = events[2:]
    with pytest.raises(RuntimeError, match="reports no kernel time"):
        timers.Profiler(cuda, profile).time_us(cuda.work("call", 9.0), None)


@pytest.mark.parametrize("name, device, found", [("auto", "cpu", "perf_counter"), ("auto", "cuda", "cuda_events")])
def test_timer_of_a_device(name, device, found):
    assert timers.chosen(name, device).NAME == found


def test_timers_have_the_names_of_the_records():
    assert {one.NAME for one in timers.TIMERS.values()} == {"perf_counter", "cuda_events", "cuda_graph", "profiler"}
    for name, device in (("graph", "cpu"), ("perf_counter", "cuda"), ("sundial", "cuda")):
        with pytest.raises(ValueError, match=f"timer '{name}' cannot time calls on '{device}': choose auto or"):
            timers.chosen(name, device)


def test_clock_passes_its_flush(monkeypatch):
    monkeypatch.setitem(timing._SMALLEST_FLUSH, "cpu", 2**20)
    clock = timing.Clock("cpu", 2**19)
    assert clock.timer == "perf_counter" and clock.flush_bytes == 4 * 2**19
    order = []
    monkeypatch.setattr(clock, "flush", lambda: order.append("flush"))
    assert clock.time_us(lambda: order.append("call")) > 0 and clock.time_us(lambda: order.append("warm"), cold=False) > 0
    assert order == ["flush", "call", "warm"]


# The proof that the cache was cold.


@pytest.fixture(scope="module")
def clock():
    return timing.Clock("cpu", None)


def test_a_flush_makes_reading_slower_by_the_factor(clock):
    proof = clock.cold_proof()
    assert proof["is_cold"] and clock.cache_mode == "cold" and proof["ratio"] > proof["factor"] == timing.COLD_FACTOR["cpu"]
    assert proof is clock.cold_proof() and proof["flush_bytes"] == clock.flush_bytes == 64 * proof["probe_bytes"]


def test_a_flush_that_does_nothing_is_unproven(clock, monkeypatch):
    monkeypatch.setattr(clock, "_proof", None)
    monkeypatch.setattr(clock, "flush", lambda: None)
    assert clock.cache_mode == "unproven" and not clock.cold_proof()["is_cold"]


def test_a_disturbance_of_a_minority_does_not_turn_the_proof(clock, monkeypatch):
    def judged(pairs):
        monkeypatch.setattr(clock, "_proof", None)
        left = [us for pair in pairs for us in pair]
        monkeypatch.setattr(clock, "_timer", SimpleNamespace(time_us=lambda call, before: left.pop(0)))
        return clock.cold_proof()["ratio"], clock.cache_mode

    # four of nine warm reads were disturbed, then four of nine reads without a flush
    assert judged([(10.0, 30.0)] * 5 + [(90.0, 30.0)] * 4) == (3.0, "cold")
    assert judged([(10.0, 10.0)] * 5 + [(10.0, 90.0)] * 4) == (1.0, "unproven")
    # a machine that becomes three times slower halfway is no flush
    assert judged([(10.0, 10.0)] * 4 + [(30.0, 30.0)] * 5) == (1.0, "unproven")


def test_both_reads_of_the_proof_lie_behind_the_flush(clock, monkeypatch):
    order = []
    monkeypatch.setattr(clock, "_proof", None)
    monkeypatch.setattr(clock, "flush", lambda: order.append("flush"))
    read = timing.F.embedding_bag
    monkeypatch.setattr(timing.F, "embedding_bag", lambda *given, **more: order.append("read") or read(*given, **more))
    clock.cold_proof()
    assert order == ["read", *["flush", "read", "read", "read", "flush", "read"] * timing._PROOF_PAIRS]


def clock_that_reads(times):
    """A clock whose calls take the times given, then the last one for ever."""
    left = list(times)

    def time_us(call, cold=True):
        call()
        return left.pop(0) if len(left) > 1 else left[0]

    return SimpleNamespace(time_us=time_us)


def test_warming_up_ends_when_two_medians_agree():
    slowing_down = [10.0] * 5 + [20.0] * 5 + [20.2] * 5 + [99.0]
    found = timing.warm_up(clock_that_reads(slowing_down), lambda: None, 60.0)
    assert found["settled"] and found["n"] == 15 and found["warm_seconds"] < 1


def test_warming_up_ends_with_its_time():
    drifting = [2.0**i for i in range(60)]
    found = timing.warm_up(clock_that_reads(drifting), lambda: None, 0.0)
    assert not found["settled"] and found["n"] == 5


def test_together_samples_are_pairs():
    rounds, calls = [], {"steady": lambda number: 5.0, "noisy": lambda number: float(1 + number % 2 * 9)}

    def draw():
        rounds.append(len(rounds))
        return rounds[-1]

    clock = SimpleNamespace(time_us=lambda call: call())
    alone = timing.interleave(clock, calls, draw, 30.0)
    assert len(alone["steady"]) == 6 and len(alone["noisy"]) == timing.MAX_SAMPLES
    together = timing.interleave(clock, calls, draw, 30.0, together=True)
    assert len(together["steady"]) == len(together["noisy"]) == timing.MAX_SAMPLES
    hurried = timing.interleave(clock, calls, draw, 0.0, together=True)
    assert len(hurried["steady"]) == len(hurried["noisy"]) == timing.MIN_PAIRS
    assert timing.median_interval(hurried["noisy"]) is not None and timing.median_interval(hurried["noisy"][1:]) is None


# Throttling.


def test_a_line_of_nvidia_smi():
    looked = throttle.parse("1410, 1593, 401.25, 71, 0x0000000000000024")
    assert looked == {
        "sm_mhz": 1410.0, "memory_mhz": 1593.0, "power_w": 401.25, "temperature_c": 71.0, "reasons": ["power cap", "temperature (driver)"],
    }  # fmt: skip
    assert throttle.parse("210, 405, [N/A], 30, 0x0000000000000001") == {
        "sm_mhz": 210.0, "memory_mhz": 405.0, "power_w": None, "temperature_c": 30.0, "reasons": [],
    }  # fmt: skip
    assert throttle.parse("210, 405, 60.0, 30, [N/A]")["reasons"] is None


def test_older_drivers_are_asked_by_the_older_name(monkeypatch):
    asked = []

    def nvidia_smi(fields):
        asked.append(fields[-1])
        return None if fields[-1].startswith("clocks_event") else "1980, 2619, 300.0, 50, 0x0000000000000008"

    monkeypatch.setattr(throttle, "_nvidia_smi", nvidia_smi)
    block = throttle.Watch("cuda").block()
    assert block["throttled"] is True and block["reason"] == "hardware slowdown" and block["before"]["sm_mhz"] == 1980
    assert asked[:2] == ["clocks_event_reasons.active", "clocks_throttle_reasons.active"]
    monkeypatch.setattr(throttle, "_nvidia_smi", lambda fields: None)
    assert throttle.Watch("cuda").block() == {
        "before": None, "after": None, "throttled": None, "reason": "nothing on this machine tells its clocks",
    }  # fmt: skip


def looked(mhz=2600.0, stolen=10.0, total=100.0):
    return {"core_mhz": mhz, "stolen_s": stolen, "total_s": total}


def test_stolen_time_and_falling_clocks_are_throttling():
    assert throttle.judge(looked(), looked(stolen=10.1, total=110.0)) == (False, None)
    # 2 of 20 seconds
    assert throttle.judge(looked(), looked(stolen=12.0, total=120.0)) == (True, "the host took 10 % of the cores' time")
    assert throttle.judge(looked(), looked(mhz=2000.0)) == (True, "cores slowed from 2600 to 2000 MHz")
    assert throttle.judge(looked(None, None, None), looked(None, None, None))[0] is None


def test_this_machine_can_be_watched():
    block = throttle.Watch("cpu").block()
    assert set(block) == {"before", "after", "throttled", "reason"} and block["throttled"] in (True, False, None)
