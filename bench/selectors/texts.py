"""Keys that resemble their neighbours, as those of a text do, without end; and queries that look for some of them."""

import torch

SECTION, CHAPTER = 256, 2048
# small enough that a query's attention is spread over some sections and all of their keys
_SHARPNESS = 0.5


class Texts:
    """A key is the centre of its chapter, that of its section, and noise; a query is one of the keys, disturbed.

    Args:
        heads, kv_heads, width: HQ, HK, D.
        seed: decides all of it.
    """

    def __init__(self, heads, kv_heads, width, seed):
        self.heads, self.kv_heads, self.width = heads, kv_heads, width
        self.random = torch.Generator().manual_seed(seed)

    def rows(self, count):
        """The next keys and values ``[1, count, HK, D]`` bf16; `count` is a multiple of `CHAPTER`."""
        chapters, sections = (self.draw(count // size, self.kv_heads, self.width).repeat_interleave(size, 0) for size in (CHAPTER, SECTION))
        keys = chapters + 0.7 * sections + self.draw(count, self.kv_heads, self.width)
        return keys[None].bfloat16(), self.draw(1, count, self.kv_heads, self.width).bfloat16()

    def queries(self, cache, count):
        """Queries ``[1, count, HQ, D]`` bf16 like keys at random positions of a cache."""
        places = torch.randint(cache.rows, (1, count), generator=self.random)
        keys = cache.store.read(places)[0].float().repeat_interleave(self.heads // self.kv_heads, 2)
        return (_SHARPNESS * (keys + self.draw(*keys.shape))).bfloat16()

    def draw(self, *shape):
        """Normal numbers, fp32."""
        return torch.randn(shape, generator=self.random)
