"""A small network that scores tokens by their hidden states, learned from marks.

The loss of a document is listwise, −mean over marks of log softmax(scores), so that marked tokens stand above all others of their
document; a cross-entropy token by token is added, so that scores of different documents mean the same and documents without a mark
count. What a human was shown and did not mark counts several times (Locret and DuoAttention learn from what a model attends to; here a
human says it).
"""

import torch
import torch.nn.functional as F
from torch import nn

# How many ordinary tokens a token is worth that was shown and not marked.
HARD_NEGATIVE = 4.0
_BATCH = 16


class Selector(nn.Module):
    """Scores of tokens: ``[..., width]`` → ``[...]``, higher for what should be selected.

    Args:
        width: of the hidden states.
        hidden: units of the layer between.
    """

    def __init__(self, width, hidden=64):
        super().__init__()
        self.width, self.hidden = width, hidden
        # hidden states of some models have coordinates a thousand times larger than the rest
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        self.network = nn.Sequential(nn.Dropout(0.1), nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0.1), nn.Linear(hidden, 1))

    def forward(self, states):
        if states.shape[-1] != self.width:
            raise ValueError(f"states must have width {self.width}, that of the states it was trained on; got {list(states.shape)}")
        return self.of_standardised(self.standardised(states.float()))

    def standardised(self, states):
        return (states - self.mean) / self.deviation

    def of_standardised(self, states):
        return self.network(states).squeeze(-1)


def fit(states, marks, rejected=None, *, hidden=64, steps=300, learning_rate=6e-3, weight_decay=0.1, seed=0, watch=None):
    """Train a selector; seconds on a CPU.

    Args:
        states: list of ``[N, width]`` floating, the hidden states of each document; N may differ.
        marks: list of ``[N]`` bool.
        rejected: list of ``[N]`` bool, what was shown and not marked; None: nothing is known.
        hidden: units of the selector.
        steps: of AdamW, each on 16 documents.
        learning_rate, weight_decay: of AdamW.
        seed: of the weights and of the order of the documents; the global generator is left alone.
        watch: function(steps done, steps), called after each.

    Returns:
        `Selector` in evaluation mode, on the device of the states.

    Raises:
        ValueError: the lists do not fit each other, there is no mark at all, or a state is not finite.
    """
    check_documents(states, marks, rejected)
    if not any(mark.any() for mark in marks):
        raise ValueError(f"marks must hold a mark; the {len(marks)} documents have none, from which nothing can be learned")
    device = states[0].device
    rejected = rejected or [torch.zeros_like(mark) for mark in marks]
    number = sum(int(mark.sum()) for mark in marks)
    positive_weight = min(sum(map(len, marks)) / number, 100.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        selector = Selector(states[0].shape[1], hidden)
        everything = torch.cat(states).float()
        selector.mean.copy_(everything.mean(0))
        selector.deviation.copy_(everything.std(0, correction=0).clamp_min(1e-6))
        selector.to(device).train()
        # once, not in every step
        states = selector.standardised(everything).split([len(state) for state in states])
        optimizer = torch.optim.AdamW(selector.parameters(), learning_rate, weight_decay=weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
        order = []
        for step in range(steps):
            while len(order) < min(_BATCH, len(states)):
                order += torch.randperm(len(states)).tolist()
            chosen, order = order[:_BATCH], order[_BATCH:]
            loss = _loss(selector.of_standardised, *([column[i] for i in chosen] for column in (states, marks, rejected)), positive_weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if watch is not None:
                watch(step + 1, steps)
    return selector.eval()


def check_documents(states, marks, rejected=None):
    """The lists of `fit` and `evaluate`; raises TypeError or ValueError that names the document."""
    columns = {"states": states, "marks": marks} | ({} if rejected is None else {"rejected": rejected})
    if len({len(column) for column in columns.values()}) != 1 or not len(states):
        lengths = ", ".join(f"{len(column)} {name}" for name, column in columns.items())
        raise ValueError(f"{' and '.join(columns)} must be lists of one length, at least 1; got {lengths}")
    for i, state in enumerate(states):
        if state.dim() != 2 or not state.is_floating_point() or state.shape[1] != states[0].shape[-1] or not len(state):
            raise ValueError(
                f"states[{i}] must be floating of shape [N, width], N ≥ 1, all of one width; got {state.dtype} {list(state.shape)}"
            )
        if not state.isfinite().all():
            raise ValueError(f"states[{i}] must be finite; got NaN or infinity")
        for name in list(columns)[1:]:
            flags = columns[name][i]
            if flags.dtype != torch.bool or flags.shape != state.shape[:1]:
                raise ValueError(f"{name}[{i}] must be bool of shape [{len(state)}] as states[{i}]; got {flags.dtype} {list(flags.shape)}")


def _loss(score, states, marks, rejected, positive_weight):
    pad = lambda column: nn.utils.rnn.pad_sequence(column, batch_first=True)
    marks, rejected = pad(marks), pad(rejected)  # [B, N]
    exists = pad([torch.ones(len(state), dtype=torch.bool, device=state.device) for state in states])
    scores = score(pad(states))
    worth = torch.where(rejected, HARD_NEGATIVE, 1.0)
    # a token worth four stands four times among the rivals
    log_share = scores - (scores + worth.log()).masked_fill(~exists, float("-inf")).logsumexp(-1, keepdim=True)
    count = marks.sum(-1)
    listwise = -(log_share * marks).sum(-1) / count.clamp(min=1)
    listwise = listwise.sum() / (count > 0).sum().clamp(min=1)
    weight = torch.where(marks, positive_weight, worth) * exists
    single = F.binary_cross_entropy_with_logits(scores, marks.float(), weight=weight, reduction="sum") / weight.sum()
    return listwise + single
