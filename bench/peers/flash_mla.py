"""FlashMLA's sparse decode over latent rows of 656 bytes, as they lie in a `selkey.KVCache` of format mla_fp8.

Both read the same bytes: the error that counts is that against the coded rows.
"""

from selkey.bench import cost
from selkey.bench.peers import installed
from selkey.bench.peers.cached import filled

NAME = "flash_mla"
READS = "selected"
FORMAT = "mla_fp8"
WIDTH, VALUE_WIDTH = 576, 512
# a program takes so many keys of a list at a time
_LIST_STEP = 64
_SOURCE = "git+https://github.com/deepseek-ai/FlashMLA"


class Filled:
    """The implementation with its cache.

    Args:
        inputs: `selkey.bench.inputs.Inputs`, latent.
    """

    NAME, READS, FORMAT = NAME, READS, FORMAT

    def __init__(self, inputs):
        import flash_mla
        import torch

        self._module = flash_mla
        self.cache, self.append_us_per_token = filled(FORMAT, inputs)
        records = self.cache.store.tensors["records"]  # [pages · rows of a page, 1, 656]
        self.pages = records.view(torch.float8_e4m3fn).unflatten(0, (-1, self.cache.page_size))
        # made by the first call, valid as long as shapes stay
        self.schedule = flash_mla.get_mla_metadata()[0]

    def attend(self, inputs):
        out, _ = self._module.flash_mla_with_kvcache(
            inputs.q, self.pages, None, None, VALUE_WIDTH, self.schedule, None, inputs.scale, False, True,
            places_in_pages(inputs.indices, self.cache.page_size * self.cache.store.tensors["pages"].shape[1]),
        )  # fmt: skip
        return out


def places_in_pages(indices, rows_of_a_sequence):
    """Lists ``[B, S, 1, K]`` as places ``[B, S, K]`` in the table of all pages, which lie in order."""
    import torch

    first = torch.arange(len(indices), dtype=torch.int32, device=indices.device)[:, None, None] * rows_of_a_sequence
    return (indices[:, :, 0].int() + first).contiguous()


def prepare(inputs):
    return Filled(inputs)


def version():
    return installed.version("flash_mla")


def backend(device):
    return "flash_mla_with_kvcache, sparse, fp8 rows"


def unavailable(case, device):
    if not case.is_latent or (case.head_dim, case.v_head_dim) != (WIDTH, VALUE_WIDTH):
        return f"it reads latent rows of {WIDTH} columns, of which {VALUE_WIDTH} are the value: see --workload mla"
    if case.dtype != "bf16":
        return "it wants queries in bf16: --dtype bf16"
    if case.n_heads not in (64, 128):
        return f"it has kernels for 64 and 128 heads, this case has {case.n_heads}"
    if case.page > 1 or case.k % _LIST_STEP:
        return f"its lists name single keys, a multiple of {_LIST_STEP} of them; this case has {case.k}"
    return installed.not_one_query(case) or installed.missing("flash_mla", _SOURCE, device=device, capability=(9, 0))


def copy_bytes(case):
    return cost.cache_bytes(case, FORMAT)


def extra_bytes(case, device):
    """The output, lse and the lists; partial results of the split over the list, in fp32, at most as many as multiprocessors."""
    queries = case.batch * case.q_len
    splits = 132
    partials = splits * case.n_heads * (case.v_head_dim + 1) * 4
    return cost.output_bytes(case) + 4 * queries * case.n_heads + 4 * queries * case.k + partials
