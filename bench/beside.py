"""Workloads beside the cases: what runs in several processes, and tokens that stream through a bounded cache."""

from dataclasses import replace

from selkey.bench import parallel, stream, words


def parallel_rows(case, plan, row, watch, done):
    """Rows of the case whose keys are spread over several processes.

    Args:
        plan: `selkey.bench.run.Plan`.
        row: function(case, impl block, state, reason, **blocks) → record.
        watch: of `selkey.bench.run.run`.
        done: how many cases were measured before.
    """
    for world_size in parallel.WORLD_SIZES:
        watch(f"keys spread over {world_size} processes", done, done, 1.0)
        here = replace(case, note=f"{world_size} processes")
        impl = {"name": parallel.NAME, "version": plan.environment["selkey"], "backend": "cpu, gloo", "reads": "selected"}
        try:
            blocks = parallel.row_blocks(here, world_size, parallel.measure(here, world_size, plan.seed))
        except Exception as problem:  # of any process
            yield row(here, impl, "error", words.what_failed(problem))
            continue
        state, reason = ("ok", None) if blocks["correct"]["ok"] else ("incorrect", f"error {blocks['correct']['error_rel_l2']:.2g}")
        yield row(here, impl, state, reason, **blocks)


def stream_rows(plan, clock, row, watch):
    """Rows of the tokens that go through a `selkey.BoundedCache`, each as soon as its stretch is done."""
    impl = {"name": stream.NAME, "version": plan.environment["selkey"], "backend": stream.backend(plan.device), "reads": "selected"}
    for state, reason, blocks in stream.measure(plan, clock, watch):
        yield row(plan.stream, impl, state, reason, **blocks)
