"""What `selkey generate` prints behind the text, and its one object."""

from rich.table import Table

from selkey.bench import units


def show(console, run, dense=None):
    """Print tables of a `selkey.bench.generation.Run`, beside one of transformers alone where there is one."""
    table = Table(box=None, pad_edge=False)
    for heading in ("", "selkey") if dense is None else ("", "selkey", "transformers"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    runs = [run] if dense is None else [run, dense]
    rows = (
        ("prompt, tokens", lambda one: f"{one.prompt_tokens:,}"),
        ("generated, tokens", lambda one: f"{len(one.tokens):,}"),
        ("prefill, tokens/s", lambda one: _rate(one.prefill_tok_s)),
        ("decode, tokens/s", lambda one: _rate(one.decode_tok_s)),
        ("keys a query reads at the end, at most", lambda one: "what the model selects" if one.reads is None else f"{one.reads:,}"),
        ("bytes held", lambda one: units.memory(one.nbytes)),
    )
    for name, cell in rows:
        table.add_row(name, *map(cell, runs))
    console.print(table)
    pools = Table(box=None, pad_edge=False)
    for heading, side in (("pool", "left"), ("tokens, all layers", "right"), ("bytes", "right")):
        pools.add_column(heading, justify=side)
    for name, (rows, nbytes) in run.pools.items():
        pools.add_row(name, f"{rows:,}", units.memory(nbytes))
    if run.pools:
        console.print()
        console.print(pools)
    # a terminal breaks lines between words, a file or another program gets whole ones
    whole = {"markup": False, "soft_wrap": not console.is_terminal}
    console.print()
    for line in lines(run, dense):
        console.print(line, style="dim", **whole)


def lines(run, dense=None):
    """Sentences below the tables."""
    found = [f"cache: {run.cache}"]
    if run.dense_nbytes:
        times = run.dense_nbytes / run.nbytes
        found.append(f"all keys and values in the model's dtype would be {units.memory(run.dense_nbytes)}: {units.factor(times)} as much")
    if run.choosing_nbytes:
        found.append(f"to choose, the policy reads {units.memory(run.choosing_nbytes)} a token in all layers")
    for words, spans in run.pinned:
        found.append(f"pinned {words!r}: tokens {', '.join(f'{start} to {stop - 1}' for start, stop in spans)}")
    if dense is not None:
        same = parting(run, dense)
        found.append(
            "transformers alone says the same" if same is None else f"transformers alone says something else from new token {same} on"
        )
    return found


def parting(run, dense):
    """Number of the first generated token in which two runs differ, from 0; None: they do not."""
    if run.tokens == dense.tokens:
        return None
    return next((at for at, pair in enumerate(zip(run.tokens, dense.tokens, strict=False)) if pair[0] != pair[1]), len(dense.tokens))


def as_json(run):
    """One run as plain values."""
    return {
        "cache": run.cache,
        "prompt_tokens": run.prompt_tokens,
        "new_tokens": len(run.tokens),
        "text": run.text,
        "prefill_s": run.prefill_s,
        "decode_s": run.decode_s,
        "prefill_tok_s": run.prefill_tok_s,
        "decode_tok_s": run.decode_tok_s,
        "nbytes": run.nbytes,
        "dense_nbytes": run.dense_nbytes,
        "pools": {name: {"rows": rows, "nbytes": nbytes} for name, (rows, nbytes) in run.pools.items()},
        "keys_read_at_most": run.reads,
        "choosing_nbytes": run.choosing_nbytes,
        "pinned": [{"words": words, "spans": [list(span) for span in spans]} for words, spans in run.pinned],
    }


def _rate(tok_s):
    return "–" if tok_s is None else units.three_digits(tok_s)
