"""One loop for every model: the same batches, the same weights at the start, other keys to look at."""

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from selkey.bench.training.decoder import Decoder
from selkey.bench.training.lists import causal_lists

SINKS, WINDOW = 2, 8
# What attention may see: every earlier key; sinks, window and marks; sinks and window.
RUNS = ("dense", "selected", "window")
# The window reaches once per layer further back: between marks and questions lies more than that.
LAYERS = 2
_HELD_OUT = 64


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        run: name out of `RUNS`, with something in front of it for other models than the decoder.
        losses: of every step, on its batch before the update.
        loss, accuracy: at the end, on 64 sequences that it was not trained on.
        tokens_per_s: through forward, backward and update, all tokens of a sequence counted.
        trained: number of parameters that were trained.
        parameters: number of all parameters.
    """

    run: str
    losses: list[float]
    loss: float
    accuracy: float
    tokens_per_s: float
    trained: int
    parameters: int


def lists_of(run, batch):
    """The lists ``[B, S, 1, K]`` that a run gives its attention for a batch; None for dense attention."""
    if run == "dense":
        return None
    B, S, _ = batch.tokens.shape
    marks = batch.marks if run == "selected" else None
    return causal_lists(S, sinks=SINKS, window=WINDOW, marks=marks, batch_size=B, device=batch.tokens.device)


def train(model, task, run, *, steps, name=None, batch_size=16, learning_rate=3e-3, seed=0, device="cpu", watch=lambda step: None):
    """Train the parameters of `model` that require gradients.

    Args:
        model: called as model(tokens, keep, indices), see `selkey.bench.training.decoder.Decoder.forward`.
        task: `selkey.bench.training.recall.Recall`.
        run: out of `RUNS`.
        steps: of AdamW; the rate rises over the first tenth and falls to zero over the last third.
        name: what the outcome is called; default `run`.
        seed: decides all batches; the held-out ones come from seed + 1.
        watch: called after every step with its number from 1.

    Returns:
        Outcome.
    """
    model.to(device).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 10 * (step + 1) / steps, 3 * (steps - step) / steps))
    generator = torch.Generator().manual_seed(seed)
    losses = []
    start = time.perf_counter()
    for step in range(steps):
        loss, _ = _answer(model, task.sample(batch_size, generator).to(device), run)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        watch(step + 1)
    seconds = time.perf_counter() - start
    loss, accuracy = evaluate(model, task, run, seed=seed + 1, device=device)
    return Outcome(
        name or run, losses, loss, accuracy, steps * batch_size * task.length / seconds,
        sum(map(torch.numel, trained)), sum(map(torch.numel, model.parameters())),
    )  # fmt: skip


@torch.no_grad()
def evaluate(model, task, run, *, seed, device="cpu"):
    """(loss, accuracy) on 64 sequences drawn from `seed`."""
    model.eval()
    loss, accuracy = _answer(model, task.sample(_HELD_OUT, torch.Generator().manual_seed(seed)).to(device), run)
    return loss.item(), accuracy.item()


def fresh_decoder(task, seed):
    """A `Decoder` whose weights `seed` decides."""
    torch.manual_seed(seed)
    return Decoder(task.vocabulary, layers=LAYERS)


def train_decoder(task, run, *, seed=0, **options):
    """Train a fresh decoder; options as of `train`."""
    return train(fresh_decoder(task, seed), task, run, seed=seed, **options)


def _answer(model, batch, run):
    """Cross-entropy over the vocabulary at the questions, and the share of right answers."""
    logits = model(batch.tokens, batch.answers.shape[1], lists_of(run, batch))  # [B, Q, vocabulary]
    return F.cross_entropy(logits.flatten(0, 1), batch.answers.flatten()), (logits.argmax(-1) == batch.answers).float().mean()
