"""The model that a `SelkeyCache` serves: what must be so when the cache is made and whenever it is used, and the errors that say so."""

import copy
import inspect
import weakref
from dataclasses import dataclass

import torch

from selkey import checks
from selkey.cache.bounded import BoundedCache
from selkey.cache.kv_cache import KVCache
from selkey.cache.rope import RoPE
from selkey.hf import support
from selkey.hf.kv_rows import FORMATS, members
from selkey.hf.padding import Packer
from selkey.kernels.formats import FORMATS as ALL_FORMATS
from selkey.selection.observed import ObservedPolicy
from selkey.selection.policy import Policy

SIZES = ("sinks", "pins", "window", "keep", "folds", "fold_tokens")
# layers of transformers' own, whose memory does not grow
CONSTANT = ("sliding_attention", "chunked_attention", "linear_attention", "conv", "dummy")
_INSTEAD = "use DynamicCache(config=model.config)"


@dataclass(frozen=True)
class Settings:
    """How rows are stored; the arguments of `SelkeyCache`."""

    format: str | None
    bounded: dict | None
    capacity: int | None
    page_size: int
    summary_page: int | None
    rope: RoPE | None


class Served:
    """A model by its name and config; the same for a cache and its copies."""

    def __init__(self, model):
        self.name = support.describe(model)
        self._takes_cache = "past_key_values" in inspect.signature(type(model.base_model).forward).parameters
        self.config = model.config.get_text_config(decoder=True)
        # not by their config: two models may have been made with one
        self._modules = weakref.WeakSet(model.modules())
        self.packing = Packer()

    def __deepcopy__(self, memo):
        return self

    def __str__(self):
        return self.name

    def check_implementation(self):
        if self.config._attn_implementation != "selkey":
            raise ValueError(
                f"{self} must attend with attn_implementation='selkey' to read a SelkeyCache; got {self.config._attn_implementation!r}: "
                "model.set_attn_implementation('selkey')"
            )

    def check_module(self, module):
        if module not in self._modules:
            raise self.other("another model", f"{type(module).__name__} of another one")
        if not getattr(module, "is_causal", True):
            raise ValueError(f"{self} lets tokens see later ones (is_causal=False), which no SelkeyCache can serve: {_INSTEAD}")

    def other(self, what, came):
        return ValueError(f"this SelkeyCache was made for {self}, and {what} uses it: {came}. Make one for that model: SelkeyCache(model)")

    def check_nothing_asked(self, **arguments):
        """For a model without full attention."""
        for name, value in arguments.items():
            if value is not None:
                raise ValueError(
                    f"{name} must be None for {self}, which has no layer with full attention that it could apply to: its cache is of "
                    f"constant size already; {_INSTEAD}. Got {value!r}"
                )

    def kinds(self):
        """The kind of every layer, of which `CONSTANT` stay with transformers, and transformers' own layers.

        Raises:
            ValueError: a model that no SelkeyCache can serve.
        """
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, get_layer_types_and_kwargs

        if getattr(self.config, "is_encoder_decoder", False):
            raise ValueError(f"{self} is an encoder-decoder, whose cross-attention keeps rows of another text: use its own cache")
        if not getattr(self.config, "is_causal", True):
            raise ValueError(f"{self} lets tokens see later ones (config.is_causal=False), which no SelkeyCache can serve: {_INSTEAD}")
        if not self._takes_cache:
            raise ValueError(f"{self} takes no past_key_values: it has no keys and values that a SelkeyCache could hold; use its own cache")
        if "reuse" in (getattr(self.config, "kv_sharing_modes", None) or ()):
            raise ValueError(f"{self} has layers that read the rows of other layers, which a SelkeyCache cannot lend: {_INSTEAD}")
        kinds, _ = get_layer_types_and_kwargs(self.config)
        own = DynamicCache(config=self.config).layers
        for number, (kind, layer) in enumerate(zip(kinds, own, strict=True)):
            is_plain = type(layer) is (DynamicLayer if kind == "full_attention" else DynamicSlidingWindowLayer)
            if kind not in ("full_attention", *CONSTANT) or (kind.endswith("_attention") and kind != "linear_attention" and not is_plain):
                raise ValueError(
                    f"{self} has a layer {number} of the type {kind!r}, which keeps more than keys and values or selects by itself: "
                    f"no SelkeyCache can serve it; {_INSTEAD} with attn_implementation='selkey', which reads what the model selects"
                )
        if not any(kind.endswith("attention") and kind != "linear_attention" for kind in kinds):
            raise ValueError(f"{self} has no attention layer, whose keys and values a SelkeyCache could hold: {_INSTEAD}")
        if getattr(self.config, "kv_lora_rank", None):
            raise ValueError(
                f"{self} stores latent rows (MLA) and expands them between the cache and the attention, where no SelkeyCache can be: "
                f"{_INSTEAD}"
            )
        return kinds, own

    def geometry(self):
        """HQ, HK, D of a full layer, as far as the config says."""
        config = self.config
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        return heads, getattr(config, "num_key_value_heads", None) or heads, width


