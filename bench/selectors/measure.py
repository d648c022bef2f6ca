"""One query at a time over a growing cache: how long each selector takes, what it reads, how much of the attention it finds.

All selectors choose k keys; the attention over what `PageTree` chose is timed beside them. The learned indexer has keys of its own, as
many as the cache; its rival stores all scores and hands them to `torch.topk`.
"""

from functools import partial

import torch

import selkey
from selkey.bench import records, timing
from selkey.bench.selectors.texts import Texts
from selkey.bench.workloads import Case
from selkey.selection import Oracle, PageTree, Quest, SummaryPages
from selkey.selection.policy import Sizes

HEADS, KV_HEADS, WIDTH = 8, 2, 128
INDEX_HEADS, INDEX_WIDTH = 8, 128
PAGE, FORMAT = 16, "int4"
CONTEXTS = tuple(2**n for n in (12, 14, 16, 18, 20))
ATTENTION, INDEXER, STORED = "attention over the chosen", "indexer, select", "indexer, torch.topk"
_QUERIES, _APPENDED = 4, 2**14
# pages of a list of everything, a few at a time: their logits are stored
_AT_ONCE = 2**12


def measure(contexts, k, write, watch, *, environment, seconds, seed, invocation):
    """Rows of all contexts, ascending.

    Args:
        contexts: multiples of `selkey.bench.selectors.texts.CHAPTER`.
        k: keys that each selector chooses.
        write: function of a record.
        watch: as `selkey.bench.progress.bar` yields it.
        environment: of `selkey.bench.devices`.
        seconds: time for the samples of a context.
        seed: decides all keys and queries.
        invocation: what the user typed.
    """
    contexts = sorted(contexts)
    run, env = records.run_block(invocation, seed), environment
    clock, texts = timing.Clock("cpu", env["last_cache_bytes"]), Texts(HEADS, KV_HEADS, WIDTH, seed)
    cache = selkey.KVCache(1, KV_HEADS, WIDTH, format=FORMAT, summary_page=PAGE, capacity=contexts[-1])
    # one of each, which keeps what it knows of the cache as it grows
    policies = {policy.__name__: policy(k, PAGE) for policy in (Quest, SummaryPages, PageTree)}
    for number, context in enumerate(contexts):
        case = Case("selectors", HEADS, KV_HEADS, KV_HEADS, WIDTH, WIDTH, context, k, data="texts", selector="", implementations=())
        while cache.rows < context:
            watch(f"{context:,} keys: appending", number, len(contexts), (number + cache.rows / context / 2) / len(contexts))
            cache.append(*texts.rows(min(_APPENDED, context - cache.rows)))
        watch(f"{context:,} keys: choosing", number, len(contexts), (number + 0.5) / len(contexts))
        query = texts.queries(cache, _QUERIES)
        found = _found(cache, query, policies | {"Oracle": Oracle(k)})
        calls = _calls(cache, texts, policies, query[:, :1], k)
        samples = timing.interleave(clock, calls, lambda: None, seconds)
        for name in [*calls, "Oracle"]:
            blocks = {"quality": {"mass_kept": found.get(name)}, "bytes": {"selector": _bytes(name, policies, context, k)}}
            if name in samples:
                summary = timing.summary(samples[name])
                blocks["time"] = {
                    "timer": clock.timer, "cache_mode": clock.cache_mode, "cold_proof": clock.cold_proof(),
                    "t_us": {q: summary[q] for q in ("min", "p10", "p50", "p90", "max")},
                    "n": summary["n"], "samples_us": [round(sample, 3) for sample in samples[name]],
                }  # fmt: skip
            impl = {"name": name, "version": env["selkey"], "backend": "cpu", "reads": "metadata"}
            write(records.row(run, env, None, case, impl, "ok", **blocks))


def _calls(cache, texts, policies, query, k):
    """name → what is timed, a function of nothing that matters."""
    index, keys = texts.draw(1, 1, INDEX_HEADS, INDEX_WIDTH), texts.draw(1, cache.rows, INDEX_WIDTH)
    weights = texts.draw(1, 1, INDEX_HEADS)

    def stored(_):
        products = torch.relu(index[0, 0] @ keys[0].T)
        return torch.topk(weights[0] @ products, k, sorted=False)

    chosen = policies["PageTree"].select(query, cache)
    calls = {name: lambda _, policy=policy: policy.select(query, cache) for name, policy in policies.items()}
    calls[INDEXER] = lambda _: selkey.select(index, keys, weights, k=k)
    calls[STORED] = stored
    calls[ATTENTION] = lambda _: cache.attention(query, chosen, block_size=PAGE)
    for call in calls.values():
        call(None)  # metadata of new keys, and whatever starts up
    return calls


def _found(cache, query, policies):
    """name → share of the attention that lies on what a policy chooses, mean over queries and heads."""
    pages = torch.arange(-(-cache.rows // PAGE), dtype=torch.int32)
    lse = partial(cache.attention, query, return_lse=True)
    parts = [lse(part.expand(1, _QUERIES, 1, -1), block_size=PAGE)[1] for part in pages.split(_AT_ONCE)]
    everything = torch.stack(parts).logsumexp(0)
    found = {}
    for name, policy in policies.items():
        chosen = policy.select(query, cache)
        found[name] = float(torch.exp(lse(chosen, block_size=policy.block_size)[1] - everything).mean())
    return found


def _bytes(name, policies, rows, k):
    """Bytes that choosing reads and writes for one query; of the attention, the rows that it reads."""
    key_bytes = selkey.kv_format(FORMAT).bytes_per_row(WIDTH)
    if name in (INDEXER, STORED):
        return rows * (4 * INDEX_WIDTH + (0 if name == INDEXER else 8))
    if name == ATTENTION:
        return 2 * k * KV_HEADS * key_bytes
    policy = policies.get(name, Oracle(k))
    return policy.bytes_per_step(Sizes(1, rows, HEADS, KV_HEADS, WIDTH, key_bytes))
