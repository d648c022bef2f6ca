"""save and load: whole or not at all, and afterwards as if nothing had happened."""

import json
import os
import struct

import pytest
import torch
from bounded_caches import one_thread  # noqa: F401  a fixture
from safetensors.torch import load_file, save_file

from selkey import tensor_file
from selkey.cache.bounded import BoundedCache
from selkey.cache.rope import RoPE

B, HK, HQ, D = 2, 2, 4, 16


def make(**arguments):
    small = {"sinks": 2, "pins": 6, "window": 70, "keep": 9, "folds": 4, "format": "int4", "v_head_dim": 8}
    cache = BoundedCache(B, HK, D, **(small | arguments))
    generator = torch.Generator().manual_seed(0)
    for S in (75, 3, 130):
        cache.append(torch.randn(B, S, HK, D, generator=generator), torch.randn(B, S, HK, 8, generator=generator))
        cache.pin(0, [cache.seen - 1, cache.seen - 2], boost=0.2)
    cache.pin(1, [cache.seen - 30])
    return cache


def score(k, v):
    return v[..., 0]


@pytest.mark.parametrize(
    "arguments",
    [{}, {"format": "bf16", "dtype": torch.float32}, {"keep": 0}, {"folds": 0, "sinks": 0}, {"score": score}, {"format": "int2"},
     {"rope": RoPE([1.0, 0.5, 0.2, 0.03, 0.7], 90, True)}],
    ids=lambda arguments: " ".join(arguments) or "defaults",
)  # fmt: skip
def test_a_loaded_cache_continues_to_the_bit(tmp_path, arguments):
    cache = make(**arguments)
    cache.save(tmp_path / "memory")
    other = BoundedCache.load(str(tmp_path / "memory"), device="cpu", score=arguments.get("score"))
    assert repr(other) == repr(cache) and other.nbytes == cache.nbytes
    for step in range(5):
        assert other.seen == cache.seen and [other.pinned(b) for b in range(B)] == [cache.pinned(b) for b in range(B)]
        for name, tensor in cache._pools.tensors().items():
            assert torch.equal(tensor.view(torch.uint8), other._pools.tensors()[name].view(torch.uint8)), name
        q = torch.randn(B, 3, HQ, D)
        for ours, theirs in zip(*(c.attention(q, return_lse=True, return_report=True) for c in (cache, other)), strict=True):
            if isinstance(ours, dict):
                assert all(torch.equal(ours[pool], theirs[pool]) for pool in ours) and torch.equal(ours.fold_error, theirs.fold_error)
            else:
                assert torch.equal(ours, theirs)
        k, v = torch.randn(B, 1 + 9 * step, HK, D), torch.randn(B, 1 + 9 * step, HK, 8)
        for each in (cache, other):
            each.append(k, v)
            each.pin(1, [each.seen - 1], boost=0.1)
            each.unpin(0, each.pinned(0)[:1])


def test_an_empty_cache_too(tmp_path):
    BoundedCache(1, 1, 8).save(tmp_path / "m")
    cache = BoundedCache.load(tmp_path / "m")
    assert cache.seen == 0
    cache.append(torch.zeros(1, 1, 1, 8), torch.zeros(1, 1, 1, 8))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "memory"
    make().save(path)
    return path.read_bytes()


@pytest.mark.parametrize("part", [0, 1, 7, 8, 9, 100, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, -100, -8, -1])
def test_a_truncated_file(tmp_path, saved, part):
    path = tmp_path / "cut"
    path.write_bytes(saved[: int(part * len(saved)) if isinstance(part, float) else part])
    with pytest.raises(ValueError, match="cut must be a file that BoundedCache.save has written, whole"):
        BoundedCache.load(path)


def test_more_than_the_file(tmp_path, saved):
    path = tmp_path / "long"
    path.write_bytes(saved + b"more")
    with pytest.raises(ValueError, match="long must be a file"):
        BoundedCache.load(path)


