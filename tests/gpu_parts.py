"""Parts of a GPU run that are small Python programs, and the records that they write."""

import json
import sys
import textwrap

from selkey.bench.gpu.plan import Part


def record(state="ok", n=1, device="Imagined GPU"):
    """A line of records.jsonl, as far as it is looked at here."""
    blocks = {"case": {"cfg_id": f"n{n}", "workload": "decode"}, "impl": {"name": "selkey"}, "run": {"seed": 0}, "env": {"device": device}}
    return json.dumps({"schema_version": "1.0", "status": {"state": state, "reason": None}, **blocks})


RECORD = record()


def part(name, program, keeps=(), weight=1.0, **more):
    """A part that runs a Python program in its folder; {work} and {out} stand for folders."""

    def commands(setting):
        return [
            [sys.executable, "-S", "-c", textwrap.dedent(program).replace("{work}", str(setting.work)).replace("{out}", str(setting.out))]
        ]

    return Part(name, weight, commands, keeps, **more)


def writes(name, text=RECORD):
    return f"import pathlib; pathlib.Path({{work!r}}, {name!r}).write_text({text!r})".replace("{work!r}", "'{work}'")


def lines(folder, name="parts.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]
