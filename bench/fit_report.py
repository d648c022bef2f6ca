"""What `selkey fit` prints and writes."""

from dataclasses import replace

import click
from rich.console import Console

from selkey.bench import model_cost, modelled, units
from selkey.bench.fit import HEAD_DIMS, halvings
from selkey.bench.fit_search import step_of

_ROWS_SHOWN = 20
_RECORDS, _BATCHED = 2000, 5
_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_USUAL = HEAD_DIMS
_LINE = "{:>10} {:>4}  {:<5} {:<5} {:>7}  {:>6} {:>8}  {}"
_HEADINGS = ("heads × of", "KV", "keys", "cache", "weights", "tok/s", "memory", "next limit")


def show(found, want_all=False):
    """Print the answer.

    Args:
        found: `selkey.bench.fit.Answer`.
    """
    console = Console(highlight=False)
    # a terminal breaks lines between words, a file or another program gets whole ones
    whole = {"markup": False, "soft_wrap": not console.is_terminal}
    question = found.question
    console.print(_asked(question), **whole)
    if found.best:
        rows = found.feasible if want_all else found.best[:_ROWS_SHOWN]
        click.echo(_LINE.format(*_HEADINGS).rstrip())
        for row in rows:
            click.echo(_LINE.format(*_cells(row)).rstrip())
        hidden = len(found.best) - len(rows)
        if hidden > 0:
            console.print(f"… and {hidden} more that need more halvings: --all, --json", **whole)
        console.print(recommendation(found), style="bold", **whole)
    for line in () if found.best else shortage(found):
        console.print(line, **whole)
    for line in assumptions(question):
        console.print(line, style="dim", **whole)


def _asked(question):
    sequences = "" if question.batch == 1 else f" for each of {question.batch} sequences"
    kept = {"hidden": "width of all heads together", "head_dim": "head_dim", "kv_heads": "KV heads", "none": ""}[question.fix]
    kept = f", its {kept} kept" if kept else ", its heads free"
    return (
        f"{question.device.title}: at least {question.tok_s:g} tokens/s{sequences} at {units.count(question.context)} in "
        f"{units.memory(question.memory_bytes)}, like {question.like.title}{kept}"
    )


def _cells(row):
    model = row.model
    return (
        f"{model.n_heads} × {model.head_dim}", model.n_kv_heads, keys_text(row.selection), row.format, f"{row.weight_bits:g}",
        f"{tok_s_each(row):.1f}", units.memory(row.memory_bytes), limit_text(row.limit),
    )  # fmt: skip


def tok_s_each(row):
    """Tokens/s of one sequence."""
    return 1e6 / row.step.total_us


def keys_text(selection):
    if selection.is_dense:
        return "all"
    return units.percent(selection.k) if selection.k < 1 else units.count(int(selection.k))


def limit_text(limit):
    """As "bandwidth +4.0%"; nothing where nobody asked or nothing larger was tried."""
    return "" if limit is None else f"{limit.name} {units.excess(1 + limit.excess)}"


def _others_text(row):
    """A sentence: heads × head_dim over KV heads that cost the same, and formats; nothing where there are none."""
    own = (row.model.n_heads, row.model.n_kv_heads, row.model.head_dim)
    shapes = sorted({(n, kv, width) for n, kv, width, _ in row.others} - {own})
    names = [f"{n} × {width} over {kv}" for n, kv, width in shapes] + sorted({format for *_, format in row.others} - {row.format})
    return f" The same costs: {', '.join(names)}." if names else ""


def recommendation(found):
    """One sentence, or two."""
    question, row = found.question, found.best[0]
    count, like = halvings(question, row), question.like.title
    far = f"fewest halvings ({count:.3g}) of width, keys and bits from {like}" if count else f"nothing of {like} in 16 bits is given up"
    limit = f"{row.limit.name} allows no more" if row.limit else "nothing larger was tried"
    width = row.model.head_dim
    usual = "" if width in _USUAL else f" Few kernels take {width} columns: --head-dims {','.join(map(str, _USUAL))} keeps to usual ones."
    heads = f"{row.model.n_heads} heads × {width} over {row.model.n_kv_heads} KV heads"
    return (
        f"Take {heads}, {_read(row)}, a cache in {row.format} and {row.weight_bits:g}-bit weights: {tok_s_each(row):.3g} tokens/s in "
        f"{units.memory(row.memory_bytes)}; {far}; {limit}.{usual}{_others_text(row)}"
    )


def _read(row):
    selection = row.selection
    if selection.is_dense:
        return "all keys"
    return f"{keys_text(selection)}{' of the' if selection.k < 1 else ''} keys by {selection.selector}"


def shortage(found):
    """Sentences: which condition must give, and by how much."""
    question, misses = found.question, found.misses
    yield f"Nothing of the {found.tried:,} combinations fits."
    if "speed" in misses:
        row = misses["speed"]
        short = f"{units.excess(question.tok_s / tok_s_each(row))} too slow"
        yield f"--tok-s must give: what memory holds reaches {tok_s_each(row):.3g} tokens/s at most, {short} ({describe(row)})."
        if "memory" not in misses:
            yield "More memory does not help: nothing is fast enough, whatever it takes."
    if "memory" in misses:
        row = misses["memory"]
        over = units.excess(row.memory_bytes / question.memory_bytes)
        yield f"--memory must give: what is fast enough takes {units.memory(row.memory_bytes)} at least, {over} ({describe(row)})."
    if "both" in misses:
        row = misses["both"]
        reached = f"{tok_s_each(row):.3g} tokens/s in {units.memory(row.memory_bytes)}"
        yield f"Both --tok-s and --memory must give; nearest: {reached} ({describe(row)})."
    context = _longest(found)
    yield f"--context must give: {units.count(context)} fits with the nearest of these." if context else "No shorter context helps these."


