"""Timers against a GPU that only pretends, rotation, warming up, and what throttling looks like."""

from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from selkey.bench import throttle, timers, timing


class PretendedCuda:
    """A timeline in microseconds: work adds to it at once, or to the graph that is being captured."""

    def __init__(self):
        self.now, self.capturing, self.log = 0.0, None, []

    def work(self, name, microseconds):
        def call():
            if self.capturing is None:
                self.now += microseconds
                self.log.append(name)
            else:
                self.capturing.append((name, microseconds))

        return call

    def Event(self, enable_timing):  # noqa: N802, a name of torch.cuda
        event = SimpleNamespace(synchronize=lambda: None)
        event.record = lambda: setattr(event, "at", self.now)
        event.elapsed_time = lambda other: (other.at - event.at) / 1e3
        return event

    def CUDAGraph(self):  # noqa: N802
        graph = SimpleNamespace(work=[])

        def replay():
            self.now += sum(microseconds for _, microseconds in graph.work)

        graph.replay = replay
        return graph

    @contextmanager
    def graph(self, graph):
        self.capturing = graph.work
        yield
        self.capturing = None

    @contextmanager
    def stream(self, stream):
        yield

    def Stream(self):  # noqa: N802
        return SimpleNamespace(wait_stream=lambda other: None)

    current_stream = Stream

    def synchronize(self):
        pass


def test_events_leave_the_flush_out():
    cuda = PretendedCuda()
    timer = timers.Events(cuda)
    assert timer.time_us(cuda.work("call", 30.0), cuda.work("flush", 500.0)) == pytest.approx(30.0)
    assert cuda.log == ["flush", "call"]
    assert timer.time_us(cuda.work("call", 30.0), None) == pytest.approx(30.0) and cuda.log[2:] == ["call"]


def test_graph_subtracts_its_flushes():
    cuda = PretendedCuda()
    timer, flush, call = timers.Graph(cuda), cuda.work("flush", 500.0), cuda.work("call", 7.0)
    assert timer.time_us(call, flush) == pytest.approx(7.0)
    assert cuda.log == ["flush", "flush", "call"]  # each once before it is captured
    assert timer.time_us(call, None) == pytest.approx(7.0)
    assert timer.time_us(cuda.work("nothing", 0.0), flush) > 0


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
        before = len(cuda.log)
        yield SimpleNamespace(events=lambda: events)
        seen.extend(cuda.log[before:])

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
