"""How well a selector finds what was marked, beside what chance finds."""

from dataclasses import dataclass

import torch

from selkey.selection.learn.checks import check_count, check_documents

# With fewer documents than this a share of them is hardly a measurement.
FEW = 8


@dataclass(frozen=True)
class Report:
    """Recall of the marked tokens, averaged over documents; `str` of it says all, the baseline included.

    Attributes:
        k: tokens selected in each document.
        recall: share of the marked tokens that are among the k with the highest scores.
        random: the same for k random tokens, in expectation: min(k / N, 1).
        first: the same for the first k tokens.
        best: the most that k tokens can reach: less than 1 where more than k are marked.
        error: standard error of `recall`; None with one document.
        documents, tokens, marks: how many it was measured on.
        is_held_out: the selector has not seen these documents.
    """

    k: int
    recall: float
    random: float
    first: float
    best: float
    error: float | None
    documents: int
    tokens: int
    marks: int
    is_held_out: bool

    def __str__(self):
        kind = "held-out" if self.is_held_out else "TRAINING"
        error = "" if self.error is None else f" ± {self.error:.3f}"
        lines = [
            f"recall@{self.k} on {self.documents} {kind} documents ({self.marks:,} of {self.tokens:,} tokens marked)",
            f"  selector          {self.recall:.3f}{error}",
            f"  random tokens     {self.random:.3f}",
            f"  first tokens      {self.first:.3f}",
        ]
        if self.best < 1:
            lines.append(f"  best possible     {self.best:.3f}   (more than {self.k} tokens are marked)")
        if not self.is_held_out:
            lines.append("  these are the documents it learned from: the figure says nothing about others")
        elif self.documents < FEW:
            lines.append(f"  fewer than {FEW} documents: too few to tell much")
        return "\n".join(lines)


@torch.no_grad()
def evaluate(selector, states, marks, k, *, is_held_out):
    """Recall at k of a selector.

    Args:
        selector: function(states ``[N, width]``) → scores ``[N]``.
        states: list of ``[N, width]``, one a document.
        marks: list of ``[N]`` bool; documents without a mark are left out.
        k: tokens to select in each, at least 1; ties go to the earlier token.
        is_held_out: True if the selector was not trained on them, False if it was: the report says which.

    Returns:
        `Report`.

    Raises:
        TypeError: states or marks are no lists of tensors, or is_held_out is neither True nor False.
        ValueError: the lists do not fit each other, or no document has a mark.
    """
    states, marks = check_documents(states, marks)
    check_count("k", k)
    if not isinstance(is_held_out, bool):
        raise TypeError(f"is_held_out must be True or False; got {is_held_out!r}")
    figures = []
    for state, mark in zip(states, marks, strict=True):
        number = int(mark.sum())
        if number:
            scores = selector(state)
            if not isinstance(scores, torch.Tensor) or scores.shape != mark.shape:
                got = list(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
                raise ValueError(f"selector must give scores of shape [N] = {list(mark.shape)} for states {list(state.shape)}; got {got}")
            chosen = scores.argsort(descending=True, stable=True)[:k]
            recalls = (mark[chosen].sum() / number, min(k / len(mark), 1), mark[:k].sum() / number, min(k / number, 1))
            figures.append([*map(float, recalls), len(mark), number])
    if not figures:
        raise ValueError(f"marks must hold a mark to be found; the {len(marks)} documents have none")
    table = torch.tensor(figures, dtype=torch.float64)
    recall, random, first, best = table[:, :4].mean(0).tolist()
    error = float(table[:, 0].std()) / len(table) ** 0.5 if len(table) > 1 else None
    tokens, number = table[:, 4:].sum(0).long().tolist()
    return Report(k, recall, random, first, best, error, len(table), tokens, number, is_held_out)
