"""A session in which an untrained model of the small world writes, for several tests."""

import pytest

pytest.importorskip("transformers")

from selkey.bench import small_world  # noqa: E402
from selkey.steer.session import Session  # noqa: E402

POOLS = dict(sinks=2, pins=12, window=32, keep=0, folds=4)


@pytest.fixture(scope="module")
def made():
    return small_world.untrained(), small_world.tokenizer()


@pytest.fixture
def session(made, tmp_path):
    return Session(*made, name="small", folder=tmp_path / "steer", bounded=POOLS)


def write(session, tokens):
    for _ in range(tokens):
        session.step()


def said(session):
    return "".join(session.text.pieces)


def begun(session, tokens=20):
    session.read("Anna: lamp. Boris: coin. Clara: crown.")
    session.begin("stretch")
    write(session, tokens)
    return session
