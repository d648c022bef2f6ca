"""Memories of a session: what is saved goes on to the bit, and what is damaged, forged or elsewhere changes nothing."""

import json

import pytest

# ruff: noqa: F811 — fixtures come from another file
pytest.importorskip("transformers")

from steer_sessions import POOLS, begun, made, said, session, write  # noqa: E402, F401

from selkey.steer import memory_file  # noqa: E402
from selkey.steer.session import Session  # noqa: E402


def test_a_memory_goes_on_to_the_bit(made, session, tmp_path):
    begun(session)
    session.mark(3, 5, boost=0.2)
    write(session, 50)
    session.save("one")
    write(session, 30)
    text = said(session)
    other = Session(*made, name="small", folder=session.folder, bounded=POOLS | {"window": 16}, seed=9)
    other.load("one")
    assert other.marks == [(3, 5, 0.2)] and other.cache.pinned() == [3, 4] and other.bounded == session.bounded
    write(other, 30)
    assert said(other) == text and other.text.by == session.text.by and other.undoes is None
    assert [memory["name"] for memory in memory_file.memories(session.folder)] == ["one"]


def test_an_empty_session_is_saved_too(session):
    session.save("empty")
    begun(session).load("empty")
    assert not len(session.text) and session.marks == []


def test_a_memory_that_is_none_changes_nothing(made, session):
    begun(session)
    session.save("good")
    path = session.folder / "good.memory"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (session.folder / "bad.memory").write_bytes(damaged)
    config = made[0].config
    text, epoch = said(session), session.epoch
    for name, kind in (("bad", ValueError), ("missing", FileNotFoundError)):
        with pytest.raises(kind):
            session.load(name)
    before, config.intermediate_size = config.intermediate_size, 99
    try:
        with pytest.raises(ValueError, match="another model"):
            session.load("good")
    finally:
        config.intermediate_size = before
    assert (said(session), session.epoch) == (text, epoch)
    write(session, 1)


FORGED = {
    "no pools": lambda d, t: d.pop("bounded"), "odd pools": lambda d, t: d.update(bounded="x"),
    "other pools": lambda d, t: d["bounded"].update(window=16), "text pools": lambda d, t: d["bounded"].update(window="32"),
    "no cache": lambda d, t: d.update(cache=None), "half a cache": lambda d, t: d["cache"].update(layers=[]),
    "no rows": lambda d, t: [t.pop(name) for name in list(t) if name.startswith("cache.")],
    "marks beyond": lambda d, t: d.update(marks=[[3, 10**12, 0.0]]), "marks twice": lambda d, t: d.update(marks=[[3, 5, 0.0], [4, 6, 0.0]]),
    "no such mark": lambda d, t: d.update(marks=[[6, 7, 0.0]]), "marks of words": lambda d, t: d.update(marks=[["3", 5, 0.0]]),
    "boosts": lambda d, t: d.update(marks=[[3, 5, 1.5]]), "no boost": lambda d, t: d.update(marks=[[3, 5, float("nan")]]),
    "temperature": lambda d, t: d.update(temperature="hot"), "no temperature": lambda d, t: d.update(temperature=float("nan")),
    "seed": lambda d, t: d.update(seed=1.5), "tokens": lambda d, t: t["session.ids"].fill_(10**9),
    "negative": lambda d, t: t["session.ids"].fill_(-1), "by": lambda d, t: t["session.by"].fill_(7),
    "short by": lambda d, t: t.update({"session.by": t["session.by"][:-1]}),
    "short": lambda d, t: t.update({name: t[name][:-1] for name in ("session.ids", "session.by")}),
    "generator": lambda d, t: t.update({"session.generator": t["session.generator"][:9]}),
    "logits": lambda d, t: t.update({"session.logits": t["session.logits"][:-1]}), "no logits": lambda d, t: t.pop("session.logits"),
}  # fmt: skip


def test_a_forged_memory_is_refused_and_changes_nothing(session):
    from safetensors import safe_open

    from selkey import tensor_file

    begun(session)
    session.mark(0, 1), session.mark(3, 5)
    session.save("good")
    with tensor_file.opened(session.folder / "good.memory", memory_file._FILE) as (_, description):
        description = json.dumps(description)
    session.unmark(0, 5)
    before = dict(vars(session))
    for what, forge in FORGED.items():
        said = json.loads(description)
        with safe_open(session.folder / "good.memory", framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        forge(said, tensors)
        tensor_file.write(session.folder / "forged.memory", memory_file._FILE, tensors, said)
        with pytest.raises(ValueError, match="^forged is no memory that") as found:
            session.load("forged")
        assert type(found.value) is ValueError and vars(session) == before, what
    session.shown = [(1, 2)]
    session.load("good")
    assert session.marks == [(0, 1, 0.0), (3, 5, 0.0)] and session.shown == []


def test_after_a_memory_a_new_text_has_the_pools_that_were_asked_for(made, session):
    begun(session).save("one")
    session.clear()
    session.save("empty")
    other = Session(*made, name="small", folder=session.folder, bounded=POOLS | {"window": 16})
    for name in ("one", "empty"):
        other.load(name)
        assert other.bounded["window"] == other.cache.settings.bounded["window"] == 32
        other.clear()
        assert other.bounded["window"] == other.cache.settings.bounded["window"] == 16


def test_a_full_disk_is_an_error_of_the_system(session, monkeypatch):
    from selkey import tensor_file

    def full(*_):
        raise tensor_file.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(tensor_file, "save_file", full)
    with pytest.raises(OSError, match="one.memory cannot be written.*No space left"):
        session.save("one")
    assert memory_file.memories(session.folder) == [] and len(list(session.folder.iterdir())) == 0


@pytest.mark.parametrize("name", ["", "a/b", "..", "../x", "a.b", "a\0b", "x" * 65, "con", "LPT1", "ä", "a\n", None, 3])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="a name has 1 to 64"):
        memory_file.path_of(tmp_path, name)


def test_a_link_is_not_followed(session, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("keep me")
    (session.folder / "link.memory").symlink_to(secret)
    for act in (session.save, session.load):
        with pytest.raises(ValueError, match="is a link"):
            act("link")
    assert secret.read_text() == "keep me" and memory_file.memories(session.folder) == []
