"""What `model`, `fit` and `train-cost` share: which device is meant, how much of its rates is reached, and JSON that every reader takes."""

import json
from pathlib import Path

import click

from selkey.bench.options import Finite

SEQUENCES = click.IntRange(1, 2**31)
HOST_US = click.option(
    "--host-us", type=Finite(min=0, max=1e9), default=0.0, show_default=True, help="µs of a step that the device waits for the host."
)
EFFICIENCY = click.option(
    "--efficiency", type=Finite(min=0.01, max=1),
    help="Share of the device's rates that is reached; 1 is the roof.  [default: 0.83 of promised, 0.91 of measured ones]",
)  # fmt: skip


def device_options(default=None):
    """--device and --ceilings, as `device` and `ceilings`, for `chosen`."""
    shown = f"  [default: {default}]" if default else ""

    def decorate(command):
        command = click.option(
            "--ceilings", type=click.Path(path_type=Path), help="JSON of `selkey ceilings --out`: measured rates in place of --device."
        )(command)
        return click.option("--device", help=f"It need not be here; `selkey list devices` shows all.{shown}")(command)

    return decorate


def chosen(device, ceilings, default=None):
    """The Device that is meant.

    Raises:
        ValueError: both or neither are named, or there is no such device or file.
    """
    from selkey.bench import devices

    if device and ceilings or not (device or ceilings or default):
        raise ValueError("name one of --device and --ceilings; `selkey list devices` shows the devices")
    return devices.from_ceilings(ceilings) if ceilings else devices.device(device or default)


def echo_json(found):
    """Print one object; infinity and nan, which JSON does not have, would be a fault of the command."""
    click.echo(json.dumps(found, allow_nan=False))
