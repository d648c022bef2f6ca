"""What can be done to a whole BoundedCache: choose its entries, drop tokens, keep it in a file."""

from selkey.cache import bounded_checks, bounded_state
from selkey.cache.cropping import check_tokens, crop_bounded
from selkey.cache.entries import check_entries, select_bounded
from selkey.cache.surroundings import Copied, undisturbed


class Operations(Copied):
    """The part of `BoundedCache` that changes or copies what is stored. All of it may wait for the device; no row is coded again."""

    @undisturbed()
    def select(self, entries):
        """Go on with these batch entries, in this order; an entry that stands twice goes on as two, each with its pins and boosts.

        With as many entries as before every tensor stays where it is (a CUDA graph goes on reading it), and the order that there is
        costs nothing; another number takes new memory.

        Args:
            entries: ``[B']`` ints from 0 to B − 1, at least one, or an int tensor.

        Raises:
            TypeError, ValueError: something else; the cache is then as it was.
        """
        entries = check_entries(entries, self._pools.sizes.batch_size)
        if not entries:
            raise ValueError("entries must name at least one batch entry; got none")
        select_bounded(self._pools, self._pins, entries)

    @undisturbed()
    def crop(self, tokens):
        """Keep the first `tokens` tokens; the rest are as if they had never come, and those of them that are pinned are unpinned.

        Only where nothing is lost: what left the window is coded, folded or dropped, and does not come back. A pin or `unpin` of
        another token that was made meanwhile stands, with the boosts of what is left of its group.

        Args:
            tokens: int from 0 to `seen`.

        Raises:
            TypeError: tokens is no int.
            ValueError: it is outside of that, or tokens left the window that would be in it; nothing was changed.
        """
        crop_bounded(self._pools, self._pins, check_tokens(self._pools, tokens))

    @undisturbed()
    def clear(self):
        """Forget every token and every pin: as if new, in the same memory."""
        self._pools.clear()
        self._pins.clear()

    def state(self):
        """(description, tensors) for `from_state`: what JSON can say, and the cache's own tensors by name, not copied."""
        return self._description(), self._pools.tensors()

    @classmethod
    def from_state(cls, description, tensors, device=None, *, score=None):
        """The cache that `state` described; it continues as that one would have, to the bit.

        Args:
            description: as `state` gave it, or back from JSON.
            tensors: mapping from name to tensor, or a callable that gives the tensor of a name. They are copied.
            device: where the cache is to lie.
            score: the `score` of that cache; must be given iff it had one.

        Raises:
            ValueError: they do not describe a BoundedCache.
        """
        return bounded_state.restored(cls, description, tensors, device, score)

    def save(self, path):
        """Write the cache to a file. It replaces one that is there at the end, at once: a failure leaves the old one whole.

        Raises:
            OSError, SafetensorError: the file cannot be written.
        """
        bounded_checks.check_path(path)
        bounded_state.save(path, *self.state())

    @classmethod
    def load(cls, path, device=None, *, score=None):
        """The cache that `save` wrote; it continues as the saved one would have, to the bit.

        Args:
            device: where it is to lie.
            score: the `score` of the saved cache, which no file can hold; must be given iff it had one.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a file of a cache, of another version, truncated, or damaged: not a byte of it may have changed.
        """
        bounded_checks.check_path(path)
        return bounded_state.load(cls, path, device, score)
