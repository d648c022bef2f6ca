"""What every test gets: a backend and its device, a seed of its own, memory that is never clean, an honest interpreter."""

import os
import random
import zlib
from typing import NamedTuple

import pytest
import torch

if not torch.cuda.is_available():
    # Read when triton is imported: without a GPU the kernels run in Triton's interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")

try:
    import triton
except ImportError:
    triton = None

BACKENDS = ("reference", "cpu", "triton")


def pytest_configure(config):
    config.addinivalue_line("markers", "clean_memory: leave torch.empty as it is (no NaN in unwritten memory)")
    # numpy's opinion on log2(0) and the like, which are −inf on purpose
    config.addinivalue_line("filterwarnings", "ignore::RuntimeWarning:triton.runtime.interpreter")
    if triton is not None and os.environ.get("TRITON_INTERPRET") == "1":
        _repair_interpreter()
        _hurry_interpreter()


@pytest.fixture(params=BACKENDS)
def backend(request):
    if request.param == "triton" and triton is None:
        pytest.skip("triton is not installed")
    return request.param


@pytest.fixture
def device(backend):
    """The device on which `backend` is tested: a GPU for the kernels where there is one."""
    return "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"


class Way(NamedTuple):
    """How gradients are computed."""

    backend: str
    device: str
    keywords: dict


@pytest.fixture(params=["cpu", "triton atomic", "triton deterministic"])
def way(request):
    """Every way to gradients but the reference's."""
    if request.param == "cpu":
        return Way("cpu", "cpu", {})
    if triton is None:
        pytest.skip("triton is not installed")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Way("triton", device, {"deterministic": request.param == "triton deterministic"})


@pytest.fixture
def gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU: its sizes are out of reach of Triton's interpreter")
    return "cuda"


@pytest.fixture(autouse=True)
def seed(request):
    """A number that depends on nothing but the test's own id; torch and random start from it."""
    number = zlib.crc32(request.node.nodeid.encode())
    torch.manual_seed(number)
    random.seed(number)
    return number


@pytest.fixture(autouse=True)
def poisoned_memory(request, monkeypatch):
    """Fresh memory holds NaN or the largest integer, so that an element which nobody wrote is seen."""
    if request.node.get_closest_marker("clean_memory"):
        return

    def poisoned(allocate):
        def allocate_poisoned(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            if tensor.device.type == "meta":
                return tensor
            with torch.no_grad():
                if tensor.is_floating_point() or tensor.is_complex():
                    return tensor.fill_(float("nan"))
                return tensor.fill_(True if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max)

        return allocate_poisoned

    for owner, names in (
        (torch, ("empty", "empty_like", "empty_strided", "empty_permuted")),
        (torch.Tensor, ("new_empty", "new_empty_strided")),
    ):
        for name in names:
            monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


def _repair_interpreter():
    """Make bf16 right in Triton's interpreter (seen in 3.6 to 3.9), and promises binding.

    It keeps a bf16 number as its 16 bits in a uint16: its `tl.dot` multiplies these bits as if they were integers, its casts to
    bf16 truncate where a GPU rounds to nearest, and its casts between bf16 and any type but fp32 convert the bits as an integer.
    It believes every `tl.multiple_of`, where a GPU faults on a misaligned address.
    """
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def widened(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def narrowed(handle):
        bits = torch.from_numpy(np.ascontiguousarray(handle.data, dtype=np.float32)).to(torch.bfloat16)
        return TensorHandle(bits.view(torch.uint16).numpy().reshape(handle.data.shape), tl.bfloat16)

    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def create_dot(self, a, b, *args):
        return dot(self, widened(a), widened(b), *args)

    def cast_impl(self, src, dst_type):
        if dst_type.scalar != tl.bfloat16:
            return cast(self, widened(src), dst_type)
        return src if src.dtype.scalar == tl.bfloat16 else narrowed(src)

    def set_attr(self, key, value):
        if key == "tt.divisibility" and not self.dtype.is_ptr():
            for step in value:
                step = getattr(step, "value", step)
                assert (self.data % step == 0).all(), f"tl.multiple_of promises multiples of {step}; got {self.data}"
        promise(self, key, value)

    promise = TensorHandle.set_attr
    InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl, TensorHandle.set_attr = create_dot, cast_impl, set_attr


def _hurry_interpreter():
    """Patch the language once a launch and module: Triton's interpreter does it again whenever a kernel calls a function (seen in 3.7).

    That is a third of its time, and changes nothing: what is patched stays so until the launch is over.
    """
    from triton.runtime import interpreter

    patch, launch, patched = interpreter._patch_lang, interpreter.GridExecutor.__call__, set()

    def patch_once(fn):
        if id(fn.__globals__) in patched:
            return None  # only a launch, which is the first, makes use of the result
        patched.add(id(fn.__globals__))
        return patch(fn)

    def launch_afresh(self, *args, **kwargs):
        patched.clear()
        try:
            return launch(self, *args, **kwargs)
        finally:
            patched.clear()

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch_once, launch_afresh
