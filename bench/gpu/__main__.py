"""Parts of `selkey bench gpu` that are no commands of their own: `python -m selkey.bench.gpu PART …`, each a process."""

import argparse
import json
import subprocess
import sys
from pathlib import Path


def main(words=None):
    parser = argparse.ArgumentParser(prog="selkey.bench.gpu")
    parser.add_argument("part", choices=("environment", "check", "tune"))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args(words)
    if options.device == "cpu":
        _interpret()
    return {"environment": _environment, "check": _check, "tune": _tune}[options.part](options)


def _environment(options):
    from selkey.bench import machine

    found = machine.environment(options.device)
    if options.device == "cuda":
        found |= {"nvidia_smi": _nvidia_smi()}
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{found['device']}; torch {found['torch']}, triton {found['triton']}, python {found['python']}")
    return 0


def _check(options):
    from selkey.bench.gpu.check import check

    checked, wrong, left = check(options.device, options.seconds, options.out, _say, is_tiny=options.device == "cpu")
    print(f"{checked - wrong} of {checked} right" + (f", {left} not reached: time is up" if left else ""))
    return 1 if wrong else 0


def _tune(options):
    import torch

    from selkey.bench import machine, records, timing
    from selkey.bench.gpu import tune
    from selkey.kernels.architectures import architecture_of

    environment = machine.environment(options.device)
    architecture = architecture_of(torch.device(options.device))
    if options.device == "cuda":
        clock = timing.Clock("cuda", environment["last_cache_bytes"], "events")
    else:
        clock = timing.Clock("cpu", 2**20)

    def write(entries):
        with records.whole_file(options.out) as draft:
            draft.write_text(json.dumps(tune.tuned_file(entries, environment, architecture.name), indent=1) + "\n", encoding="utf-8")

    write([])
    entries, timed, left = tune.tune(clock, architecture, options.device, options.seconds, write, _say, is_tiny=options.device == "cpu")
    late = f", {left} not reached: time is up" if left else ""
    print(f"{len(entries)} configurations are faster than the tables', {timed} shapes timed{late}")
    return 0 if timed or left else 1


def _interpret():
    """The kernels run in Triton's interpreter: read when triton is imported."""
    import os

    os.environ["TRITON_INTERPRET"] = "1"


def _nvidia_smi():
    fields = ("name", "driver_version", "pstate", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.draw", "power.limit")
    try:
        command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
        values = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()[0].split(", ")
        return dict(zip(fields, values, strict=True))
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return None


def _say(line):
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
