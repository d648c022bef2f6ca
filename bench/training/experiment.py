"""The whole comparison: losses of dense and selected training, memory of a step, the same through LoRA."""

from contextlib import contextmanager
from dataclasses import asdict

import torch

from selkey.bench import machine, records
from selkey.bench.training import lora as adapters
from selkey.bench.training import memory
from selkey.bench.training.train import RUNS, SINKS, WINDOW, evaluate, fresh_decoder, train_decoder

SCHEMA_VERSION = 1
# Beside a training step of some 50 ms: what a measurement of memory counts for on the progress bar, in steps.
_STEPS_OF_A_MEASUREMENT = 8


@contextmanager
def one_thread():
    """Inside, PyTorch computes on one core: models this small gain nothing from more, and lose much where others work too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
def run(task, *, steps, lengths, lora=False, seed=0, device="cpu", invocation="", watch=lambda *_: None):
    """Train, measure, and put all that was found into one object.

    Args:
        task: `selkey.bench.training.recall.Recall`.
        steps: of each decoder and of the LoRA base; adapters are trained half as long.
        lengths: at which memory is measured.
        lora: also the same through peft LoRA on a transformers model.
        watch: function(what is being done, parts done, parts, share of the work done).

    Returns:
        dict that `json` can write: run, env, case, outcomes (see `Outcome`), memory (see `Growth`, with its slope), and
        base_loss_at_new_task, what the LoRA base loses at the adapters' task before they are trained.

    Raises:
        ImportError: lora without transformers or peft.
    """
    if lora:
        adapters.check_installed()
    adapter_steps = max(1, steps // 2)
    measured = sum(len(memory.lengths_of(name, lengths)) for name in memory.NAMES)
    parts = {f"memory of {label}": measured * _STEPS_OF_A_MEASUREMENT for label in ("decoder", "LoRA")[: 1 + lora]}
    parts |= {f"decoder {name}": steps for name in RUNS}
    if lora:
        parts |= {"LoRA base": steps} | {f"LoRA {name}": adapter_steps for name in RUNS}
    bar = _Bar(parts, watch)
    environment = machine.environment(device)  # before anything of our own keeps the cores busy
    options = {"seed": seed, "device": device}

    # memory first: training leaves a heap in pieces, in which less can be told
    models = {"decoder": fresh_decoder(task, seed)}
    if lora:
        models["LoRA"] = adapters.with_adapters(adapters.tiny_llama(task.vocabulary, seed), seed)
    grown = []
    for label, model in models.items():
        step = bar.of(f"memory of {label}", _STEPS_OF_A_MEASUREMENT)
        grown += memory.measure(model, task, lengths, label=label, watch=lambda *_, step=step: step(), **options)
    outcomes = [train_decoder(task, name, steps=steps, watch=bar.of(f"decoder {name}"), **options) for name in RUNS]
    untouched = None
    if lora:
        base, outcome = adapters.train_base(task, steps=steps, watch=bar.of("LoRA base"), **options)
        outcomes.append(outcome)
        untouched, _ = evaluate(adapters.LlamaAnswers(base), adapters.next_task(task), "dense", seed=seed + 1, device=device)
        for name in RUNS:
            _, outcome = adapters.train_adapters(base, task, name, steps=adapter_steps, watch=bar.of(f"LoRA {name}"), **options)
            outcomes.append(outcome)
    return {
        "schema_version": SCHEMA_VERSION, "run": records.run_block(invocation, seed), "env": environment, "origin": "measured",
        "case": asdict(task) | {"dtype": "fp32", "steps": steps, "sinks": SINKS, "window": WINDOW},
        "guessing_loss": task.guessing_loss, "base_loss_at_new_task": untouched,
        "outcomes": [asdict(outcome) for outcome in outcomes],
        "memory": [asdict(one) | {"slope": one.slope} for one in grown],
    }  # fmt: skip


class _Bar:
    """Turns the steps of several parts into one share of the work.

    Args:
        parts: name → steps, in the order in which they are done.
        watch: as in `run`.
    """

    def __init__(self, parts, watch):
        self.parts, self.watch, self.done = parts, watch, 0

    def of(self, name, weight=1):
        """Announce a part; returns the function to call after each of its steps."""
        place, end = list(self.parts).index(name), self.done + self.parts[name]

        def show():
            self.watch(name, place + (self.done >= end), len(self.parts), self.done / sum(self.parts.values()))

        def step(*_):
            self.done += weight
            show()

        show()
        return step
