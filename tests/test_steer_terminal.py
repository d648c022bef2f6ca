"""The terminal: keys become commands of the writer, of a long text only what is seen is asked for, nothing printed steers it."""

import asyncio
import random
from functools import partial

import pytest

pytest.importorskip("textual")
from rich.cells import cell_len
from steer_fakes import FakeWriter
from textual.pilot import Pilot

from selkey.steer.terminal import Terminal
from selkey.steer.terminal_dialogs import Choice, Help
from selkey.steer.terminal_lines import Window, shown, wrapped
from selkey.steer.terminal_panel import POOLS

pytestmark = pytest.mark.clean_memory


def in_terminal(tmp_path, act, size=(100, 24), writer=None, **made):
    """Run `act(app, writer, press, until)` in a terminal; until(condition) waits for it."""
    writer = writer or FakeWriter(tmp_path, **made)

    async def main():
        app = Terminal(writer)
        async with app.run_test(size=size):
            until = partial(until_true, app)

            async def press(*keys):
                # not by the pilot, which waits until the process does nothing: the writer always does something
                for key in keys:
                    app.simulate_key(key)
                    await asyncio.sleep(0.01)

            await until(lambda: app._is_loaded)
            await act(app, writer, press, until)

    writer.start()
    try:
        asyncio.run(main())
    finally:
        writer.close()


async def until_true(app, condition):
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("nothing came of it: " + said(app))


def said(app):
    return str(app._said.render())


def screen(app):
    return "\n".join("".join(text for _, text in line) for line in app._text._window.lines)


# Lines.


def test_lines_hold_every_token_and_break_between_words():
    generator = random.Random(0)
    pieces = [generator.choice([" river", " a", "vak", "", "\n", "漢字", " x\n\ny", "🙂", "é" * 50]) for _ in range(600)]
    for width in (3, 20, 61):
        lines = wrapped(pieces, 7, width)
        assert all(line and sum(cell_len(text) for _, text in line) <= width for line in lines)
        for token, piece in enumerate(pieces, 7):
            assert "".join(text for line in lines for other, text in line if other == token) == piece.replace("\n", " ")
    lines = wrapped([" stone", " bri", "dge", " zor", "vak"], 0, 17)
    assert ["".join(text for _, text in line) for line in lines] == [" stone bridge", " zorvak"]


def test_what_a_terminal_would_obey_is_a_dot():
    assert shown("a\x1b[2Jb\tc\r\u202ed\x9be\u00a0f\n") == "a·[2Jb c ·d·e f\n"


def test_of_a_long_text_only_what_is_seen_is_asked_for():
    asked, tokens = [], 100_000

    def text_of(first, stop):
        asked.append(max(min(stop, tokens) - first, 0))
        return [f" {token}" for token in range(first, min(stop, tokens))]

    window = Window(text_of)
    window.lay_out(80, 24)
    for token in (99_999, 50_000, 50_001, 0, 77):
        asked.clear()
        window.reveal(token)
        assert window.row(token) is not None and 1 <= len(window.lines) <= 24 and sum(asked) < 10_000
    window.reveal(60_000)
    asked.clear()
    for rows in (1, -1, 23, -23, -200, 200):
        top = window.lines[0][0][0]
        assert window.scroll(rows) and (window.lines[0][0][0] > top) == (rows > 0)
    # back where it was, give or take the line that the last view began with
    assert window.row(60_000) is not None and sum(asked) < 40_000
    window.reveal(0)
    assert not window.scroll(-1)


# Keys.


def test_marks_spans_boost_and_undo(tmp_path):
    async def act(app, writer, press, until):
        marks = lambda: writer.state()["marks"]
        await press("left", "left", "m")
        await until(lambda: marks() == [[297, 298, 0.0]] and "marked:" in said(app))
        await press("v", "left", "left", "enter")
        await until(lambda: marks() == [[295, 298, 0.0]])
        await press("plus")
        await until(lambda: marks() == [[295, 298, 0.1]])
        await press("shift+right", "m")
        await until(lambda: marks() == [[297, 298, 0.1]])
        await press("u")
        await until(lambda: marks() == [[295, 298, 0.1]] and "taken back: unmark 295–297" in said(app))
        # a boost is of one mark, and stays when more is marked beside it
        await press("left", "left", "left", "left", "left", "plus")
        await until(lambda: "a boost is of a mark" in said(app))
        await press("v", *["right"] * 5, "m")
        await until(lambda: marks() == [[291, 295, 0.0], [295, 298, 0.1]])
        await press("u")
        await until(lambda: marks() == [[295, 298, 0.1]])
        # what has been folded is recalled
        await press("home", *["right"] * 9, "m")
        await until(lambda: "recall it" in said(app) and app._said.has_class("wrong"))
        await press("r")
        await until(lambda: writer.state()["tokens"] == 301 and marks()[-1][:2] == [300, 301])
        assert app._text.cursor == 9

    in_terminal(tmp_path, act, tokens=300)


