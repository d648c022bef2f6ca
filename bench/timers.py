"""The ways of timing one call, one class each: what stands as `time.timer` in a record is the class's NAME.

    perf_counter   the host's clock around the call; only right where calls return when they are done (CPU)
    cuda_events    two events around the call; contains the gaps between its kernels
    cuda_graph     replay of a graph that holds the call several times; no launches, but gaps that the graph keeps
    profiler       sum of the kernel times that Kineto reports; no gaps, no launches

Each has `time_us(call, flush)`: microseconds of one call, with `flush()` before it (None: warm) and not in the time.
"""

import time
from dataclasses import fields, replace
from functools import partial
from math import ceil
from weakref import WeakKeyDictionary

import torch

REPEATS = 10
_TRIES = 3


class PerfCounter:
    NAME = "perf_counter"

    def time_us(self, call, flush):
        if flush is not None:
            flush()
        begin = time.perf_counter_ns()
        call()
        return (time.perf_counter_ns() - begin) / 1e3


class Events:
    """Args:
    cuda: `torch.cuda` or what behaves like it.
    """

    NAME = "cuda_events"

    def __init__(self, cuda=torch.cuda):
        self.cuda = cuda

    def time_us(self, call, flush):
        if flush is not None:
            flush()
        return self._between_us(call)

    def _between_us(self, call):
        start, end = (self.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3


class Graph(Events):
    """A call `REPEATS` times in a graph, a flush before each; the time of a graph of the flushes alone is subtracted.

    A `Rotation` needs no flush: its calls, one a copy of the inputs, are the graph.

    A call is captured once and replayed as long as the object lives: what takes other inputs has to be another object.
    """

    NAME = "cuda_graph"

    def __init__(self, cuda=torch.cuda):
        super().__init__(cuda)
        # weak: a graph, and the inputs that its call holds, go with the call
        self._flushes, self._graphs = {}, WeakKeyDictionary()

    def time_us(self, call, flush):
        """Raises RuntimeError where a call is lost in the noise of its flush: graphs with it are no slower than those without."""
        if isinstance(call, Rotation):
            return self._replayed_us(self._graph(call, None, call.calls)) / len(call.calls)
        if flush is None:
            return self._replayed_us(self._graph(call, None, [call] * REPEATS)) / REPEATS
        if flush not in self._flushes:
            self._flushes[flush] = self._captured([flush] * REPEATS)
        both = self._graph(call, flush, [flush, call] * REPEATS)
        for _ in range(_TRIES):
            found = self._replayed_us(both) - self._replayed_us(self._flushes[flush])
            if found > 0:
                return found / REPEATS
        raise RuntimeError("the call is shorter than the noise of the flush before it: choose the timer events or profiler")

    def _graph(self, call, flush, calls):
        """The graph of a call behind a flush, captured when it is first asked for."""
        known = self._graphs.setdefault(call, {})
        if flush not in known:
            known[flush] = self._captured(calls)
        return known[flush]

    def _captured(self, calls):
        """A graph of the calls in their order, each of them called once before, as capturing demands."""
        stream = self.cuda.Stream()
        stream.wait_stream(self.cuda.current_stream())
        with self.cuda.stream(stream):
            for call in dict.fromkeys(calls):
                call()
        self.cuda.current_stream().wait_stream(stream)
        graph = self.cuda.CUDAGraph()
        with self.cuda.graph(graph):
            for call in calls:
                call()
        return graph

    def _replayed_us(self, graph):
        """The second replay: the first one uploads the graph."""
        graph.replay()
        return self._between_us(graph.replay)


class Profiler:
    """Args:
    cuda: `torch.cuda` or what behaves like it.
    profile: `torch.profiler.profile` likewise.
    """

    NAME = "profiler"

    def __init__(self, cuda=torch.cuda, profile=torch.profiler.profile):
        self.cuda, self.profile = cuda, profile

    def time_us(self, call, flush):
        """Raises RuntimeError where the profiler sees no kernel (CUPTI absent or forbidden)."""
        if flush is not None:
            flush()
        self.cuda.synchronize()
        with self.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profiled:
            call()
            self.cuda.synchronize()
        kernels = [event for event in profiled.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        if not kernels:
            raise RuntimeError("the profiler reports no kernel time on this machine: choose the timer events or graph")
        return float(sum(event.self_device_time_total for event in kernels))


TIMERS = {"events": Events, "graph": Graph, "profiler": Profiler, "perf_counter": PerfCounter}


def chosen(name, device):
    """The timer of a name on a device; "auto" is perf_counter on a CPU and events on a GPU.

    Raises:
        ValueError: an unknown name, or a timer that does not fit the device.
    """
    fitting = ("perf_counter",) if device == "cpu" else ("events", "graph", "profiler")
    if name != "auto" and name not in fitting:
        raise ValueError(f"timer {name!r} cannot time calls on {device!r}: choose auto or {', '.join(fitting)}")
    return TIMERS[fitting[0] if name == "auto" else name]()


def copies_needed(touched_bytes, cache_bytes):
    """How many copies of the inputs have to be read in turn so that none is still in the cache: twice the cache, ⌈2 · cache / bytes⌉.

    Args:
        touched_bytes: what one call reads of its inputs (for selected rows far less than what the tensors hold).
    """
    return ceil(2 * cache_bytes / touched_bytes)


class Rotation:
    """A call over several copies of its inputs, one after the other: cold without a flush.

    The call takes its inputs as an argument; one that closed over them would read the same copy every time.

    Args:
        call: function of the inputs.
        inputs: dataclass whose tensors are cloned.
        touched_bytes: what a call reads of them.
        cache_bytes: of the last cache.
    """

    def __init__(self, call, inputs, touched_bytes, cache_bytes):
        self.needed = copies_needed(touched_bytes, cache_bytes)
        # one more than needed, so that the first copy has left the cache when a replay begins again
        self.copies = [inputs, *(_cloned(inputs) for _ in range(self.needed))]
        self.calls = [partial(call, one) for one in self.copies]

    def proof(self):
        """dict: copies_referenced (distinct memory that the calls read), copies_needed, cold."""
        places = {tuple(tensor.data_ptr() for tensor in _tensors(call.args[0]).values()) for call in self.calls}
        return {"copies_referenced": len(places), "copies_needed": self.needed, "cold": len(places) >= self.needed}


def _tensors(inputs):
    values = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


def _cloned(inputs):
    return replace(inputs, **{name: tensor.clone() for name, tensor in _tensors(inputs).items()})