def check_settings(served, dtype, settings, policy):
    """All arguments of a `SelkeyCache` but the model; raises TypeError or ValueError before anything is stored."""
    if dtype not in FORMATS:
        raise TypeError(f"{served} must compute in {', '.join(map(str, FORMATS))} for a SelkeyCache; got {dtype}: model.to(torch.bfloat16)")
    if settings.format in ALL_FORMATS and ALL_FORMATS[settings.format].is_joint:
        raise ValueError(f"format must be one of keys and values apart; got {settings.format!r}, of MLA, which {served} does not store")
    heads, kv_heads, width = served.geometry()
    if settings.bounded is not None:
        if policy is not None:
            raise ValueError("policy must be None with bounded: a BoundedCache chooses itself what it keeps, and all that it keeps is read")
        for name in ("capacity", "summary_page"):
            if getattr(settings, name) is not None:
                raise ValueError(f"{name} must be None with bounded, whose memory is constant; got {getattr(settings, name)!r}")
        unknown = sorted(set(settings.bounded) - set(SIZES))
        if unknown:
            raise ValueError(f"bounded must have keys of {', '.join(SIZES)}; got {', '.join(map(repr, unknown))}")
        BoundedCache.estimate(
            1, kv_heads, width, format=settings.format or FORMATS[dtype], dtype=dtype, rope=settings.rope, **settings.bounded
        )  # fmt: skip
        return
    probe = KVCache(
        1, kv_heads, width, format=settings.format or FORMATS[dtype], page_size=settings.page_size, capacity=settings.capacity,
        summary_page=settings.summary_page, dtype=dtype,
    )  # fmt: skip
    if policy is not None:
        _check_policy(served, policy, probe, heads, dtype)


def _check_policy(served, policy, cache, heads, dtype):
    """A policy that can choose by queries and a cache alone; tried on one token."""
    if not isinstance(policy, Policy):
        raise TypeError(f"policy must be a policy of selkey.selection, or None; got {policy!r}")
    if all(isinstance(member, ObservedPolicy) for member in members(policy)):
        raise ValueError(
            f"policy must choose something before it has observed anything; got {type(policy).__name__} alone: "
            "selkey.selection.Union(Sinks(4), Window(512), policy)"
        )
    cache.append(torch.zeros(1, 1, cache.n_kv_heads, cache.head_dim), torch.zeros(1, 1, cache.n_kv_heads, cache.head_dim))
    try:
        copy.deepcopy(policy).select(torch.zeros(1, 1, heads, cache.head_dim, dtype=dtype), cache, query_offset=0)
    except (TypeError, ValueError) as problem:
        reason = str(problem).replace("KVCache(...", "SelkeyCache(model, ...")
        raise ValueError(
            f"policy must choose by queries and keys, which are all that {served} hands over; {type(policy).__name__} cannot: {reason}"
        ) from problem


def check_bounded(bounded, rope):
    """The argument `bounded` as a dict of sizes, or None."""
    if bounded is None or bounded is False:
        if rope:
            raise ValueError(f"rope must be False without bounded: a KVCache has all rows where they were; got {rope!r}")
        return None
    if bounded is True:
        return {}
    if not isinstance(bounded, dict):
        raise TypeError(f"bounded must be True, or a dict of the sizes {', '.join(SIZES)}; got {bounded!r}")
    return dict(bounded)


def check_batch(batch, batch_size):
    if not checks._is_int(batch):
        raise TypeError(f"batch must be an int, the number of the batch entry; got {batch!r}")
    if not 0 <= batch < batch_size:
        raise ValueError(f"batch must be from 0 to {batch_size - 1}; got {batch}" if batch_size else "batch must be an entry that was fed")
