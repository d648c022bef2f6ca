"""A small network that scores tokens by their hidden states, learned from marks.

The loss of a document is listwise, −mean over marks of log softmax(scores), so that marked tokens stand above all others of their
document; a cross-entropy token by token is added, so that scores of different documents mean the same and documents without a mark
count. What a human was shown and did not mark counts several times (Locret and DuoAttention learn from what a model attends to; here a
human says it).
"""

import torch
import torch.nn.functional as F
from torch import nn

from selkey.selection.learn.checks import check_amount, check_count, check_documents, check_seed

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
        check_count("width", width)
        check_count("hidden", hidden)
        self.width, self.hidden = int(width), int(hidden)
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


@torch.inference_mode(False)
@torch.enable_grad()
def fit(states, marks, rejected=None, *, hidden=64, steps=300, learning_rate=6e-3, weight_decay=0.1, seed=0, watch=None):
    """Train a selector; seconds on a CPU.

    No gradient reaches the states, and it makes no difference whether it is called under `torch.no_grad` or `torch.inference_mode`.

    Args:
        states: list of ``[N, width]`` floating, the hidden states of each document; N may differ. A tensor ``[documents, N, width]`` is
            a list too, and so with the others.
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
        TypeError: what should be a list of tensors is none.
        ValueError: the lists do not fit each other, there is no mark at all, a state is not finite, or a number is out of its range.
    """
    states, marks, *others = check_documents(states, marks, rejected)
    check_count("hidden", hidden)
    check_count("steps", steps)
    check_amount("learning_rate", learning_rate)
    check_amount("weight_decay", weight_decay)
    check_seed(seed)
    if not any(mark.any() for mark in marks):
        raise ValueError(f"marks must hold a mark; the {len(marks)} documents have none, from which nothing can be learned")
    device = states[0].device
    rejected = others[0] if others else [torch.zeros_like(mark) for mark in marks]
    number = sum(int(mark.sum()) for mark in marks)
    positive_weight = min(sum(map(len, marks)) / number, 100.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        selector = Selector(states[0].shape[1], hidden)
        everything = torch.cat(states).detach().float()
        if not everything.square().sum(0).isfinite().all():
            raise ValueError("states must be numbers whose squares have a sum in fp32; got larger ones. Scale them down")
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
