"""LoRA that moves the attention of a transformers model to what its user tends to mark.

    model, report = teach(model, documents)       # `selkey.selection.learn.examples` of a log, in the tokens of the model
    print(report)                                  # attention mass on marks of held-out documents: before, after, on random tokens
    model.save_pretrained("adapter")               # by peft

The adapters are trained to raise the share of attention that later tokens pay to marked ones, −log of it, while the distribution of
the next token stays near that of the untouched model (Kullback-Leibler divergence).
"""

import copy
import random
import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from selkey.checks import _is_int
from selkey.hf.shares import ask, noted
from selkey.selection.learn.checks import check_all, check_amount, check_count, check_seed, check_share
from selkey.selection.learn.examples import Example, split

EXTRA = 'selkey.hf.teach needs transformers and peft: pip install "selkey[lora]"'
# queries of a document that are looked at: in a step, and for the report
_QUERIES, _QUERIES_OF_REPORT = 32, 128
_FEW = 8


@dataclass(frozen=True)
class TeachReport:
    """Share of the attention that later tokens pay to marked ones, mean over documents, queries, heads and the chosen layers.

    Each pair is (to the marked tokens, to as many random tokens that stand no later).

    Attributes:
        before: of the untouched model.
        after: with the adapters.
        control: with adapters that were taught random marks, otherwise in the same way.
        drift: KL divergence of the next-token distribution from the untouched model's, in nats, with the adapters.
        documents: how many it was measured on.
        is_held_out: the adapters were not trained on them.
    """

    before: tuple
    after: tuple
    control: tuple
    drift: float
    documents: int
    is_held_out: bool

    def __str__(self):
        kind = "held-out" if self.is_held_out else "TRAINING"
        rows = (("untouched", self.before), ("taught the marks", self.after), ("taught random marks", self.control))
        lines = [
            f"attention mass on {self.documents} {kind} documents",
            f"  {'':20} {'marked':>8} {'as many random tokens':>23}",
            *(f"  {name:20} {marked:8.3f} {other:23.3f}" for name, (marked, other) in rows),
            f"  next-token distribution moved by {self.drift:.4f} nats",
        ]
        if not self.is_held_out:
            lines.append("  these are the documents it learned from: the figures say nothing about others")
        elif self.documents < _FEW:
            lines.append(f"  fewer than {_FEW} documents: too few to tell much")
        return "\n".join(lines)


@torch.inference_mode(False)
@torch.enable_grad()
def teach(
    model, examples, *, steps=150, layers=None, keep=1.0, rank=8, target_modules="all-linear", learning_rate=2e-3, held_out=0.25, seed=0,
    watch=None,
):  # fmt: skip
    """Train LoRA adapters on a causal language model so that it attends to what its user marks.

    Args:
        model: a transformers causal language model whose attention goes through AttentionInterface; peft puts the adapters into it, in
            place: `model.disable_adapter()` and `model.unload()` of the result give the untouched one.
        examples: list of `selkey.selection.learn.Example` in the tokens of the model. Only marks that later, unmarked tokens can look back
            to teach anything.
        steps: of AdamW, each on one document; the control takes as many again.
        layers: list of ints, the numbers of the attention layers whose attention is moved; None: all.
        keep: weight of the KL divergence.
        rank, target_modules: of peft's LoraConfig.
        learning_rate: of AdamW.
        held_out: share of the documents that the report is on.
        seed: of the adapters, of the order of the documents and of what is random.
        watch: function(steps done, steps), called after each.

    Returns:
        (peft model in evaluation mode, `TeachReport`).

    Raises:
        ImportError: transformers or peft is missing.
        TypeError: an argument is of another type.
        ValueError: no document teaches anything, tokens are not of the model's vocabulary, the model cannot be taught so, or a number is
            out of its range.
    """
    peft = _peft()
    _check(model, examples, steps, layers, keep, rank, learning_rate, held_out, seed)
    documents = _usable(model, examples)
    train, judged = split(documents, held_out)
    is_held_out = bool(judged)
    judged = judged or train
    seed = int(seed)
    rng = random.Random(seed)
    strangers = {document.document: _stand_ins(document.marks, rng) for document in documents}
    was_training, needed_grad = model.training, [parameter.requires_grad for parameter in model.parameters()]
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=target_modules)
    model.eval()
    adapted = None
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)  # peft asks transformers by an old name
            torch.manual_seed(seed)
            adapted = peft.get_peft_model(model, config).eval()
            with noted(model):
                with adapted.disable_adapter():
                    before, _ = _judge(adapted, judged, strangers, layers, seed)
                learn = dict(steps=steps, layers=layers, keep=keep, learning_rate=learning_rate)
                _train(adapted, [(d, d.marks) for d in train], seed=seed, watch=watch and (lambda done: watch(done, 2 * steps)), **learn)
                after, drift = _judge(adapted, judged, strangers, layers, seed)
                torch.manual_seed(seed)
                adapted.add_adapter("control", copy.copy(config))
                adapted.set_adapter("control")
                pairs = [(d, strangers[d.document]) for d in train]
                _train(adapted, pairs, seed=seed, watch=watch and (lambda done: watch(steps + done, 2 * steps)), **learn)
                control, _ = _judge(adapted, judged, strangers, layers, seed)
                adapted.set_adapter("default")
                adapted.delete_adapter("control")
    except BaseException:
        if adapted is not None:
            adapted.unload()
        model.train(was_training)
        for parameter, needed in zip(model.parameters(), needed_grad, strict=True):
            parameter.requires_grad_(needed)
        raise
    return adapted.eval(), TeachReport(before, after, control, drift, len(judged), is_held_out)


