"""A `SelkeyCache` in one file: every layer's rows, which slots were padding, the pins, the text."""

import torch
from transformers.cache_utils import DummyLayer, DynamicSlidingWindowLayer

from selkey import tensor_file
from selkey.cache.bounded_checks import check_path
from selkey.hf import support
from selkey.hf.feed import check_whole
from selkey.hf.kv_rows import members
from selkey.hf.layers import SelkeyLayer
from selkey.hf.padding import Slots
from selkey.hf.same_config import comparable, differences
from selkey.hf.served import Served
from selkey.hf.text import Transcript
from selkey.selection.observed import ObservedPolicy

FILE = tensor_file.Kind("selkey.hf.SelkeyCache", "1", "cache", "SelkeyCache.save")


def own_pools(layer):
    """{pool: (tokens held, bytes)} of a layer of transformers' own."""
    if isinstance(layer, DynamicSlidingWindowLayer):
        held = [rows for rows in (layer.keys, layer.values) if isinstance(rows, torch.Tensor)]
        rows = held[0].shape[0] * held[0].shape[-2] if held and held[0].dim() == 4 else 0
        return {"sliding": (rows, sum(rows.untyped_storage().nbytes() for rows in held))}
    states = [*getattr(layer, "conv_states", {}).values(), *getattr(layer, "recurrent_states", {}).values()]
    return {"states": (0, sum(state.untyped_storage().nbytes() for state in states if state is not None))} if states else {}


def save(cache, path):
    """See `SelkeyCache.save`."""
    check_path(path)
    tensor_file.write(path, FILE, *contents(cache))


def contents(cache):
    """What a file of a cache holds, ({name: tensor}, description), for `rebuilt`; ValueError where it cannot be put in one."""
    check_whole(cache)
    observing = [type(member).__name__ for member in members(cache.policy) if isinstance(member, ObservedPolicy)]
    if observing:
        raise ValueError(f"policy must be one that remembers nothing, to be saved; {', '.join(observing)} would forget what it observed")
    tensors, layers = {}, []
    for number, layer in enumerate(cache.layers):
        description, own = _state(layer, cache.served)
        layers.append(description)
        tensors |= {f"layer.{number}.{name}": tensor for name, tensor in own.items()}
    texts = [] if cache.transcript is None or not cache.seen else cache.transcript.state()
    tensors |= {f"text.{b}": tokens for b, tokens in enumerate(texts)}
    settings = {name: getattr(cache.settings, name) for name in ("format", "bounded", "capacity", "page_size", "summary_page")}
    batch_size = max(0, cache.full[0].batch_size) if cache.full else 0
    description = {
        "model": _model(cache.served, cache._feed.model()),
        "settings": settings | {"rope": cache.settings.rope is not None},
        "policy": _named(cache.policy),
        "pins": [cache.pins.pinned(b) for b in range(batch_size)],
        "texts": len(texts),
        "layers": layers,
    }
    return tensors, description


def load(cls, path, model, tokenizer, policy):
    """See `SelkeyCache.load`."""
    check_path(path)
    with tensor_file.opened(path, FILE) as (file, description):
        # what cannot be continued is said before much is read
        _check(path, description, model, policy)
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        return rebuilt(cls, path, tensors, description, model, tokenizer, policy)


def rebuilt(cls, path, tensors, description, model, tokenizer=None, policy=None):
    """The cache of which `contents` came from the file at `path`; ValueError where it is of another model or policy."""
    _check(path, description, model, policy)
    cache = cls(model, tokenizer=tokenizer, policy=policy, **description["settings"])
    device = next(cache._feed.model().parameters()).device
    for b, positions in enumerate(description["pins"]):
        cache.pins.pin(b, positions)
    for number, (layer, of_layer) in enumerate(zip(cache.layers, description["layers"], strict=True)):
        prefix = f"layer.{number}."
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        _restore(layer, of_layer, own, device)
    if tokenizer is not None:
        known = [tensors[f"text.{b}"] for b in range(description["texts"])]
        cache.transcript = Transcript.from_state(tokenizer, known or [[] for _ in description["pins"]])
    return cache


def _check(path, description, model, policy):
    saved, given = description["policy"], _named(policy)
    if saved != given:
        raise ValueError(f"policy must be that of the saved cache, {_spoken(saved)}, to continue {path}; got {_spoken(given)}")
    _check_model(description["model"], support.check_model(model), path)


def _state(layer, served):
    if isinstance(layer, SelkeyLayer):
        rows, tensors = (None, {}) if layer.rows is None else layer.rows.state()
        return {"slots": layer.slots.state(), "dtype": str(layer.dtype).removeprefix("torch."), "rows": rows}, tensors
    if isinstance(layer, DummyLayer):
        return None, {}
    if type(layer) is not DynamicSlidingWindowLayer:
        raise ValueError(f"{served} has a layer, {type(layer).__name__}, whose states SelkeyCache cannot write to a file")
    if not layer.is_initialized:
        return {"seen": 0}, {}
    return {"seen": layer.cumulative_length}, {"keys": layer.keys, "values": layer.values}


def _restore(layer, description, tensors, device):
    if isinstance(layer, SelkeyLayer):
        layer.slots = Slots.from_state(description["slots"])
        if description["rows"] is not None:
            layer.rows = layer.kind.from_state(description["rows"], tensors, layer.policy, layer.pins, device)
            layer.restored(getattr(torch, description["dtype"]), torch.empty(0, device=device).device)
    elif tensors:
        layer.lazy_initialization(tensors["keys"].to(device), tensors["values"].to(device))
        layer.keys, layer.values, layer.cumulative_length = tensors["keys"].to(device), tensors["values"].to(device), description["seen"]


def _model(served, model):
    """What two models that can continue each other's caches have in common; `model` may be gone."""
    dtype = None if model is None else str(model.dtype).removeprefix("torch.")
    return {"class": served.name.split(" ")[0], "dtype": dtype, "config": comparable(served.config)}


def _check_model(saved, model, path):
    own = _model(Served(model), model)
    differing = [f"{name} {saved[name]} instead of {own[name]}" for name in ("class", "dtype") if saved[name] not in (own[name], None)]
    differing += differences(saved["config"], own["config"])
    if differing:
        raise ValueError(
            f"path must be that of a cache of this model, {support.describe(model)}; {path} was written by another model: "
            f"{', '.join(differing)}. Load it with that model, or make a new SelkeyCache(model)"
        )


def _named(policy):
    """A policy by its class and plain arguments, as JSON can say it."""
    if policy is None:
        return None
    public = sorted((name, value) for name, value in vars(policy).items() if name[0] != "_")
    plain = {name: value for name, value in public if isinstance(value, (int, float, str, type(None)))}
    return [type(policy).__name__, plain, [_named(member) for member in members(policy) if member is not policy]]


def _spoken(named):
    """What `_named` returned, as one would write it."""
    if named is None:
        return "None"
    name, plain, inner = named
    arguments = [f"{key}={value!r}" for key, value in plain.items() if value is not None]
    return f"{name}({', '.join([*map(_spoken, inner), *arguments])})"
