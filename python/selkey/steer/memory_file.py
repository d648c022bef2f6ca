"""The memory of a session in one file: the text and who wrote what, the marks, the cache, and how to go on."""

import copy
import secrets

import torch

from selkey import tensor_file
from selkey.steer import marks as spans
from selkey.steer import state
from selkey.steer.limits import DEVICES, NAME
from selkey.steer.looks import Looks
from selkey.steer.pools import POOLS
from selkey.steer.text import HUMAN, MODEL, RECALLED, Text
from selkey.steer.undo import History

SUFFIX = ".memory"
_FILE = tensor_file.Kind("selkey.steer.Session", "1", "session", "selkey steer")


class NoMemory(FileNotFoundError):
    """There is no memory of this name."""


def memories(folder):
    """[{"name", "bytes", "time" (seconds since 1970)}] of the files in a folder, the newest first."""
    found = []
    for path in folder.glob("*" + SUFFIX):
        if NAME.fullmatch(path.stem) and path.is_file() and not path.is_symlink():
            stat = path.stat()
            found.append({"name": path.stem, "bytes": stat.st_size, "time": stat.st_mtime})
    return sorted(found, key=lambda memory: -memory["time"])


def path_of(folder, name):
    """The file of a memory; ValueError where a name is none. No name leads out of the folder."""
    if not isinstance(name, str) or not NAME.fullmatch(name) or DEVICES.fullmatch(name):
        raise ValueError(f"a name has 1 to 64 of the characters A-Z, a-z, 0-9, _ and -; got {str(name)[:80]!r}")
    path = folder / (name + SUFFIX)
    if path.is_symlink():
        raise ValueError(f"{name} is a link to elsewhere, which is neither read nor written")
    return path


def save(session, name):
    """See `Session.save`; OSError where it cannot be written."""
    from selkey.hf import cache_file

    tensors, description = ({}, None) if not len(session.text) else cache_file.contents(session.cache)
    own = {
        "ids": torch.tensor(session.text.ids.tolist(), dtype=torch.int64),
        "by": torch.tensor(list(session.text.by), dtype=torch.uint8),
        "generator": session.sampler.generator.get_state(),
    }
    if session.logits is not None:
        own["logits"] = session.logits
    whole = {f"cache.{name}": tensor for name, tensor in tensors.items()} | {f"session.{name}": tensor for name, tensor in own.items()}
    sampling = {"temperature": session.sampler.temperature, "seed": session.sampler.seed}
    tensor_file.write(
        path_of(session.folder, name), _FILE, whole,
        {"cache": description, "marks": session.marks, "bounded": session.bounded, "model": session.name, **sampling},
    )  # fmt: skip


def load(session, name):
    """See `Session.load`; nothing has changed where it raises.

    Raises:
        NoMemory, OSError: there is no such memory, or it cannot be read.
        ValueError: it is damaged, of another model, or not what `save` writes. Its checksum tells no forgery: all of it is looked at.
    """
    path = path_of(session.folder, name)
    if not path.is_file():
        raise NoMemory(f"there is no memory {name} in {session.folder}")
    with tensor_file.opened(path, _FILE) as (file, description):
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    before = dict(vars(session))
    try:
        vars(session).update(_found(session, path, tensors, description))
        # what can be read can be shown, too
        state.describe(session)
    except Exception as problem:
        vars(session).update(before)
        reason = problem if isinstance(problem, ValueError) else f"{type(problem).__name__}: {problem}"
        raise ValueError(f"{name} is no memory that can be gone on with here: {reason}") from problem


def _found(session, path, tensors, description):
    """{attribute: value} of the session that was saved."""
    from selkey.hf import SelkeyCache, cache_file

    def check(what, is_so):
        if not is_so:
            raise ValueError(f"its {what} cannot be, selkey steer writes no such thing")

    bounded, marks, model = description["bounded"], description["marks"], session.model
    ids, by = tensors["session.ids"], tensors["session.by"]
    rows = model.get_input_embeddings().weight.shape[0]
    check("pools", all(type(bounded[name]) is int for name in POOLS))
    check("text", ids.dtype == torch.int64 and by.dtype == torch.uint8 and ids.dim() == 1 and by.shape == ids.shape)
    check("text", all(0 <= token < rows for token in ids.tolist()) and set(by.tolist()) <= set((HUMAN + MODEL + RECALLED).encode()))
    check("marks", all(len(mark) == 3 and type(mark[0]) is type(mark[1]) is int and type(mark[2]) in (int, float) for mark in marks))
    edges = [edge for start, stop, _ in marks for edge in (2 * start, 2 * stop - 1)]
    check("marks", edges == sorted(edges) and (not marks or (edges[0] >= 0 and edges[-1] < 2 * len(ids))))
    check("boosts", all(0 <= boost < 1 for *_, boost in marks) and sum(boost for *_, boost in marks) < 1)
    held, temperature, seed = spans.positions(marks), description["temperature"], description["seed"]
    check("marks", len(held) <= bounded["pins"])
    check("temperature", type(temperature) in (int, float) and 0 <= temperature <= 100)
    check("seed", type(seed) is int and 0 <= seed < 2**64)

    cache, logits = SelkeyCache(model, bounded=bounded, rope=True), None
    check("cache", (description["cache"] is None) == (len(ids) == 0))
    if len(ids):
        settings, layers = cache.settings, len(cache.full)
        own = {name.removeprefix("cache."): tensor for name, tensor in tensors.items() if name.startswith("cache.")}
        cache = cache_file.rebuilt(SelkeyCache, path.name, own, description["cache"], model)
        check("cache", cache.settings == settings and [layer.slots.seen for layer in cache.full] == [len(ids)] * layers)
        check("cache", cache.full[0].batch_size == 1 and cache.pinned() == sorted(held))
        logits = tensors["session.logits"].to(model.device)
        check("logits", logits.is_floating_point() and logits.shape == model.get_output_embeddings().weight.shape[:1])

    sampler, text, looks = copy.deepcopy(session.sampler), Text(session.tokenizer), Looks()
    sampler.temperature, sampler.seed = temperature, seed
    sampler.generator.set_state(tensors["session.generator"])
    for token, writer in zip(ids.tolist(), bytes(by.tolist()).decode(), strict=True):
        text.append(token, writer)
    cache.watch(looks.note)
    return {
        "bounded": bounded, "text": text, "marks": [(start, stop, float(boost)) for start, stop, boost in marks], "cache": cache,
        "logits": logits, "sampler": sampler, "looks": looks, "epoch": secrets.token_hex(4), "_past": History(), "shown": [],
    }  # fmt: skip
