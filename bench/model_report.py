"""What `selkey model` answers: a step at each context, as text and as JSON."""

from dataclasses import asdict, dataclass

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from selkey.bench import model_cost, predict, units
from selkey.bench.architecture import Model, parameters
from selkey.bench.devices import Device
from selkey.bench.model_cost import Selection

_PARTS = {"weights": "layers", "attention": "attention", "selector": "selector", "lm_head": "LM head", "host": "host"}
_MEMORY = {"weights": "weights", "kv": "cache", "selector": "selector", "activations": "activations", "overhead": "driver, libraries"}
# by the column that decides
_LIMITS = {"memory": "reads", "matrix": "flops", "host": "host"}


@dataclass(frozen=True)
class Answer:
    """What was asked, and for each context the expected step, the same at efficiency 1, the prefill of it, and a step with all keys.

    Attributes:
        break_even: the context from which on the selection is faster than all keys, or None.
    """

    model: Model
    device: Device
    selection: Selection
    asked: dict
    contexts: list
    steps: list
    roofs: list
    prefills: list
    denses: list
    break_even: int | None


def answer(model, device, contexts, *, batch, weight_bits, format, selection, efficiency, prefill_efficiency, host_us):
    """Predict every context.

    Raises:
        ValueError: a format that does not hold the rows of the model, or numbers out of range.
    """
    shape = {"batch": batch, "weight_bits": weight_bits, "format": format, "host_us": host_us}
    steps, roofs, denses = (
        [predict.decode_step(model, device, context=context, selection=one, efficiency=reached, **shape) for context in contexts]
        for one, reached in ((selection, efficiency), (selection, 1.0), (model_cost.DENSE, efficiency))
    )
    prefills = [predict.prefill_time(model, device, context, selection, prefill_efficiency, weight_bits, batch) for context in contexts]
    from_on = None if selection.is_dense else predict.break_even(model, device, selection, efficiency=efficiency, **shape)
    asked = shape | {"efficiency": efficiency, "prefill_efficiency": prefill_efficiency}
    return Answer(model, device, selection, asked, list(contexts), steps, roofs, prefills, denses, from_on)


def as_json(answer):
    """The answer as one object; bytes, µs and tokens a second."""
    count = parameters(answer.model)
    return {
        "origin": "modelled",
        "model": {"name": answer.model.name, "parameters": count.total, "active_parameters": count.active, "source": answer.model.source},
        "device": {"name": answer.device.name} | {key: asdict(figure) for key, figure in answer.device.figures().items()},
        "asked": answer.asked | {"k": answer.selection.k, "selector": None if answer.selection.is_dense else answer.selection.selector},
        "assumptions": assumptions(answer), "findings": findings(answer), "break_even_context": answer.break_even,
        "steps": [
            {
                "context": context, "keys_read": model_cost.keys_read(answer.model, context, answer.selection),
                "tok_s": step.tok_s, "roof_tok_s": roof.tok_s, "time_us": step.time_us, "total_us": step.total_us, "bound": step.bound,
                "bytes": step.bytes, "flops": step.flops, "memory": step.memory, "capacity_bytes": step.capacity_bytes, "fits": step.fits,
                "free_bytes": step.free_bytes, "prefill_us": prefill.total_us,
            }
            for context, step, roof, prefill in zip(answer.contexts, answer.steps, answer.roofs, answer.prefills, strict=True)
        ],
    }  # fmt: skip


def show(answer):
    """Print the answer: of one context part by part, of several a line each."""
    console = Console(highlight=False)
    model, count = answer.model, parameters(answer.model)
    size = f"{count.total / 1e9:.3g} B parameters" + (f", {count.active / 1e9:.3g} B active" if count.active < count.total else "")
    sequences = "one sequence" if answer.asked["batch"] == 1 else f"{answer.asked['batch']} sequences"
    console.print(f"[bold]{model.title}[/bold] ({size}) on {escape(answer.device.title)}: modelled, not measured", soft_wrap=True)
    reads = f"{answer.asked['weight_bits']:g}-bit weights, {answer.asked['format']} cache, {answer.selection}"
    console.print(f"{sequences}, {reads}\n", soft_wrap=True)
    if len(answer.contexts) == 1:
        _one(answer, console)
    else:
        console.print(_several(answer))
    for line in findings(answer):
        console.print(line, markup=False, soft_wrap=True)
    for line in assumptions(answer):
        console.print(f"assumed: {line}", style="dim", markup=False, soft_wrap=True)


def _one(answer, console):
    step, roof, context = answer.steps[0], answer.roofs[0], answer.contexts[0]
    table = _table("part", "reads", "flops", "roof", "expected", "share", "limit")
    for part, title in _PARTS.items():
        if step.time_us[part]:
            in_part = predict.part_bound(step, answer.device, part)
            sizes = ("", "") if part == "host" else (units.memory(step.bytes[part]), _operations(step.flops[part]))
            table.add_row(
                title, *sizes, units.duration(roof.time_us[part]),
                units.duration(step.time_us[part]), units.percent(step.time_us[part] / step.total_us), _LIMITS[in_part],
            )  # fmt: skip
    table.add_section()
    table.add_row(
        "a step", units.memory(sum(step.bytes.values())), _operations(sum(step.flops.values())), units.duration(roof.total_us),
        units.duration(step.total_us), "", _LIMITS[step.bound],
    )  # fmt: skip
    console.print(table)
    holds = ", ".join(f"{title} {units.memory(step.memory[part])}" for part, title in _MEMORY.items() if step.memory[part])
    console.print(f"at {units.count(context)} tokens: roof {_rate(roof)}, expected [bold]{_rate(step)} tokens/s[/bold]", soft_wrap=True)
    prompts = f"{answer.asked['batch']} prompts of {units.count(context)}" if answer.asked["batch"] > 1 else units.count(context)
    took = units.duration(answer.prefills[0].total_us)
    console.print(f"prefill of {prompts} tokens: {took} at {answer.asked['prefill_efficiency']:g} of the matrix rate", soft_wrap=True)
    console.print(f"memory: {holds}", soft_wrap=True)
    console.print(f"        {_room(step)}\n", soft_wrap=True, style="" if step.fits else "red")