def test_foreign_files(tmp_path):
    path = tmp_path / "foreign"
    for content in (b"#!/bin/sh\n" * 10, b"\0" * 1000, b"PK\3\4" + os.urandom(300)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="foreign must be a file that BoundedCache.save"):
            BoundedCache.load(path)
    for metadata in (None, {"format": "pt"}):
        save_file({"weight": torch.zeros(3)}, path, metadata)
        with pytest.raises(ValueError, match="foreign must be of format 'selkey.BoundedCache'; got"):
            BoundedCache.load(path)
    with pytest.raises(ValueError, match=f"{tmp_path} must be a file .* it is a folder"):
        BoundedCache.load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for special in (os.devnull, tmp_path / "pipe"):
        with pytest.raises(ValueError, match=f"{special} must be a file that BoundedCache.save has written; it is a device, a pipe"):
            BoundedCache.load(special)
    with pytest.raises(FileNotFoundError):
        BoundedCache.load(tmp_path / "none")
    with pytest.raises(TypeError, match="path must be a path; got 3"):
        BoundedCache.load(3)


def rewritten(path, saved, change, checksum=True):
    """Write the file again after `change(tensors, metadata, description)`; its checksum, too, or as it was."""
    path.write_bytes(saved)
    length = struct.unpack("<Q", saved[:8])[0]
    metadata = json.loads(saved[8 : 8 + length])["__metadata__"]
    tensors, description = load_file(path), json.loads(metadata["cache"])
    change(tensors, metadata, description)
    if metadata["cache"] is not None:
        metadata["cache"] = json.dumps(description) if metadata["cache"] else ""
    if checksum:
        metadata["sha256"] = tensor_file.checksum(metadata["cache"] or "", tensors, tensors.get)
    save_file(tensors, path, {name: value for name, value in metadata.items() if value is not None})


@pytest.mark.parametrize(
    "message, change",
    [
        ("must be of version '1'; got '2'", lambda t, m, d: m.update(version="2")),
        ("must be of version '1'; got None", lambda t, m, d: m.update(version=None)),
        ("must be of format 'selkey.BoundedCache'; got 'selkey.KVCache'", lambda t, m, d: m.update(format="selkey.KVCache")),
        ("must describe its cache in JSON", lambda t, m, d: m.update(cache=None)),
        ("must describe its cache in JSON", lambda t, m, d: m.update(cache="")),
        (r"exact_live must have shape \[2, 79\] and dtype torch.bool; got \[2, 78\]",
         lambda t, m, d: t.update(exact_live=t["exact_live"][:, 1:].contiguous())),
        ("key_sum must have shape .* and dtype torch.float64; got .* torch.float32",
         lambda t, m, d: t.update(key_sum=t["key_sum"].float())),
        ("missing or unknown: key_sum", lambda t, m, d: t.pop("key_sum")),
        ("missing or unknown: extra", lambda t, m, d: t.update(extra=torch.zeros(1))),
        ("must have shape", lambda t, m, d: d["arguments"].update(window=71)),
        ("must have shape", lambda t, m, d: d["arguments"].update(keep=10**12)),
        ("must describe the arguments .*window must be at least 1; got 0", lambda t, m, d: d["arguments"].update(window=0)),
        ("must describe the arguments .*dtype", lambda t, m, d: d["arguments"].pop("dtype")),
        ("must describe the arguments", lambda t, m, d: d["arguments"].update(dtype="nonsense")),
        ("must describe the arguments", lambda t, m, d: d["arguments"].update(format="int3")),
        ("must describe the arguments", lambda t, m, d: d["arguments"].update(unknown=3)),
        ("must describe the arguments", lambda t, m, d: d.clear()),
        ("must describe the state .*seen", lambda t, m, d: d["state"].pop("seen")),
        ("must describe the state", lambda t, m, d: d["state"].update(seen=-1)),
        ("must describe the state", lambda t, m, d: d["state"]["pins"].update(slots=[[], [[3, 99]]])),
        ("must describe the state", lambda t, m, d: d["state"]["pins"].update(slots=[[]])),
    ],
)  # fmt: skip
def test_a_file_of_another_kind(tmp_path, saved, message, change):
    path = tmp_path / "changed"
    rewritten(path, saved, change)
    with pytest.raises(ValueError, match=f"changed.* {message}|changed: {message}"):
        BoundedCache.load(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda t, m, d: d["state"].update(seen=d["state"]["seen"] + 1),
        lambda t, m, d: d["state"].update(next_position=0),
        lambda t, m, d: d["state"].update(has_left=False),
        lambda t, m, d: d["state"]["pins"]["slots"][0].append([3, 5]),
        lambda t, m, d: d["state"]["pins"]["groups"][0][0].__setitem__(1, 0.9),
        lambda t, m, d: d["arguments"].update(score=None),
        lambda t, m, d: d.update(more=1),
        lambda t, m, d: t["pin_group"].fill_(0),
        lambda t, m, d: t.update(key_count=t["key_count"].view(torch.float64)),
        lambda t, m, d: t.update({"exact_position": t["keep_position"], "keep_position": t["exact_position"]}),
        lambda t, m, d: m.update(cache=None),
        lambda t, m, d: m.update(sha256=None),
        lambda t, m, d: m.update(sha256="0" * 64),
    ],
)  # fmt: skip
def test_a_tampered_file(tmp_path, saved, change):
    path = tmp_path / "tampered"
    rewritten(path, saved, lambda t, m, d: None, checksum=False)
    BoundedCache.load(path)
    rewritten(path, saved, change, checksum=False)
    with pytest.raises(ValueError, match="tampered must hold what BoundedCache.save wrote; it is damaged"):
        BoundedCache.load(path)


