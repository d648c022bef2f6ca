"""`BoundedCache`: any number of tokens in a constant number of bytes."""

import torch

from selkey.cache import bounded_checks, bounded_state, extending, reading
from selkey.cache.bounded_operations import Operations
from selkey.cache.pins import Pins
from selkey.cache.pools import Pools
from selkey.cache.surroundings import undisturbed


class BoundedCache(Operations):
    """Keys and values of one layer, for ever, in pools of fixed size.

    ========  =================================================  ================================================
    pool      holds, per KV head                                 leaves
    ========  =================================================  ================================================
    sinks     the first tokens, exactly                          never
    pins      what a human pinned, exactly                       by `unpin` only
    window    the newest tokens, exactly                         by age, in runs of window / 32 tokens, into keep
    keep      the best scored of all that left, in `format`      for a better scored one, into folds
    folds     summaries (count, mean key, mean value, spread)    by joining another summary: the count stays
    ========  =================================================  ================================================

    A live token is in exactly one pool of each head. The window always holds the last `window` tokens that are neither sinks nor
    pinned, and up to window / 32 − 1 older ones that have not left yet. With ``keep=0`` what leaves the window is folded at once;
    with ``folds=0`` what loses its place is dropped. A row with NaN or infinity in any head (after conversion to `dtype`)
    counts as a token, but is never attended, kept or folded; other rows are unaffected.

    However tokens are split into calls of `append`, the same tokens are in the same pools (up to rounding of the default score,
    or as far as `score` treats each row by itself) and the folds of a head hold the same tokens in all; which fold holds which, and the
    key centre of a quantised `format`, may differ. The rows of all batch entries advance together. `append`, `attention` and `extend`
    never wait for the device; all else may. Nothing here is differentiable.

    Args:
        batch_size, n_kv_heads, head_dim: B, HK, D.
        sinks, pins, window, keep, folds: tokens (folds: summaries) that each pool holds per KV head; window at least 1, the
            others at least 0.
        format: format of keep.
        v_head_dim: DV; default D.
        dtype: of sinks, pins and window: bfloat16, float16 or float32.
        rope: a `RoPE`: past the trained length old rows are seen from nearer. Sinks, and each contiguous span of pins, move as one;
            a fold moves by the middle of its positions; rows of keep that are too old are folded. None: true positions.
        fold_tokens: how many tokens the folded text counts as in the softmax, all together and at most. A model has never seen more keys
            at once than it was trained on; the mass of many times as many, right as it is, drowns what is held exactly. None: as many as
            it is.
        score: callable (k ``[B, M, HK, D]``, v ``[B, M, HK, DV]``) → ``[B, M, HK]`` floating, what rows that leave the window are worth;
            NaN is lowest. Default: KeyDiff, 1 − cosine(key, mean key of all tokens of the head so far). Of equal rows the
            older goes first.
        device: where everything lies.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or size, named with what was expected.
    """

    @undisturbed()
    def __init__(
        self, batch_size, n_kv_heads, head_dim, *, sinks=16, pins=1024, window=512, keep=4096, folds=256, format="int4",
        v_head_dim=None, dtype=torch.bfloat16, rope=None, fold_tokens=None, score=None, device=None,
    ):  # fmt: skip
        sizes = bounded_checks.sizes(
            batch_size, n_kv_heads, head_dim, sinks=sinks, pins=pins, window=window, keep=keep, folds=folds, format=format,
            v_head_dim=v_head_dim, dtype=dtype, rope=rope, fold_tokens=fold_tokens, score=score,
        )  # fmt: skip
        self._pools = Pools(sizes, score, device)
        self._pins = Pins(self._pools)

    @staticmethod
    def estimate(batch_size, n_kv_heads, head_dim, **arguments):
        """`nbytes` of a cache with these arguments (those of the constructor), without allocating it."""
        return bounded_checks.sizes(batch_size, n_kv_heads, head_dim, **arguments).nbytes()

    @property
    def nbytes(self):
        """Bytes of all tensors held: rows, codes, scales, summaries, positions, tables. Never changes."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self._pools.tensors().values())

    @property
    def seen(self):
        """How many tokens were appended to each batch entry."""
        return self._pools.seen

    @undisturbed()
    def append(self, k, v, positions=None):
        """Take up S tokens.

        Args:
            k: ``[B, S, HK, D]``, any floating dtype, keys as the model attends to them (after its rotary positions).
            v: ``[B, S, HK, DV]``.
            positions: ``[S]`` or ``[B, S]`` int32 or int64, at least 0 and strictly increasing, from call to call too (not looked at);
                default: from 0 on, or continuing.

        Raises:
            TypeError, ValueError: an argument that does not fit the cache; nothing was appended then. What `score` raises
                leaves the first tokens of the call appended, `seen` says how many.
        """
        pools = self._pools
        bounded_checks.check_rows(pools.sizes, pools.device, k, v, positions)
        if k.shape[1] == 0:
            return
        if positions is not None:
            positions = positions.long().expand(*k.shape[:2])
        pools.append(k, v, positions)

    @undisturbed()
    def pin(self, batch, positions, boost=0.0):
        """Hold tokens exactly until they are unpinned; optionally give them a share of the attention.

        A token of window, sinks or keep (then of keep in every head, as it was quantised there) moves to the pins. A token that is
        pinned already keeps its place and gets the new boost. Together, the positions of one call get at least the share `boost` of the
        attention of every head and query that sees any of them: what they lack is added to their logits, the same for
        all, so that the share is reached exactly. Shares are of everything, learned sinks included. An error changes nothing.

        Rows are coded once, when they enter keep, with one exception: a row that goes from keep to pins and back (by `unpin`) is
        coded a second time, from what its first codes meant.

        Args:
            batch: number of the batch entry.
            positions: iterable of ints, as they were appended.
            boost: share in [0, 1); the boosts of all groups of an entry sum to less than 1. 0: no boost.

        Raises:
            TypeError, ValueError: positions that were never appended, or that were folded (in how many heads), or for which no slot
                is free (which), or a boost that is too much.
        """
        positions = bounded_checks.check_pins(self._pools.sizes, batch, positions)
        bounded_checks.check_boost(boost)
        self._pins.pin(int(batch), positions, boost)

    @undisturbed()
    def unpin(self, batch, positions):
        """Let go of pinned tokens: they return to sinks or window if they are young enough, else compete for keep as they
        are scored now, and are folded if they lose. An error changes nothing.

        A row that came to the pins from keep and goes back there is coded a second time, the one exception to rows being coded
        once: it may be rounded again.

        Args:
            batch: number of the batch entry.
            positions: iterable of ints.

        Raises:
            TypeError, ValueError: positions that are not pinned.
        """
        positions = bounded_checks.check_pins(self._pools.sizes, batch, positions)
        self._pins.unpin(int(batch), positions)

    def pinned(self, batch):
        """The pinned positions of a batch entry, a sorted list of ints."""
        bounded_checks.check_batch(self._pools.sizes, batch)
        return sorted(self._pins.slots[batch])

    def attention(
        self, q, *, k=None, return_report=False, return_view=False, scale=None, softcap=None, sinks=None, return_lse=False, backend="auto"
    ):  # fmt: skip
        """One softmax over sinks, pins, window, the best k of keep, and folds, for the tokens appended last.

        Query s is the token s − S from the end; it sees its own row and all older ones.

        Args:
            q: ``[B, S, HQ, D]`` fp32, fp16 or bf16; S at most `window` and the number of tokens seen.
            k: per query and KV head only the k rows of keep with the largest logit of any query head of the group are in
                the softmax, the others are as if dropped; None: all of keep.
            return_report: also return how the attention is shared between the pools.
            return_view: also return the share of every row that was read.
            scale, softcap, sinks: as in `selkey.attention` (sinks: learned, ``[HQ]``; not the pool).
            return_lse: also return the log-sum-exp ``[B, S, HQ]`` of everything read, boosts included, learned sinks not.
            backend: as in `selkey.attention`.

        Returns:
            out ``[B, S, HQ, DV]`` in q's dtype; then, as asked for, lse, a `Report` and a `View`, in that order.

        Raises:
            TypeError, ValueError: an argument of the wrong kind, dtype, device or shape.
            RuntimeError: q or sinks require a gradient, while gradients are recorded: there is none.
        """
        pools = self._pools
        bounded_checks.check_query(
            pools.sizes, pools.device, pools.seen, q, k, scale, softcap, sinks, backend, return_report=return_report,
            return_view=return_view, return_lse=return_lse,
        )  # fmt: skip
        with undisturbed():
            out, lse, report, view = reading.attention(
                pools, self._pins, q, k=k, scale=q.shape[-1] ** -0.5 if scale is None else scale, softcap=softcap, sinks=sinks,
                with_report=return_report, with_view=return_view, backend=backend,
            )  # fmt: skip
        chosen = (out, *([lse] if return_lse else ()), *([report] if return_report else ()), *([view] if return_view else ()))
        return chosen if len(chosen) > 1 else out

    def extend(self, q, k, v, *, positions=None, scale=None, softcap=None, sinks=None, backend="auto"):
        """Take up S tokens, and what their queries read: the way to feed a long text, a few tokens at a time.

        Every query sees its own row, those of the call before it, and the pools as they were before the call, in one softmax; only then
        are the rows appended. With ``keep=0, folds=0`` that is what it would see if the tokens came one by one: a row that would have
        left by then is hidden. Otherwise it sees at least as much as then: what leaves the window or keep during the call is still read
        as it was, and folded for later queries. With `rope`, a row that is too far by then is seen from within the trained range.

        Args:
            q: ``[B, S, HQ, D]`` fp32, fp16 or bf16; S at most `window`.
            k, v, positions: as in `append`.
            scale, softcap, sinks, backend: as in `attention`.

        Returns:
            ``[B, S, HQ, DV]`` in q's dtype.

        Raises:
            TypeError, ValueError: an argument of the wrong kind, dtype, device or shape; nothing was appended then.
            RuntimeError: q or sinks require a gradient, while gradients are recorded; nothing was appended.
        """
        pools = self._pools
        bounded_checks.check_rows(pools.sizes, pools.device, k, v, positions)
        bounded_checks.check_query(pools.sizes, pools.device, pools.seen + k.shape[1], q, None, scale, softcap, sinks, backend)
        if q.shape[1] != k.shape[1]:
            raise ValueError(f"q must have a query for every row of k, S={k.shape[1]}; got S={q.shape[1]}")
        with undisturbed():
            return extending.extend(
                pools, self._pins, q, k, v, positions, scale=q.shape[-1] ** -0.5 if scale is None else scale, softcap=softcap,
                sinks=sinks, backend=backend,
            )  # fmt: skip

    def _description(self):
        return bounded_state.describe(self._pools, self._pins)

    def __repr__(self):
        sizes = self._pools.sizes
        pools = ", ".join(f"{name}={getattr(sizes, name)}" for name in ("sinks", "pins", "window", "keep", "folds"))
        return f"BoundedCache({sizes.batch_size}, {sizes.n_kv_heads}, {sizes.head_dim}, {pools}, format={sizes.format!r}; seen={self.seen})"