def _peft():
    try:
        import peft
        import transformers  # noqa: F401
    except ImportError as problem:
        raise ImportError(f"{EXTRA} ({problem})") from None
    return peft


def _check(model, examples, steps, layers, keep, rank, learning_rate, held_out, seed):
    from transformers import PreTrainedModel

    if hasattr(model, "peft_config"):
        raise ValueError("model must have no adapters; merge those that it has, or unload them")
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model must be a causal language model of transformers; got {type(model).__name__}")
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ValueError("model must be made outside torch.inference_mode: nothing made inside can have gradients")
    check_all("examples", examples, Example)
    check_count("steps", steps)
    if not (layers is None or (isinstance(layers, (list, tuple, range)) and all(map(_is_int, layers)))):
        raise TypeError(f"layers must be a list of ints, or None; got {layers!r}")
    check_amount("keep", keep)
    check_count("rank", rank)
    check_amount("learning_rate", learning_rate)
    check_share("held_out", held_out)
    check_seed(seed)


def _usable(model, examples):
    """The documents that teach something; an error if there is none."""
    vocabulary = model.get_input_embeddings().num_embeddings
    for example in examples:
        if int(example.tokens.max()) >= vocabulary:
            raise ValueError(
                f"{example.place}: tokens must be ids below {vocabulary}, the vocabulary of the model; got {int(example.tokens.max())}: "
                "is the log of another tokenizer?"
            )
    usable = [example for example in examples if len(_askers(example.marks))]
    if not usable:
        raise ValueError(f"examples must hold a mark with unmarked tokens behind it; none of the {len(examples)} documents does")
    return usable


def _askers(marks):
    """Positions of the queries that can look back to a mark: those behind the first, marks excepted."""
    if not marks.any():
        return torch.zeros(0, dtype=torch.long)
    first = int(marks.int().argmax())
    return first + 1 + (~marks[first + 1 :]).nonzero()[:, 0]


def _stand_ins(marks, rng):
    """As many random unmarked tokens as there are marks; each stands no later than its mark, where there is such a one."""
    taken = marks.tolist()
    drawn = torch.zeros_like(marks)
    for mark in marks.nonzero()[:, 0].tolist():
        free = [place for place in range(mark) if not taken[place]] or [place for place in range(len(taken)) if not taken[place]]
        if free:
            place = rng.choice(free)
            taken[place] = drawn[place] = True
    return drawn


def _divergence(untouched, found):
    """Mean over queries of KL(untouched || found), both log-probabilities ``[C, vocabulary]``."""
    return F.kl_div(found, untouched, reduction="batchmean", log_target=True)


def _train(model, pairs, *, steps, layers, keep, learning_rate, seed, watch):
    """Train the active adapter on pairs (document, which of its tokens to attend to)."""
    rng, order = random.Random(seed), []
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=0.0)
    for step in range(steps):
        if not order:
            order = rng.sample(pairs, len(pairs))
        document, marks = order.pop()
        askers = _askers(marks)
        queries = askers[torch.tensor(sorted(rng.sample(range(len(askers)), min(_QUERIES, len(askers)))))] if len(askers) else askers
        if len(queries):
            with torch.no_grad(), model.disable_adapter():
                _, untouched = ask(model, document.tokens, queries, [marks], layers)
            log_shares, found = ask(model, document.tokens, queries, [marks], layers)
            # mean over heads inside the logarithm: heads that have other work may go on with it
            share = log_shares[:, 0].logsumexp(1) - torch.tensor(float(log_shares.shape[2])).log()
            loss = -share.mean() + keep * _divergence(untouched, found)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if watch is not None:
            watch(step + 1)
    optimizer.zero_grad()


@torch.no_grad()
def _judge(model, documents, strangers, layers, seed):
    """((mass on marks, mass on stand-ins), divergence from the untouched model), means over documents."""
    rng = random.Random(seed)
    masses, drift = torch.zeros(2, dtype=torch.float64), 0.0
    for document in documents:
        askers = _askers(document.marks)
        queries = askers[torch.tensor(sorted(rng.sample(range(len(askers)), min(_QUERIES_OF_REPORT, len(askers)))))]
        log_shares, found = ask(model, document.tokens, queries, [document.marks, strangers[document.document]], layers)
        with model.disable_adapter():
            _, untouched = ask(model, document.tokens, queries, [document.marks], layers)
        masses += log_shares.exp().mean((0, 2, 3)).cpu()
        drift += float(_divergence(untouched, found))
    return tuple((masses / len(documents)).tolist()), drift / len(documents)
