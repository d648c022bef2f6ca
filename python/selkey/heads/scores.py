"""What a head does, in numbers between which papers have named heads, and a name for it.

All are means over the queries that were looked at, from shares over all keys that a query sees. Special tokens and the first token of a
causal text ask nothing that has an answer and are no queries.

==================  ===================================================================================================================
entropy             −Σ p ln p in nats (Clark et al. 2019, "What does BERT look at?"); exp of it is the effective number of keys
distance            Σ p · |i − j|, in tokens
confidence          the largest share (Voita et al. 2019, "Analyzing multi-head self-attention")
sink                share of the first token (Xiao et al. 2023, "Efficient streaming language models with attention sinks"); of encoders
                    that of special tokens such as [CLS] and [SEP] (Clark et al. 2019)
previous, next      share of the token before and after: positional heads (Voita et al. 2019; Clark et al. 2019)
self                share of the token itself
duplicate           share of other places of the same token: duplicate-token heads (Wang et al. 2022, "Interpretability in the wild");
                    over queries whose token stands elsewhere, too
induction           share of tokens that follow another place of the same token: prefix matching (Olsson et al. 2022, "In-context learning
                    and induction heads"); over queries where there is such a token, on the text as it is instead of random repeats
near                share of the tokens at most 4 away, the token itself included
spread              effective number of keys as a share of the visible ones
==================  ===================================================================================================================

Of duplicate and induction, `…_chance` is what attention that is the same everywhere would give.
"""

import math

import torch

PATTERNS = ("sink", "previous", "next", "self", "duplicate", "induction", "near")
NAMES = ("entropy", "distance", "confidence", *PATTERNS, "spread", "duplicate_chance", "induction_chance")
NEAR = 4
NAMED_FROM, TIMES_CHANCE, LOCAL_FROM, BROAD_FROM = 0.3, 3, 0.5, 1 / 3
LABELS = {
    "sink": "sink", "previous": "previous", "next": "next", "self": "itself", "duplicate": "duplicate",
    "induction": "induction", "local": "local", "broad": "broad", "mixed": "mixed",
}  # fmt: skip
RULE = (
    f"The largest of the shares sink, previous, next, itself, duplicate and induction names a head if it is at least {NAMED_FROM:.0%} "
    f"(duplicate and induction: and {TIMES_CHANCE} times what even attention would give). Otherwise: local if {LOCAL_FROM:.0%} or more "
    f"lies at most {NEAR} tokens away, broad if it looks at a third of all keys or more, mixed if nothing of this holds."
).replace("%", " %")


class Sums:
    """Scores of the heads of one layer, summed up chunk by chunk."""

    def __init__(self):
        self._sums, self._queries = {}, {}

    def add(self, shares, visible, places, ids, special, is_causal, is_start=True):
        """Take in C queries.

        Args:
            shares: ``[C, HQ, N]`` fp32. visible: ``[C, N]`` bool.
            places: ``[C]`` int64, where the queries stand among the N keys.
            ids: ``[N]`` int64, tokens of the keys.
            special: ``[N]`` bool.
            is_causal: the sink is the first token, otherwise all special ones.
            is_start: the first key is the first token.
        """
        sinks = special if not is_causal else torch.arange(len(ids), device=ids.device) < (1 if is_start else 0)
        matrices = patterns(ids, special, places, sinks) & visible[..., None]
        found = shares @ matrices.to(shares.dtype)  # [C, HQ, patterns]
        seen = visible.sum(-1)
        asks = ~special[places] & (seen > 1)
        counts = matrices.sum(1)
        entropy = torch.special.entr(shares).sum(-1)
        away = (torch.arange(len(ids), device=ids.device) - places[:, None]).abs()
        self._add("entropy", entropy, asks)
        self._add("distance", (shares @ away[..., None].to(shares.dtype))[..., 0], asks)
        self._add("confidence", shares.amax(-1), asks)
        self._add("spread", entropy.exp() / seen[:, None], asks)
        for number, name in enumerate(PATTERNS):
            has_answer = asks & (counts[:, number] > 0)
            counted = asks if name in ("sink", "near") else has_answer
            self._add(name, found[..., number], counted)
            if name in ("duplicate", "induction"):
                even = (counts[:, number] / seen)[:, None].expand_as(entropy)
                self._add(f"{name}_chance", even, counted)

    def means(self):
        """One dict a head: `NAMES` and ``effective_keys``; None where no query had an answer."""
        heads = len(self._sums["entropy"])
        rows = []
        for head in range(heads):
            row = {name: float(self._sums[name][head]) / self._queries[name] if self._queries[name] else None for name in NAMES}
            row["effective_keys"] = None if row["entropy"] is None else math.exp(row["entropy"])
            rows.append(row)
        return rows

    def _add(self, name, values, counted):
        self._sums[name] = self._sums.get(name, 0) + (values * counted[:, None]).sum(0, dtype=torch.float64)
        self._queries[name] = self._queries.get(name, 0) + int(counted.sum())


def patterns(ids, special, places, sinks):
    """Which keys belong to which of `PATTERNS` for each query: ``[C, N, patterns]`` bool.

    Args:
        sinks: ``[N]`` bool; the others are those of `Sums.add`.
    """
    at = torch.arange(len(ids), device=ids.device)
    # a special token is no repetition of another one
    names = torch.where(special, -1 - at, ids)
    before = torch.cat((names.new_tensor([-1 - len(ids)]), names[:-1]))
    query, away = names[places][:, None], at - places[:, None]
    return torch.stack(
        (
            sinks.expand(len(places), -1),
            away == -1,
            away == 1,
            away == 0,
            (names == query) & (away != 0),
            (before == query) & (away != 0) & (away != 1),
            away.abs() <= NEAR,
        ),
        -1,
    )


def label(row):
    """The name of a head by `RULE`, a key of `LABELS`.

    Args:
        row: of `Sums.means`.
    """
    if row["entropy"] is None:
        return "mixed"
    shares = {name: row[name] for name in PATTERNS if name != "near" and row[name] is not None and row[name] >= NAMED_FROM}
    for name in ("duplicate", "induction"):
        if name in shares and shares[name] < TIMES_CHANCE * row[f"{name}_chance"]:
            del shares[name]
    if shares:
        return max(shares, key=shares.get)
    if row["near"] >= LOCAL_FROM:
        return "local"
    return "broad" if row["spread"] >= BROAD_FROM else "mixed"