def _strain(question, row):
    return max(row.memory_bytes / question.memory_bytes, question.tok_s / tok_s_each(row))


def _longest(found):
    """The longest context, in steps of a sixteenth of the one asked for, at which the nearest miss fits; 0 where none."""
    question = found.question
    nearest = min(found.misses.values(), key=lambda row: _strain(question, row))
    for sixteenths in range(15, 0, -1):
        context = question.context * sixteenths // 16
        step = step_of(replace(question, context=context), nearest.model, nearest.format, nearest.selection, nearest.weight_bits)
        if sum(step.memory.values()) <= question.memory_bytes and 1e6 / step.total_us >= question.tok_s:
            return context
    return 0


def describe(row):
    """A row in a few words."""
    shape = f"{row.model.n_heads} × {row.model.head_dim} over {row.model.n_kv_heads}"
    return f"{shape}, {_read(row)}, {row.format}, {row.weight_bits:g}-bit weights"


def assumptions(question):
    """What the answer rests on."""
    device = question.device
    rates = f"{device.read_gbps.value:,.0f} GB/s and {device.bf16_tflops.value:g} TFLOP/s ({device.dtype}, {device.read_gbps.kind})"
    yield f"modelled: {question.efficiency:.0%} of {rates}, {question.host_us:g} µs of waiting a step; 1 GB of memory for the driver"
    selectors = sorted({selection.selector for selection in question.selections if not selection.is_dense})
    for selection in question.selections:
        if not selection.is_dense and selection.selector == "indexer":
            yield from model_cost.added_indexer(question.like, selection)
            break
    if selectors:
        yield f"selected keys: what {', '.join(selectors)} reads to choose is counted, and the cache keeps every key"
    yield "quality is not modelled: selecting keys and dropping bits lose some, `selkey bench quality` measures how much"
    if question.context > question.like.max_context:
        yield f"{question.like.title} was trained for {units.count(question.like.max_context)}, fewer than {units.count(question.context)}"


def as_dict(found):
    """For --json."""
    question = found.question
    return {
        "origin": "modelled",
        "asked": {
            "device": question.device.name, "like": question.like.name, "tok_s": question.tok_s, "context": question.context,
            "memory_bytes": question.memory_bytes, "batch": question.batch, "fix": question.fix, "efficiency": question.efficiency,
            "host_us": question.host_us,
        },
        "tried": found.tried, "fits": found.n_feasible, "recommended": recommendation(found) if found.best else None,
        "best": [row_dict(question, row) for row in found.best], "all": [row_dict(question, row) for row in found.feasible],
        "misses": {limit: row_dict(question, row) for limit, row in found.misses.items()},
        "advice": list(shortage(found)) if found.misses else [], "assumptions": list(assumptions(question)),
    }  # fmt: skip


def row_dict(question, row):
    """A row with everything that the table shows, and more."""
    model, limit = row.model, row.limit
    return {
        "n_heads": model.n_heads, "n_kv_heads": model.n_kv_heads, "head_dim": model.head_dim, "query_width": row.query_width,
        "kv_width": row.kv_width, "k": row.selection.keys(question.context), "k_frac": row.share,
        "selector": None if row.selection.is_dense else row.selection.selector, "format": row.format, "kv_bits": row.kv_bits,
        "weight_bits": row.weight_bits, "tok_s": tok_s_each(row), "memory_bytes": row.memory_bytes, "halvings": halvings(question, row),
        "binding": limit and limit.name, "binding_part": limit and limit.part, "next_exceeds": limit and limit.excess,
        "time_us": row.step.time_us, "memory": row.step.memory, "others": [list(other) for other in row.others],
    }  # fmt: skip


def records_of(found, run):
    """Records: the best rows (`model.is_answer`), what else fits, fewest halvings first, or came nearest; batches of the first ones."""
    best = {id(row) for row in found.best}
    shown = {_key(row): row for row in (*found.feasible[:_RECORDS], *found.misses.values(), *found.best)}.values()
    rows = [_record(found.question, row, run, "fit", id(row) in best) for row in shown]
    return rows + [record for row in found.best[:_BATCHED] for record in _batches(found.question, row, run)]


def _batches(question, row, run):
    """The row with more and more sequences, while memory holds them."""
    for factor in _BATCHES:
        asked = replace(question, batch=factor * question.batch)
        more = replace(row, step=step_of(asked, row.model, row.format, row.selection, row.weight_bits))
        if more.memory_bytes <= question.memory_bytes:
            yield _record(asked, more, run, "fit_batch", True)


def _key(row):
    return row.query_width, row.kv_width, row.share, row.kv_bits, row.weight_bits


def _record(question, row, run, workload, is_answer):
    flat = row_dict(question, row)
    names = ("n_heads", "n_kv_heads", "head_dim", "k", "k_frac", "selector", "format", "kv_bits", "weight_bits")
    case = {name: flat[name] for name in names}
    case |= {"preset": question.like.name, "context": question.context, "batch": question.batch, "fix": [question.fix]}
    watts = question.device.watts and question.device.watts.value
    model = {
        "tok_s": row.step.tok_s, "tok_s_each": flat["tok_s"], "tok_s_wanted": question.tok_s, "time_us": row.step.time_us,
        "bound": row.step.bound, "binding": flat["binding"], "is_answer": is_answer, "halvings": flat["halvings"],
        "efficiency": question.efficiency, "watts": watts, "j_per_token": watts and watts / row.step.tok_s,
    }  # fmt: skip
    memory = {"predicted_bytes": row.memory_bytes, "parts": row.step.memory, "limit_bytes": question.memory_bytes}
    return modelled.row(run, question.device, workload, case, model, memory)