def _several(answer):
    units_of = ("", "tok/s", "tok/s", "ms", "ms", "ms", "GB", "GB", "")
    names = ("context", "roof", "expected", "weights", "attention", "selector", "memory", "room", "limit")
    table = _table(*(f"{name}\n{unit}" for name, unit in zip(names, units_of, strict=True)))
    for context, step, roof in zip(answer.contexts, answer.steps, answer.roofs, strict=True):
        times = (step.time_us["weights"] + step.time_us["lm_head"], step.time_us["attention"], step.time_us["selector"])
        sizes = (sum(step.memory.values()), step.free_bytes)
        table.add_row(
            units.count(context), _rate(roof), _rate(step), *(units.three_digits(time / 1e3) for time in times),
            *(f"{size / 1e9:.1f}" for size in sizes), _LIMITS[step.bound], style="" if step.fits else "red",
        )  # fmt: skip
    table.caption = f"room: of {units.memory(answer.device.memory_bytes.value)}; below 0: so much is missing, it does not fit"
    table.caption_justify = "left"
    return table


def findings(answer):
    """Sentences: what is odd about what was asked, and from which context on the selection pays."""
    lines, selection = [], answer.selection
    short = [step.total_us for step in answer.steps if step.total_us < predict.LAUNCHES_US]
    if short and not answer.asked["host_us"]:
        lines.append(f"a step of {units.duration(min(short))} is shorter than its launches alone take: give --host-us")
    if selection.is_dense:
        return lines
    for context, step, dense in zip(answer.contexts, answer.steps, answer.denses, strict=True):
        chosen, all_keys = (one.bytes["attention"] + one.bytes["selector"] for one in (step, dense))
        if selection.reads_all(context):
            lines.append(f"warning: at {units.count(context)} tokens {selection} are all of them: nothing is saved")
        elif chosen >= all_keys:
            sizes = f"{units.memory(chosen)} are read to choose and attend, {units.memory(all_keys)} with all keys"
            lines.append(f"warning: at {units.count(context)} tokens nothing is saved: {sizes}")
    where = f"from {units.about(answer.break_even)} tokens on" if answer.break_even else "at no context up to 128M"
    return [*lines, f"break-even: {selection}: a step is faster than with all keys {where}"]


def assumptions(answer):
    """What the figures rest on, a line each."""
    device, model = answer.device, answer.model
    figures = {
        "read_gbps": "bandwidth {:,.5g} GB/s",
        "bf16_tflops": device.dtype + " matrix rate {:,.5g} TFLOP/s",
        "memory_bytes": "memory {:.4g} GB",
    }
    lines = []
    for name, text in figures.items():
        figure = getattr(device, name)
        value = figure.value / 1e9 if name == "memory_bytes" else figure.value
        lines.append(f"{text.format(value)} ({figure.kind}: {figure.source})")
    reached, in_prefill, waiting = (answer.asked[name] for name in ("efficiency", "prefill_efficiency", "host_us"))
    lines.append(f"{reached:.2f} of both rates is reached, in prefill {in_prefill:.2f} of the matrix rate")
    host = f"{waiting:g} µs" if waiting else "no time"
    lines.append(
        f"{units.memory(model_cost.CONTEXT_OF_A_PROGRAM)} for driver and libraries; parts run one after another, {host} on the host"
    )
    lines.append("memory is that of decoding: activations of a prefill are not counted")
    if model.n_experts:
        met = model_cost.expected_experts(model, answer.asked["batch"])
        lines.append(f"of {model.n_experts} experts a layer a step reads {met:.3g}, the expected number of distinct ones")
    if not answer.selection.is_dense:
        lines.append(f"choosing: {model_cost.SELECTORS[answer.selection.selector].source}")
        lines += model_cost.added_indexer(model, answer.selection)
    if max(answer.contexts) > model.max_context:
        lines.append(f"more context than the {units.count(model.max_context)} that the model was made for")
    lines.append(f"model: {model.source}" + (f"; {model.notes}" if model.notes else ""))
    return lines


def _table(*headings):
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place == 0 else "right", no_wrap=True)
    return table


def _rate(step):
    return units.three_digits(step.tok_s)


def _operations(number):
    return f"{units.three_digits(number / 1e12)} T" if number >= 1e12 else f"{units.three_digits(number / 1e9)} G"


def _room(step):
    total, capacity = units.memory(sum(step.memory.values())), units.memory(step.capacity_bytes)
    if step.fits:
        return f"{total} of {capacity}: fits, {units.memory(step.free_bytes)} left"
    return f"{total} of {capacity}: does not fit, {units.memory(-step.free_bytes)} missing"
