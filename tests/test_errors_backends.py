"""Mistakes with backends and devices, and those of `merge_states`."""

import os
import re
import subprocess
import sys

import pytest
import torch

import selkey

META = torch.device("meta")


def full_call(dtype=torch.float32):
    """One call with every tensor that the operator takes."""
    bias_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "q": torch.zeros(1, 1, 2, 16, dtype=dtype),
        "k": torch.zeros(1, 3, 1, 16, dtype=dtype),
        "v": torch.zeros(1, 3, 1, 16, dtype=dtype),
        "indices": torch.zeros(1, 1, 1, 2, dtype=torch.int32),
        "index_lengths": torch.ones(1, 1, dtype=torch.int32),
        "kv_lengths": torch.ones(1, dtype=torch.int32),
        "query_offset": torch.ones(1, dtype=torch.int32),
        "index_bias": torch.zeros(1, 1, 1, 2, dtype=bias_dtype),
        "key_bias": torch.zeros(1, 3, 1, dtype=bias_dtype),
        "sinks": torch.zeros(2, dtype=bias_dtype),
    }


def raises(error, text):
    return pytest.raises(error, match="^" + re.escape(text) + "$")


@pytest.mark.parametrize("name", [name for name in full_call() if name != "q"])
def test_a_tensor_on_another_device_than_q_is_named(backend, name):
    call = full_call()
    call[name] = call[name].to(META)
    with raises(ValueError, f"{name} must be on the device of q, cpu; got meta"):
        selkey.attention(**call, backend=backend)


@pytest.mark.parametrize("name", ["cu_seqlens_q", "cu_seqlens_k"])
def test_cu_seqlens_on_another_device_than_q_are_named(backend, name):
    call = {name: tensor[0] for name, tensor in full_call().items() if name in ("q", "k", "v", "indices")}
    call |= {"cu_seqlens_q": torch.tensor([0, 1]), "cu_seqlens_k": torch.tensor([0, 3])}
    call[name] = call[name].to(META)
    with raises(ValueError, f"{name} must be on the device of q, cpu; got meta"):
        selkey.attention_varlen(**call, backend=backend)


@pytest.mark.parametrize("name", ["tritn", "", None, "CPU"])
def test_an_unknown_backend_is_named(name):
    with raises(ValueError, f"backend must be one of auto, triton, cpu, reference; got {name!r}"):
        selkey.attention(**full_call(), backend=name)


def test_the_cpu_backend_refuses_tensors_on_another_device():
    call = {name: tensor.to(META) for name, tensor in full_call().items()}
    with raises(ValueError, "backend 'cpu' needs tensors on the CPU; q is on meta. Use backend='auto'"):
        selkey.attention(**call, backend="cpu")


def test_biases_are_float64_where_q_is(backend, device):
    call = {name: tensor.to(device) for name, tensor in full_call(torch.float64).items()}
    if backend == "triton":
        text = "backend 'triton' takes q in float32, float16 or bfloat16; got torch.float64. Use backend='reference'"
        with raises(TypeError, text):
            selkey.attention(**call, backend=backend)
        return
    out, lse = selkey.attention(**call, return_lse=True, backend=backend)
    assert out.dtype == lse.dtype == torch.float64
    with raises(TypeError, "sinks must have a dtype in (float64); got torch.float32"):
        selkey.attention(**call | {"sinks": torch.zeros(2)}, backend=backend)


CALL_TRITON_ON_THE_CPU = """
import sys
import torch, selkey
if "without triton" in sys.argv:
    sys.modules["triton"] = None
try:
    selkey.attention(torch.zeros(1, 1, 2, 16), torch.zeros(1, 3, 1, 16), None, torch.zeros(1, 1, 1, 2, dtype=torch.int32), backend="triton")
except ValueError as error:
    print(error)
"""


def output_of(program, *arguments):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True, check=True, timeout=120
    ).stdout.strip()  # fmt: skip


def test_the_kernels_refuse_tensors_on_the_cpu_outside_the_interpreter():
    pytest.importorskip("triton")
    assert output_of(CALL_TRITON_ON_THE_CPU) == (
        "backend 'triton' needs tensors on a GPU; q is on cpu. Use backend='cpu', or set TRITON_INTERPRET=1 before the first "
        "import to run the kernels in Triton's interpreter"
    )


def test_a_machine_without_triton_is_told_so():
    output = output_of(CALL_TRITON_ON_THE_CPU, "without triton")
    assert output.startswith("backend 'triton' needs the package triton: ")
    assert output.endswith(". Use backend='cpu' on a machine without it")


OUT, LSE = torch.zeros(2, 3, 4, 8), torch.zeros(2, 3, 4)
LIKE_THE_FIRST = "outs[1] must have shape [2, 3, 4, 8] and dtype torch.float32 as outs[0]; got "
MISTAKES = [
    ((OUT, [LSE]), {}, TypeError, "outs must be a list of tensors; got Tensor"),
    (([OUT], LSE), {}, TypeError, "lses must be a list of tensors; got Tensor"),
    (([], []), {}, ValueError, "outs and lses must be of one length, at least 1; got 0 and 0"),
    (([OUT, OUT], [LSE]), {}, ValueError, "outs and lses must be of one length, at least 1; got 2 and 1"),
    (([OUT, 1.0], [LSE, LSE]), {}, TypeError, "outs[1] must be a tensor; got float"),
    (([OUT], [LSE.half()]), {}, TypeError, "lses[0] must have a dtype in (float32, float64); got torch.float16"),
    (([OUT.int()], [LSE]), {}, TypeError, "outs[0] must have a dtype in (float32, float16, bfloat16, float64); got torch.int32"),
    (([LSE[0, 0]], [LSE]), {}, ValueError, "outs[0] must have shape [..., HQ, DV]; got [4]"),
    (([OUT, OUT[:1]], [LSE, LSE[:1]]), {}, ValueError, LIKE_THE_FIRST + "[1, 3, 4, 8] and torch.float32"),
    (([OUT, OUT.half()], [LSE, LSE]), {}, ValueError, LIKE_THE_FIRST + "[2, 3, 4, 8] and torch.float16"),
    (([OUT], [LSE[:1]]), {}, ValueError, "lses[0] must have shape [2, 3, 4], that of outs[0] without DV; got [1, 3, 4]"),
    (([OUT], [LSE]), {"sinks": torch.zeros(3)}, ValueError, "sinks must have shape [HQ] = [4]; got [3]"),
    (([OUT], [LSE]), {"sinks": 0.0}, TypeError, "sinks must be a tensor; got float"),
    (([OUT], [LSE]), {"sinks": torch.zeros(4).to(META)}, ValueError, "sinks must be on the device of q, cpu; got meta"),
]  # fmt: skip


@pytest.mark.parametrize("arguments, keywords, error, text", MISTAKES, ids=[text for *_, text in MISTAKES])
def test_a_mistake_in_merge_states_is_named(arguments, keywords, error, text):
    with raises(error, text):
        selkey.merge_states(*arguments, **keywords)
