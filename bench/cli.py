"""The `selkey` command. Torch is imported when a command needs it, so that `selkey --help` answers at once."""

import sys

from selkey.bench import installation

try:
    import click
except ModuleNotFoundError:
    sys.exit(f"Error: {installation.sentence('click')}")

from selkey.bench.commands.bench import bench
from selkey.bench.commands.ceilings import ceilings
from selkey.bench.commands.claims import claims
from selkey.bench.commands.codegen import codegen
from selkey.bench.commands.compare import compare
from selkey.bench.commands.fit import fit
from selkey.bench.commands.generate import generate
from selkey.bench.commands.gpu import gpu
from selkey.bench.commands.heads import heads
from selkey.bench.commands.learn import learn
from selkey.bench.commands.listing import listing
from selkey.bench.commands.model import model
from selkey.bench.commands.plot import plot
from selkey.bench.commands.report import report
from selkey.bench.commands.steer import steer
from selkey.bench.commands.storyteller import storyteller
from selkey.bench.commands.sweep import sweep
from selkey.bench.commands.train_cost import train_cost
from selkey.bench.commands.validate import validate
from selkey.bench.dsa.command import dsa
from selkey.bench.marks.command import marks
from selkey.bench.quality.command import quality
from selkey.bench.selectors.command import selectors
from selkey.bench.summaries.command import summaries
from selkey.bench.training.command import train


class _Group(click.Group):
    """Says which packages are missing where one cannot be imported."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as problem:
            missing = installation.sentence((problem.name or "").partition(".")[0])
            if missing is None:
                raise
            raise click.ClickException(missing) from None


@click.group(cls=_Group)
@click.version_option(installation.version(), prog_name="selkey")
def main():
    """Attention over selected keys: what fits, how fast it is, and whether a claim about it is true."""


for command in (
    bench, sweep, ceilings, compare, plot, report, model, fit, train_cost, claims, validate, listing, steer, heads, generate, learn, train,
    storyteller, codegen,
):  # fmt: skip
    main.add_command(command)
for command in (quality, summaries, selectors, dsa, marks, gpu):
    bench.add_command(command)

if __name__ == "__main__":
    main()