def test_writing_words_and_memories(tmp_path):
    async def act(app, writer, press, until):
        await until(lambda: "there is no text yet" in said(app))
        await press("i")
        await until(lambda: app._line.has_focus)
        app._line.value = "go m"
        await press("enter")
        await until(lambda: writer.state()["tokens"] == 2 and "go m" in screen(app))
        assert not app._line.has_class("open") and app._text.has_focus
        await press("g")
        await until(lambda: writer.state()["tokens"] == 130 and not writer.state()["writing"])
        # the cursor at the end goes along
        await until(lambda: app._text.cursor == 129 and app._text._window.row(129) is not None)
        await press("s")
        await until(lambda: app._line.has_focus)
        app._line.value = "one"
        await press("enter")
        await until(lambda: "saved: one" in said(app))
        await press("home", "G", "question_mark")
        # the text goes on behind a dialog
        await until(lambda: isinstance(app.screen, Help) and writer.state()["tokens"] > 400)
        await until(lambda: app._text._state["tokens"] > 400)
        await press("escape")
        await until(lambda: not isinstance(app.screen, Help))
        await press("p")
        await until(lambda: not writer.state()["writing"])
        assert app._text.cursor == 0 and app._text._window.row(0) == 0
        await press("end", "l")
        await until(lambda: isinstance(app.screen, Choice))
        await press("down", "enter")
        await until(lambda: writer.state()["tokens"] == 130 and "loaded: one" in said(app))
        await until(lambda: app._text.cursor == 129)
        await press("l")
        await until(lambda: isinstance(app.screen, Choice))
        await press("enter")
        await until(lambda: writer.state()["tokens"] == 0 and screen(app) == "")
        await press("m", "a", "t", "up", "pageup", "pagedown", "left")
        await press("escape", "i")
        await until(lambda: app._line.has_focus)
        await press("escape", "question_mark")
        await until(lambda: isinstance(app.screen, Help))
        await press("q")
        await until(lambda: not isinstance(app.screen, Help))
        await press("q")
        await until(lambda: not app.is_running)

    in_terminal(tmp_path, act, rate=500)


def test_where_the_model_looked_and_what_is_suggested(tmp_path):
    async def act(app, writer, press, until):
        panel = lambda: "\n".join("".join(segment.text for segment in line) for line in app.console.render_lines(app._panel.content))
        await press("t", "left")
        look = writer.look(398)
        await until(lambda: app._text.shares == dict(look["tokens"]) and "token 398: all layers, all heads" in panel())
        assert f"({look['tokens'][0][0]:,})" in panel()
        await press("right_square_bracket", "right_square_bracket", "left_curly_bracket")
        await until(lambda: app._text.shares == dict(writer.look(398, 1, 5)["tokens"]))
        await press("t")
        await until(lambda: not app._text.shares and "more marked texts are needed" in panel())
        await press("a")
        await until(lambda: "nothing is suggested" in said(app))
        for start in (398, 390, 380):
            writer.do("mark", start=start, stop=start + 1).result()
        await until(lambda: len(app._text.suggested) > 2 and "it finds 71 %" in panel())
        first, second = (span[0] for span in app._text.suggested[:2])
        await press("a", "a")
        await until(lambda: writer.done[-1] == ("mark", {"start": first, "stop": first + 2, "boost": 0.0, "new_only": True}))
        app._text.point(first + 2)
        await press("a")
        await until(lambda: app._text.cursor == second)

    in_terminal(tmp_path, act, tokens=400)


def test_the_token_that_begins_a_text_has_a_name_and_is_not_marked(tmp_path):
    writer = FakeWriter(tmp_path, tokens=8)
    writer._pieces[0] = ""
    writer.look = lambda position, layer, head: {
        "position": position, "layer": None, "head": None, "pools": dict.fromkeys(POOLS, 0.2), "tokens": [[0, 0.9]], "folds": [],
    }  # fmt: skip

    async def act(app, writer, press, until):
        panel = lambda: "\n".join("".join(segment.text for segment in line) for line in app.console.render_lines(app._panel.content))
        await press("t")
        await until(lambda: "(start)  (0)" in panel() and "0 records in" in panel())
        await press("home", "left", "m")
        await until(lambda: writer.state()["marks"] == [[1, 2, 0.0]] and "1 record in" in panel())

    in_terminal(tmp_path, act, writer=writer)


def test_the_mouse_marks_and_a_narrow_terminal_shows_the_text_alone(tmp_path):
    async def act(app, writer, press, until):
        assert not app.query_one("#panel").display
        line = app._text._window.lines[5]
        first, last = line[1][0], line[2][0]
        pilot, place = Pilot(app), lambda number: 1 + sum(len(text) for _, text in line[:number])
        await pilot.mouse_down(app._text, offset=(place(1), 5))
        await pilot.hover(app._text, offset=(place(2), 5))
        await pilot.mouse_up(app._text, offset=(place(2), 5))
        assert app._text.span == (first, last + 1)
        await pilot.resize_terminal(120, 10)
        await until(lambda: app.query_one("#panel").display and app._text._window.row(last) is not None)

    in_terminal(tmp_path, act, size=(60, 20), tokens=200)


# Trouble.


def test_a_model_that_is_loaded_or_cannot_be_and_a_writer_that_has_ended(tmp_path):
    writer = FakeWriter(tmp_path, tokens=5)
    state = {"version": 0, "epoch": "", "tokens": 0, "writing": False, "loading": True, "error": None}
    loaded = writer.state()

    async def main():
        writer.state = lambda: state
        app = Terminal(writer)
        async with app.run_test() as pilot:
            await pilot.press("m", "g", "t", "l", "plus", "a", "home")
            assert "is being loaded" in said(app) and not writer.done
            state["error"] = "the model could not be loaded: no such folder"
            app._changed.set()
            await until_true(app, lambda: "no such folder" in said(app))
            writer.state = lambda: loaded
            app._changed.set()
            await until_true(app, lambda: app._is_loaded)
            writer.close()
            await pilot.press("m")
            await until_true(app, lambda: "the writer has ended" in said(app))
            assert app.is_running
        assert not writer._listeners

    asyncio.run(main())
