"""A model over a text: every head's scores, maps and lists, in memory that grows with the text and not with its square.

The model computes its own dense attention, causal ones a piece of the text at a time through a plain cache of transformers. Of the
queries that are looked at (all, or evenly spread stretches of a long text) every layer's logits exist for a few at once.
"""

from dataclasses import dataclass, field

import torch

from selkey.heads import ablation, keeps, lists, redundancy, scores
from selkey.heads.text import encode
from selkey.hf import looking

# tokens of a causal text that the model reads at once
PIECE = 512
QUERIES, STRETCH = 2048, 32
# cells of a map, a side
CELLS = 48
# (position, share) pairs that are kept in all, and of each query and head
_PAIRS, _FEWEST, _MOST = 1 << 20, 4, 16


@dataclass
class Reading:
    """What was found.

    Attributes:
        text: `selkey.heads.text.Text`.
        is_causal: tokens see none that come later.
        heads: list of (layer, head), in order.
        rows: ``[Q]`` int64, tokens whose attention was looked at.
        keys: ``[Q, H, V]`` int32, the V keys with the largest shares, best first; −1 where there are fewer.
        shares: ``[Q, H, V]`` fp16, true shares.
        maps: ``[H, CELLS, CELLS]`` fp32, attention from a part of the text (row) to a part: exact sums over keys, means over the queries
            that were looked at; NaN in rows without one.
        scores: one dict a head: layer, head, label, what `scores.Sums.means` and `keeps.Kept.means` give, ``not_seen`` (share of the
            attention outside of the V keys), importance.
        similar: ``[H, H]``; order, groups: of `redundancy.order`, numbers of heads; compared: tokens from which heads were compared;
            together: keys taken together for it.
        importance: "loss" or "hidden", see `ablation.importance`; loss: with all heads, or None; tried: tokens it was tried on.
        ks: the k asked for.
    """

    text: object
    is_causal: bool
    heads: list
    rows: torch.Tensor
    keys: torch.Tensor
    shares: torch.Tensor
    maps: torch.Tensor
    scores: list
    similar: object = None
    order: list = field(default_factory=list)
    groups: list = field(default_factory=list)
    compared: int = 0
    together: int = 1
    importance: str = "loss"
    loss: float | None = None
    tried: int = 0
    ks: tuple = ()


def read(model, tokenizer, text, *, ks=(4, 16, 64), queries=QUERIES, watch=lambda *progress: None):
    """Run a model over a text and look at its heads.

    Args:
        model: of transformers, with attention through AttentionInterface, in evaluation mode.
        tokenizer: its own.
        text: a string.
        ks: lengths of lists to try.
        queries: tokens to look from, at most.
        watch: told what is done, as by `selkey.bench.progress.bar`.

    Returns:
        `Reading`.

    Raises:
        ImportError, TypeError, ValueError: a text with nothing to look at, or a model whose attention cannot be seen.
    """
    with looking.attending(model, lambda call: None):
        pass  # what cannot be seen is refused before the text is read
    encoded = encode(model, tokenizer, text)
    device = model.get_input_embeddings().weight.device
    looker = _Looker(encoded, model, sampled(len(encoded.ids), queries), tuple(sorted(set(ks))), device)
    with torch.inference_mode():
        _run(model, encoded, looker, device, watch)
        reading = looker.reading()
        reading.similar = redundancy.similarity(looker.probes())
    reading.order, reading.groups = redundancy.order(reading.similar)
    start, stop = encoded.spans[0]
    ids = encoded.ids[start:stop].to(device)
    found, reading.importance, reading.loss = ablation.importance(model, ids, reading.heads, watch)
    reading.tried = min(len(ids), ablation.TOKENS)
    for row, value in zip(reading.scores, found, strict=True):
        row["importance"] = value
    watch("done", 1, 1, 1.0)
    return reading


