"""Tensors and what describes them in a file: safetensors, whole or not at all.

The header says what the file is and in which version, and holds a description in JSON and the SHA-256 of all that. It tells damage,
not forgery.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "I32": torch.int32,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class Kind(NamedTuple):
    """What a file is.

    Attributes:
        format, version: names in its header.
        field: of the header that holds the description; the word for what is described.
        writer: the call that writes such files, for errors.
    """

    format: str
    version: str
    field: str
    writer: str


def write(path, kind, tensors, description):
    """Write tensors and a description (what JSON can say) to `path`; until all is on the disk, what was there stays.

    Raises:
        OSError: the file cannot be written, as on a full disk; nothing has changed then.
    """
    path = os.path.realpath(path)
    temporary = _new_file_beside(path)
    try:
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        text = json.dumps(description)
        metadata = {"format": kind.format, "version": kind.version, kind.field: text, "sha256": checksum(text, tensors, tensors.get)}
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error
        os.chmod(temporary, _mode_of(path))
        _flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    if os.name == "posix":
        # the new name of the file, too
        _flush(os.path.dirname(path))


def is_of(path, kind):
    """Whether there is a file that says in its header that it is of the kind, in whatever version."""
    if not os.path.isfile(path):
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") == kind.format
    except (SafetensorError, OSError):
        return False


@contextlib.contextmanager
def opened(path, kind):
    """Open a file that `write` has written: yields (file, description).

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no such file, of another version, not whole, or damaged.
    """
    path = os.fspath(path)
    if os.path.exists(path) and not os.path.isfile(path):
        found = "a folder" if os.path.isdir(path) else "a device, a pipe or a socket"
        raise ValueError(f"{path} must be a file that {kind.writer} has written; it is {found}")
    try:
        file = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path} must be a file that {kind.writer} has written, whole; it is damaged or another: {error}") from error
    with file:
        metadata = file.metadata() or {}
        for name in ("format", "version"):
            if metadata.get(name) != getattr(kind, name):
                raise ValueError(f"{path} must be of {name} {getattr(kind, name)!r}; got {metadata.get(name)!r}")
        text = metadata.get(kind.field, "")
        if metadata.get("sha256") != checksum(text, file.keys(), file.get_tensor):
            raise ValueError(f"{path} must hold what {kind.writer} wrote; it is damaged: its SHA-256 differs from the one noted there")
        try:
            description = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{path} must describe its {kind.field} in JSON; it does not: {error!r}") from error
        yield file, description


def checksum(text, names, get):
    """SHA-256 of a description and of the tensors that `get` gives for `names`, whatever their order, in hexadecimal digits."""
    digest = hashlib.sha256(json.dumps([text, len(names)]).encode())
    for name in sorted(names):
        tensor = get(name)
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def check_tensors(path, kind, file, layout):
    """Compare the tensors of a file with {name: (shape, dtype)}; ValueError where they differ."""
    names = set(file.keys())
    if names != set(layout):
        differing = sorted(names ^ set(layout))
        raise ValueError(f"{path} must hold the tensors of its {kind.field}; missing or unknown: {', '.join(differing[:8])}")
    for name, (shape, dtype) in layout.items():
        stored = file.get_slice(name)
        got = (tuple(stored.get_shape()), _DTYPES.get(stored.get_dtype(), stored.get_dtype()))
        if got != (tuple(shape), dtype):
            raise ValueError(f"{path}: {name} must have shape {list(shape)} and dtype {dtype}; got {list(got[0])} and {got[1]}")


def _new_file_beside(path):
    """An empty file in the folder of `path`, under a name of its own."""
    if os.path.isdir(path):
        raise IsADirectoryError(f"path must be that of a file; got the folder {path}")
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(f"path must be that of a file; got {path}, a device, a pipe or a socket")
    folder, name = os.path.split(path)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"path must be in a folder that exists; got {path}, where {folder} is none")
    handle, temporary = tempfile.mkstemp(prefix=f".{name}.", suffix=".part", dir=folder)
    os.close(handle)
    return temporary


def _mode_of(path):
    """The permissions of the file, or those that a new one gets."""
    if os.path.exists(path):
        return os.stat(path).st_mode & 0o7777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _flush(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
