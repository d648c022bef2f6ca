"""What can be done to a whole KVCache: choose its entries, drop rows, keep it in a file."""

from selkey.cache import cropping, kv_state
from selkey.cache import entries as batch_entries
from selkey.cache.bounded_checks import check_path
from selkey.cache.surroundings import Copied, undisturbed


class Operations(Copied):
    """The part of `KVCache` that changes or copies what is stored. All of it may wait for the device; no row is coded again."""

    @undisturbed()
    def select(self, entries):
        """Go on with these batch entries, in this order; an entry that stands twice goes on as two.

        For a beam search, for answers that end, for several answers to one question. Without a capacity, entries that came from one share
        their whole pages, and no page is copied but the unfinished ones of repeats; with one, a repeated entry is copied, and a
        number of entries other than before takes new memory. With as many entries as before, tensors of a cache with a capacity stay where
        they are (a CUDA graph goes on reading them). The order that there is costs nothing.

        Args:
            entries: ``[B']`` ints from 0 to B − 1, or an int tensor.

        Raises:
            TypeError, ValueError: something else, or a repeated entry of a cache from `from_pages`, whose pages are not its own; the cache
                is then as it was.
        """
        batch_entries.select_kv(self, batch_entries.check_kv_entries(self, entries))

    @undisturbed()
    def crop(self, lengths):
        """Keep the first rows of every sequence; the rest are as if they had never come.

        Pages that are left empty are used again. The summary of a page that had been full is made from its remaining rows as they are
        stored, any other from what was appended. The centre of a head, and what it is made from, stay, unless no row is left. Of a cache
        from `from_pages` the pages behind are written by what is appended next.

        Args:
            lengths: rows that each sequence keeps: an int for all (shorter ones keep what they have), or ``[B]`` ints, none beyond
                the length of its sequence; an int tensor likewise.

        Raises:
            TypeError, ValueError: something else, or pages from elsewhere that another entry reads; the cache is then as it was.
        """
        cropping.crop_kv(self, cropping.check_lengths(self, lengths))

    @undisturbed()
    def clear(self):
        """Drop all rows: as if new. Without a capacity their memory is given back; a centre from `from_pages` stays."""
        cropping.clear_kv(self)

    def state(self):
        """(description, tensors) for `from_state`: what JSON can say, and tensors by name, which may be the cache's own."""
        return kv_state.describe(self)

    @classmethod
    @undisturbed()
    def from_state(cls, description, tensors, device=None):
        """The cache that `state` described; it continues as that one would have, to the bit.

        One that came from `from_pages` is then a cache with a capacity and pages of its own. Trees over its summaries are made again when
        they are asked for.

        Args:
            description: as `state` gave it, or back from JSON.
            tensors: mapping from name to tensor, or a callable that gives the tensor of a name. They are copied.
            device: where the cache is to lie.

        Raises:
            ValueError: they do not describe a KVCache.
        """
        return kv_state.restored(cls, description, tensors, device)

    @undisturbed()
    def save(self, path):
        """Write the cache to a file. It replaces one that is there at the end, at once: a failure leaves the old one whole.

        Raises:
            TypeError: path is none.
            OSError, SafetensorError: the file cannot be written.
        """
        check_path(path)
        kv_state.save(path, *self.state())

    @classmethod
    @undisturbed()
    def load(cls, path, device=None):
        """The cache that `save` wrote, as `from_state` makes it.

        Args:
            device: where it is to lie.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a file of a cache, of another version, truncated, or damaged: not a byte of it may have changed.
        """
        check_path(path)
        return kv_state.load(cls, path, device)