@pytest.mark.parametrize("bit", [0, 6])
@pytest.mark.parametrize("place", [0.0, 1e-4, 0.01, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.99, 1.0])
def test_one_bit_of_the_tensors(tmp_path, saved, place, bit):
    path = tmp_path / "flipped"
    first = 8 + struct.unpack("<Q", saved[:8])[0]
    damaged = bytearray(saved)
    damaged[first + round(place * (len(saved) - first - 1))] ^= 1 << bit
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="flipped must hold what BoundedCache.save wrote; it is damaged"):
        BoundedCache.load(path)


def test_one_bit_of_the_header(tmp_path, saved):
    path = tmp_path / "flipped"
    for place in range(0, 8 + struct.unpack("<Q", saved[:8])[0], 23):
        damaged = bytearray(saved)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="flipped must "):
            BoundedCache.load(path)


def test_a_score_must_come_along(tmp_path):
    make(score=score).save(tmp_path / "scored")
    with pytest.raises(ValueError, match="score must be the score that the saved cache had"):
        BoundedCache.load(tmp_path / "scored")
    make().save(tmp_path / "plain")
    with pytest.raises(ValueError, match="score must be None"):
        BoundedCache.load(tmp_path / "plain", score=score)


@pytest.mark.parametrize("where", ["writer", "half-written", "flush", "replace"])
def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, saved, where):
    path = tmp_path / "memory"
    path.write_bytes(saved)
    cache = BoundedCache(1, 1, 8)

    def fail(*arguments):
        if where == "half-written":
            with open(arguments[1], "wb") as file:
                file.write(b"half")
        raise OSError("the disk is full")

    place = {
        "writer": (tensor_file, "save_file"),
        "half-written": (tensor_file, "save_file"),
        "flush": (os, "fsync"),
        "replace": (os, "replace"),
    }
    monkeypatch.setattr(*place[where], fail)
    with pytest.raises(OSError, match="the disk is full"):
        cache.save(path)
    monkeypatch.undo()
    assert path.read_bytes() == saved and os.listdir(tmp_path) == ["memory"]
    BoundedCache.load(path)
    cache.save(path)
    assert BoundedCache.load(path).seen == 0 and os.listdir(tmp_path) == ["memory"]


def test_saving_where_nothing_can_be_saved(tmp_path):
    cache = BoundedCache(1, 1, 8)
    with pytest.raises(FileNotFoundError):
        cache.save(tmp_path / "none" / "memory")
    with pytest.raises(IsADirectoryError):
        cache.save(tmp_path)
    assert os.listdir(tmp_path) == []
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe, a device, a pipe or a socket"):
        cache.save(tmp_path / "pipe")
    assert os.listdir(tmp_path) == ["pipe"]


def test_links_and_permissions_stay(tmp_path):
    cache = BoundedCache(1, 1, 8)
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(target)
    cache.save(link)
    assert link.is_symlink() and target.stat().st_mode & 0o777 == 0o640
    assert BoundedCache.load(target).seen == 0
