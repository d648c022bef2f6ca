"""The memory of a session in one file: the text and who wrote what, the marks, the cache, and how to go on."""

import re

import torch

from selkey import tensor_file
from selkey.steer.text import Text

SUFFIX = ".memory"
_FILE = tensor_file.Kind("selkey.steer.Session", "1", "session", "selkey steer")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
# names that some systems take for devices
_DEVICES = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9])", re.IGNORECASE)


def memories(folder):
    """[{"name", "bytes", "time" (seconds since 1970)}] of the files in a folder, the newest first."""
    found = []
    for path in folder.glob("*" + SUFFIX):
        if _NAME.fullmatch(path.stem) and path.is_file() and not path.is_symlink():
            stat = path.stat()
            found.append({"name": path.stem, "bytes": stat.st_size, "time": stat.st_mtime})
    return sorted(found, key=lambda memory: -memory["time"])


def path_of(folder, name):
    """The file of a memory; ValueError where a name is none. No name leads out of the folder."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or _DEVICES.fullmatch(name):
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
        FileNotFoundError, OSError: there is no such memory, or it cannot be read.
        ValueError: it is damaged, or of another model.
    """
    from selkey.hf import SelkeyCache, cache_file

    path = path_of(session.folder, name)
    if not path.is_file():
        raise FileNotFoundError(f"there is no memory {name} in {session.folder}")
    with tensor_file.opened(path, _FILE) as (file, description):
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    cache = None
    if description["cache"] is not None:
        own = {name.removeprefix("cache."): tensor for name, tensor in tensors.items() if name.startswith("cache.")}
        cache = cache_file.rebuilt(SelkeyCache, path.name, own, description["cache"], session.model)
    text = Text(session.tokenizer)
    for token, by in zip(tensors["session.ids"].tolist(), bytes(tensors["session.by"].tolist()).decode(), strict=True):
        text.append(token, by)
    session.clear()
    session.bounded = description["bounded"]
    session.text, session.marks = text, [(int(start), int(stop), float(boost)) for start, stop, boost in description["marks"]]
    session.sampler.temperature, session.sampler.seed = description["temperature"], description["seed"]
    session.sampler.generator.set_state(tensors["session.generator"])
    session.logits = tensors["session.logits"].to(session.model.device) if "session.logits" in tensors else None
    if cache is not None:
        session.cache = cache
        session.cache.watch(session.looks.note)
