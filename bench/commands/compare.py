"""`selkey compare A B`: which is faster, with an interval, and an exit code for scripts."""

import re
from pathlib import Path

import click

from selkey.bench.options import SEED, Finite, Parsed, chosen_device

_WORKLOADS = ("decode", "prefill")


def parse_share(text):
    """Read "5%" or "0.05" → 0.05. Raises ValueError that says what is accepted."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", str(text))
    if not match:
        raise ValueError(f"expected a share such as 5% or 0.05; got {text!r}")
    return float(match[1]) / (100 if match[2] else 1)


@click.command(short_help="Is B slower than A?")
@click.argument("a")
@click.argument("b")
@click.option("--metric", type=click.Choice(["time", "memory"]), default="time", show_default=True, help="memory: from records only.")
@click.option("--threshold", type=Parsed("share", parse_share), default="5%", show_default=True, help="Smaller differences do not matter.")
@click.option("--impl", help="Of records: this implementation, or A's and B's such as sdpa,selkey.  [default: each with itself]")
@click.option("--workload", "workloads", multiple=True, help="Only this one; repeatable.  [default: all of records; decode and prefill]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--timer", type=click.Choice(["auto", "events", "graph", "profiler"]), default="auto", show_default=True, help="On a GPU.")
@click.option("--seconds", type=Finite(min=0, min_open=True), help="Time for a case measured now.  [default: 6]")
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--quick", is_flag=True, help="Three small cases, a second each.")
def compare(a, b, metric, threshold, impl, workloads, device, timer, seconds, seed, quick):
    """Is B slower than A?

    A and B are two implementations (`selkey list implementations`) or two folders with checkouts of selkey, both measured now, call
    by call in turns on the same inputs; or two records.jsonl, compared case by case.

    The exit code is 0 where B is not slower than A by more than the threshold, 1 where it is in some case or on the whole, 2 where
    nothing could be compared.
    """
    from rich.console import Console

    console = Console(highlight=False)
    kinds = [_kind(text) for text in (a, b)]
    if kinds[0] != kinds[1]:
        raise click.UsageError(f"{a!r} is {kinds[0]}, {b!r} is {kinds[1]}: compare two of a kind")
    if kinds[0] == "a file of records":
        pairs, notes = _of_records(a, b, metric, impl, workloads)
    else:
        if metric != "time" or impl:
            raise click.UsageError("--metric memory and --impl are for records; what is measured now is time")
        seconds = seconds or (1.0 if quick else 6.0)
        pairs, notes = _measured(kinds[0], (a, b), workloads, chosen_device(device), timer, seconds, seed, quick, console)
    raise SystemExit(_show(pairs, notes, (a, b), metric, threshold, console))


def _kind(text):
    path = Path(text)
    if path.is_dir():
        return "a folder"
    if path.is_file():
        return "a file of records"
    if path.suffix == ".jsonl" or "/" in text:
        raise click.UsageError(f"{text!r} is neither a file of records nor a folder with a checkout")
    from selkey.bench.peers import PEERS

    if text not in PEERS:
        raise click.UsageError(f"{text!r} is no implementation, file or folder: implementations are {', '.join(PEERS)}")
    return "an implementation"


def _of_records(a, b, metric, impl, workloads):
    from selkey.bench import compare as module
    from selkey.bench import records

    read = {}
    for path in dict.fromkeys((a, b)):
        try:
            read[path], complaints = records.read(path)
        except (ValueError, OSError) as problem:
            raise click.UsageError(str(problem)) from None
        for complaint in complaints:
            click.echo(f"{path}: {complaint}", err=True)
    names = None if impl is None else [name.strip() for name in impl.split(",")]
    if names is not None and not (len(names) in (1, 2) and all(names)):
        raise click.UsageError(f"--impl {impl}: give one implementation, or A's and B's such as sdpa,selkey")
    names = None if names is None else (names[0], names[-1])
    pairs, notes = module.from_records(read[a], read[b], metric=metric, implementations=names, workloads=workloads)
    if not pairs:
        raise click.UsageError(f"nothing to compare: {a} and {b} share no case with a measured {metric}" + (f" of {impl}" if impl else ""))
    return pairs, notes


def _measured(kind, sides, workloads, device, timer, seconds, seed, quick, console):
    from selkey.bench import compare_live, machine, progress, throttle, timing
    from selkey.bench.peers import PEERS

    unknown = set(workloads) - set(_WORKLOADS)
    if unknown:
        raise click.UsageError(f"--workload {sorted(unknown)[0]}: what is measured now is {' or '.join(_WORKLOADS)}")
    chosen = [case for case in compare_live.cases(quick) if not workloads or case.workload in workloads]
    environment = machine.environment(device)
    pairs, notes, cache = [], [], ""
    try:
        clock = timing.Clock(device, environment["last_cache_bytes"], timer)
        cache = "cold cache" if clock.cache_mode == "cold" else "cache not shown to be cold"
        looked = throttle.Watch(device)
        with progress.bar(console) as watch:
            options = {"seconds": seconds, "seed": seed, "watch": watch}
            if kind == "a folder":
                found = compare_live.checkouts(sides, chosen, clock, **options)
            else:
                found = compare_live.implementations([PEERS[name] for name in sides], chosen, clock, **options)
            for pair in found:
                pairs.append(pair)
            watch("done", len(chosen), len(chosen), 1.0)
        seen = looked.block()
        if seen["throttled"]:
            notes.append(f"throttled meanwhile: {seen['reason']}")
    except ValueError as problem:
        raise click.UsageError(str(problem)) from None
    except KeyboardInterrupt:
        notes.append(f"interrupted: {len(chosen) - len(pairs)} cases are missing")
    if environment["busy_cores"] > 0.3:
        notes.append(f"other programs kept {environment['busy_cores']:.1f} cores busy")
    return pairs, [f"{cache}, {clock.timer}, {environment['device']}", *notes]


def _show(pairs, notes, sides, metric, threshold, console):
    """Print the table and what it says; returns the exit code."""
    from rich.table import Table

    from selkey.bench import compare as module
    from selkey.bench import units

    write = units.duration if metric == "time" else units.memory
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, side in (("case", "left"), ("A", "right"), ("B", "right"), ("B / A", "right"), ("95 %", "right"), ("B is", "left")):
        table.add_column(heading, justify=side, overflow="fold")
    verdicts, usable = [], []
    for pair in pairs:
        if pair.reason is not None:
            table.add_row(pair.name, "", "", "", "", "not compared")
            continue
        interval = pair.interval
        verdicts.append(module.verdict(interval, threshold))
        usable += [] if interval is None else [pair]
        table.add_row(pair.name, *map(write, pair.medians), f"{pair.ratio:.3f}", _interval(interval), verdicts[-1])
    for side, name in zip("AB", sides, strict=True):
        console.print(f"{side}  {name}", soft_wrap=True)
    console.print(table)
    notes = [*(f"{pair.name}: {pair.reason}" for pair in pairs if pair.reason is not None), *notes]
    for note in notes:
        console.print(note, style="dim", soft_wrap=True)
    if not usable:
        console.print("nothing could be compared", style="yellow")
        return 2
    mean, interval = module.geometric_mean(usable)
    whole = module.verdict(interval, threshold)
    cases = "case" if len(usable) == 1 else "cases"
    console.print(
        f"geometric mean of B / A over {len(usable)} {cases}: {mean:.3f} ({_interval(interval)}); "
        f"B is {whole if whole != module.SAME else 'not shown to differ'} by more than {100 * threshold:g} %",
        soft_wrap=True,
    )
    return int(module.SLOWER in [*verdicts, whole])


def _interval(interval):
    return "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
