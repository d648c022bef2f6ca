"""The bar on the terminal: what is being measured, how far it is, how long it will take."""

from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def bar(console, things="cases"):
    """Shows a bar for the length of the block.

    Args:
        console: of rich.
        things: what is counted.

    Yields:
        function(what is being done, things done, things, share of the work done).
    """
    columns = (
        TextColumn("{task.fields[done]:>3}/{task.fields[count]} " + things), BarColumn(bar_width=24), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.description}"),
    )  # fmt: skip
    with Progress(*columns, console=console, speed_estimate_period=60) as progress:
        task = progress.add_task("", total=1.0, done=0, count=0)

        def watch(description, done, count, share):
            progress.update(task, description=description, done=done, count=count, completed=share)

        yield watch
