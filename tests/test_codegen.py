"""Every kernel configuration, compiled for GPUs that are not here, as a user's call would compile it."""

import json
import os
import subprocess
import sys

import pytest

from selkey.bench.codegen import ARCHITECTURES, CASES
from selkey.bench.codegen_index import INDEX_CASES
from selkey.bench.disassembly import blocks_per_multiprocessor

FIELDS = {
    "kernel", "config", "arch", "registers", "spill_bytes", "shared_bytes", "blocks_per_sm", "gather_load_bytes",
    "tensor_core_instructions",
}  # fmt: skip


def in_a_process(program, *arguments):
    """A program in a process of its own: under the interpreter kernels cannot be compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True)


def selkey_codegen(*options):
    return in_a_process("from selkey.bench.cli import main; main()", "codegen", *options)


def narrowest_load(row):
    """Bytes that every gather of rows loads at a time, at least."""
    case = next(case for case in (*CASES, *INDEX_CASES) if row["config"].startswith(f"{case.name} {case.dtype},"))
    if case.format is None:
        # all widths of CASES are multiples of 16 bytes
        return 16
    if case.format == "mla_fp8":
        # the scale of 128 codes; AMD takes the columns that are not coded one by one
        return 4 if row["arch"].startswith("sm_") else 2
    # records of a key, a value and two scales are multiples of 8 bytes
    return 8


# Architectures whose compilation differs from that of a sister in details: (first, step) of the configurations, others for each.
# `selkey codegen` compiles all of them.
SAMPLED = {"sm_80": (3, 2), "sm_100": (0, 4), "sm_120": (1, 4), "gfx942": (2, 4)}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_configuration_fits_and_gathers_sixteen_bytes_at_a_time(architecture):
    if architecture in SAMPLED:
        first, step = SAMPLED[architecture]
        result = in_a_process(
            "import json; from dataclasses import asdict; from selkey.bench import codegen as c; "
            f"rows = c.compile_all([{architecture!r}], (*c.CASES, *c.INDEX_CASES)[{first}::{step}]); "
            "print(*(json.dumps(asdict(row)) for row in rows), sep='\\n')"
        )
    else:
        result = selkey_codegen("--arch", architecture, "--json")
    assert result.returncode == 0, result.stderr[-2000:]
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    if architecture not in SAMPLED:
        assert {row["kernel"] for row in rows} == {
            "gather_decode", "gather_prefill", "gather_weights", "combine", "gather_backward", "backward_delta", "name_rows", "sum_rows",
            "cache_append", "fold", "index_scores", "index_query_gradients", "index_key_gradients", "topk",
        }  # fmt: skip
        assert len({row["config"].split(",")[0] for row in rows}) == len({f"{case.name} {case.dtype}" for case in (*CASES, *INDEX_CASES)})
    assert len(rows) > 10
    for row in rows:
        assert set(row) == FIELDS
        assert row["arch"] == architecture
        # deterministic gradients of MLA keep 32 bytes on the stack there, the atomic ones none
        is_known = row["kernel"] == "gather_backward" and "mla128" in row["config"] and architecture == "sm_100"
        # fitting the scale of int4 codes in registers keeps 16 to 24 bytes there
        is_known |= row["kernel"] == "cache_append" and "int4" in row["config"]
        assert row["spill_bytes"] <= (32 if is_known else 0), row
        assert row["blocks_per_sm"] >= 1, row
        if not row["kernel"].startswith(("gather", "index")):
            continue
        assert row["gather_load_bytes"] >= narrowest_load(row), row
        # fp32 beyond 256 columns a key runs on the ordinary units: emulating it on tf32 tensor cores spills
        wide_fp32 = "float32" in row["config"] and ("d512" in row["config"] or "d576" in row["config"])
        if not (wide_fp32 and architecture.startswith("sm_")):
            assert row["tensor_core_instructions"] > 0, row


def test_an_unknown_architecture_is_named():
    result = selkey_codegen("--arch", "sm_70")
    assert result.returncode != 0
    assert "sm_70" in result.stderr and "sm_80" in result.stderr


def test_blocks_per_multiprocessor_is_bounded_by_each_resource():
    # 65536 registers: 128 a thread and 128 threads leave room for 4; 2048 threads for 8 blocks of 8 warps
    assert blocks_per_multiprocessor("sm_90", 4, 128, 0) == 4
    assert blocks_per_multiprocessor("sm_90", 8, 16, 0) == 8
    assert blocks_per_multiprocessor("sm_90", 4, 16, 100 * 1024) == 2
    assert blocks_per_multiprocessor("sm_90", 4, 16, 228 * 1024) == 0
    # 512 registers a lane: 256 leave two waves on each of four SIMDs, two blocks of four waves
    assert blocks_per_multiprocessor("gfx942", 4, 256, 16 * 1024) == 2