def sampled(n_tokens, most):
    """Positions to look from, ascending: all of them, or stretches of `STRETCH` spread evenly, the end among them."""
    if n_tokens <= most:
        return torch.arange(n_tokens)
    stretches = max(1, most // STRETCH)
    length = min(STRETCH, most)
    starts = torch.linspace(0, n_tokens - length, stretches).long() if stretches > 1 else torch.tensor([n_tokens - length])
    return (starts[:, None] + torch.arange(length)).flatten().unique()


def _run(model, text, looker, device, watch):
    """Feed every span; the looker sees the calls."""
    n = len(text.ids)
    with looking.attending(model, looker):
        for start, stop in text.spans:
            cache = looking.new_cache(model) if looker.is_causal else None
            piece = PIECE if cache is not None else stop - start
            for at in range(start, stop, piece):
                watch("reading the text", at, n, at / n)
                looker.begin(start, at, min(stop, at + piece))
                arguments = {} if cache is None else {"past_key_values": cache, "use_cache": True}
                model.base_model(input_ids=text.ids[None, at : min(stop, at + piece)].to(device), **arguments)


class _Looker:
    """Sees attention calls and keeps what is asked of them."""

    def __init__(self, text, model, rows, ks, device):
        self.is_causal, self._text, self._rows, self._ks = looking.is_causal(model), text, rows, ks
        self._ids, self._special = text.ids.to(device), text.special.to(device)
        config = model.config.get_text_config()
        heads = getattr(config, "num_hidden_layers", 1) * getattr(config, "num_attention_heads", 1)
        self._longest = max(stop - start for start, stop in text.spans)
        asking = rows[~text.special[rows]]
        probes, self._groups = redundancy.sizes(heads, self._longest, len(asking))
        self._probed = torch.zeros(len(text.ids), dtype=torch.bool, device=device)
        self._probed[asking[torch.linspace(0, len(asking) - 1, probes).long()]] = True
        self._layers = {}

    def begin(self, span, start, stop):
        """The next calls read tokens [start, stop) of a span that began at `span`."""
        self._span, self._start, self._stop, self._calls = span, start, stop, looking.Layers()
        inside = self._rows[(self._rows >= start) & (self._rows < stop)]
        self._inside = (inside - start).to(self._ids.device)

    def __call__(self, call):
        number = self._calls.number(call)
        layer = self._layers.get(number)
        if layer is None:
            layer = self._layers[number] = _Layer(call.q.shape[2], self._ks, len(self._ids))
        stored = call.k.shape[1]
        first = self._stop - stored
        if call.q.shape[1] != self._stop - self._start or first < self._span:
            raise ValueError("a layer of this model attends to something else than the text: its heads cannot be laid over it")
        ids, special = self._ids[first : self._stop], self._special[first : self._stop]
        n_keys = max(self._ks[-1], _MOST)
        groups = (torch.arange(first, self._stop, device=ids.device) - self._span) * self._groups // self._longest
        for chunk in lists.chunks(call, self._inside, n_keys):
            places = chunk.rows + stored - call.q.shape[1]
            # the sink of a causal text is its first token, which a layer with a window of its own may have left behind
            is_start = self.is_causal and first == self._span
            layer.sums.add(chunk.shares, chunk.visible, places, ids, special, self.is_causal, is_start)
            layer.kept.add(call, chunk, ~special[places] & (chunk.visible.sum(-1) > 1))
            layer.note(chunk, first, places + first)
            layer.probe(chunk, groups, self._groups, self._probed[places + first])

    def reading(self):
        """`Reading` without what compares and leaves out heads."""
        if not self._layers:
            raise ValueError("the model has no attention layer that goes through AttentionInterface: it has no heads to look at")
        numbers = sorted(self._layers)
        heads = [(number, head) for number in numbers for head in range(self._layers[number].heads)]
        width = max(_FEWEST, min(_MOST, _PAIRS // max(1, len(self._rows) * len(heads))))
        keys = torch.cat([self._layers[number].keys(width) for number in numbers], 1)
        shares = torch.cat([self._layers[number].shares(width) for number in numbers], 1)
        rows = [row for number in numbers for row in self._layers[number].rows()]
        asks = ~self._text.special[self._rows]
        unseen = 1 - shares[asks].float().sum(-1).mean(0)
        for (layer, head), row, missed in zip(heads, rows, unseen, strict=True):
            row |= {"layer": layer, "head": head, "label": scores.label(row), "not_seen": max(0.0, float(missed))}
        maps = torch.cat([self._layers[number].map() for number in numbers])
        together = -(-self._longest // self._groups)
        compared = int(self._probed.sum())
        return Reading(
            self._text, self.is_causal, heads, self._rows, keys, shares, maps, rows, compared=compared, together=together, ks=self._ks,
        )  # fmt: skip

    def probes(self):
        """Shares of the queries that similarity is measured on: ``[P, H, M]``."""
        return torch.cat([torch.cat(self._layers[number].probes) for number in sorted(self._layers)], 1)


class _Layer:
    """What is kept of one layer."""

    def __init__(self, heads, ks, n_tokens):
        self.heads, self.sums, self.kept = heads, scores.Sums(), keeps.Kept(ks)
        self._n = n_tokens
        self._keys, self._shares, self.probes = [], [], []
        self._map, self._counts = torch.zeros(heads, CELLS, CELLS), torch.zeros(CELLS)

    def note(self, chunk, first, positions):
        """Lists and the map of a `lists.Chunk` whose first key is the token `first`, and whose queries stand at `positions`."""
        keys = torch.where(chunk.keys >= 0, chunk.keys + first, -1).int().cpu()
        listed = chunk.listed.cpu()
        positions = positions.cpu()
        self._keys.append(_padded(keys[..., :_MOST], -1))
        self._shares.append(_padded(listed[..., :_MOST].half(), 0))
        cells = (torch.arange(first, first + chunk.shares.shape[-1]) * CELLS // self._n).to(chunk.shares.device)
        sums = chunk.shares.new_zeros(*chunk.shares.shape[:2], CELLS).index_add_(2, cells, chunk.shares).cpu()
        at = positions * CELLS // self._n
        self._map.index_add_(1, at, sums.transpose(0, 1))
        self._counts += torch.bincount(at, minlength=CELLS)

    def probe(self, chunk, groups, n_groups, here):
        """Shares of groups of keys, of the queries that are `here` ``[C]`` bool; groups ``[N]``."""
        shares = chunk.shares[here]
        self.probes.append(shares.new_zeros(*shares.shape[:2], n_groups).index_add_(2, groups, shares).half().cpu())

    def keys(self, width):
        return torch.cat(self._keys)[..., :width]

    def shares(self, width):
        return torch.cat(self._shares)[..., :width]

    def map(self):
        return torch.where(self._counts[:, None] > 0, self._map / self._counts.clamp_min(1)[:, None], float("nan"))

    def rows(self):
        return [one | other for one, other in zip(self.sums.means(), self.kept.means(self.heads), strict=True)]


def _padded(tensor, value):
    return torch.nn.functional.pad(tensor, (0, _MOST - tensor.shape[-1]), value=value)
