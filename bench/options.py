"""Options that commands share: how their texts are read, and which device is meant."""

import math

import click

from selkey.bench import units


class Parsed(click.ParamType):
    """An option whose text goes through a parser; its ValueError becomes a usage error."""

    def __init__(self, name, parse):
        self.name, self.parse = name, parse

    def convert(self, value, param, ctx):
        try:
            return self.parse(value)
        except ValueError as problem:
            self.fail(str(problem), param, ctx)


class Finite(click.FloatRange):
    """A range of numbers; `click.FloatRange` lets nan and infinity through."""

    def convert(self, value, param, ctx):
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"expected a finite number; got {value!r}", param, ctx)
        return number


# what torch.Generator.manual_seed takes; the number after it is used, too
SEED = click.IntRange(0, 2**63 - 2)
COUNTS = Parsed("counts", units.parse_counts)
COUNT = Parsed("count", units.parse_count)
BYTES = Parsed("bytes", units.parse_bytes)


def chosen_device(name):
    """The device that --device names; "auto" is a GPU where there is one."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise click.UsageError("--device cuda: torch finds no GPU here; --device cpu measures the CPU backend")
    return name


def memory_limit(asked, device):
    """Bytes that --max-memory (or None) lets a run take; says so where there are fewer than were asked for."""
    from selkey.bench import memory

    bytes_there, lowered = memory.limit(asked, device)
    if lowered:
        click.echo(lowered, err=True)
    return bytes_there
