"""The page of `selkey steer` in a real browser, before a writer of made-up words."""

import random
import statistics

import pytest

pytest.importorskip("starlette")

from steer_browser import Tab, chromium, fake_writer, served  # noqa: E402

TOKENS = 600


@pytest.fixture(scope="module")
def browser():
    with chromium() as one:
        yield one


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """(writer, address) of a text that only grows: 50,000 tokens."""
    with fake_writer(tmp_path_factory.mktemp("long"), tokens=50_000, rate=1e6) as writer, served(writer) as address:
        yield writer, address


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    with fake_writer(tmp_path_factory.mktemp("short"), rate=400.0) as writer, served(writer) as address:
        yield writer, address


@pytest.fixture
def writer(short):
    """With a new text of 600 words of the human and no marks."""
    writer, _ = short
    writer.do("new").result()
    writer.do("read", text=" ".join(f"word{at}" for at in range(TOKENS))).result()
    return writer


@pytest.fixture(scope="module")
def context(browser):
    one = browser.new_context(viewport={"width": 1280, "height": 800})
    yield one
    one.close()


@pytest.fixture(scope="module")
def opened(context, short):
    return Tab(context, short[1])


@pytest.fixture
def tab(opened, writer):
    """One tab for all tests: it shows the new text."""
    opened.page.mouse.move(5, 5)
    opened.until(f"steer.store.epoch === '{writer.state()['epoch']}' && steer.store.length === {TOKENS}")
    opened.go_to_end()
    opened.problems.clear()
    yield opened
    assert opened.problems == []


def test_a_click_marks_and_another_unmarks(tab, writer):
    tab.click(590)
    tab.sees_marks(590)
    assert writer.state()["marks"] == [[590, 591, 0.0]]
    tab.page.wait_for_selector("#popover:not([hidden])")
    tab.click(590)
    tab.sees_marks()
    assert writer.state()["marks"] == []


def test_a_drag_marks_a_span_with_a_boost_that_undo_takes_back(tab, writer):
    tab.drag(580, 584)
    tab.sees_marks(*range(580, 585))
    assert tab.page.text_content("#kept .go") == "word580 word581 word582 word583 word584"
    tab.page.locator("#boost").fill("25")
    tab.until("document.querySelector('[data-token=\"584\"]').dataset.boost === '25 %'")
    tab.sees_marks(*range(580, 585))
    assert writer.state()["marks"] == [[580, 585, 0.25]] and "at least 25 %" in tab.page.inner_text("#boost-says")
    assert "mark 580–585" in tab.page.inner_text("#undo")
    tab.key("Control+z")
    tab.until("!document.querySelector('[data-boost]')")
    tab.page.click("#undo")
    tab.sees_marks()
    assert writer.state()["marks"] == []


def test_a_drag_over_what_is_partly_marked_is_one_step(tab, writer):
    writer.do("mark", start=580, stop=582, boost=0.25).result()
    tab.sees_marks(580, 581)
    steps = len(writer.done)
    tab.drag(578, 584)
    tab.sees_marks(*range(578, 585))
    assert writer.state()["marks"] == [[578, 580, 0.0], [580, 582, 0.25], [582, 585, 0.0]]
    assert [name for name, _ in writer.done[steps:]] == ["mark"]
    tab.page.click("#undo")
    tab.sees_marks(580, 581)
    tab.drag(576, 584)
    tab.sees_marks(*range(576, 585))
    tab.page.click("#unmark")
    tab.sees_marks()
    assert [name for name, _ in writer.done[steps:]] == ["mark", "undo", "mark", "unmark"]


def test_a_reload_and_another_tab_show_the_same(tab, context, short):
    tab.drag(570, 571)
    tab.sees_marks(570, 571)
    other = Tab(context, short[1])
    other.sees_marks(570, 571)
    other.click(590)
    tab.sees_marks(570, 571, 590)
    tab.page.reload()
    tab.sees_marks(570, 571, 590)
    other.page.click("#kept .away")
    tab.sees_marks(570, 571)
    assert other.problems == []
    other.page.close()


def test_marking_by_keys(tab, writer):
    tab.page.focus("#story")
    tab.key("ArrowRight", "ArrowRight", "Shift+ArrowRight")
    start, stop = tab.get("steer.painter.chosen")
    assert stop - start == 2
    assert tab.get("document.querySelector('#cursor-says').textContent") == f"word{stop - 1}, in the window"
    tab.key("Enter", "+", "+")
    tab.until("steer.painter.state.marks[0]?.[2] === 0.1")
    assert writer.state()["marks"] == [[start, stop, 0.1]]
    tab.key("ArrowDown", "ArrowUp", "Enter")
    tab.until("steer.painter.state.marks.length === 1 && steer.painter.state.marked_tokens === 1")
    tab.key("Escape")
    tab.page.wait_for_selector("#popover", state="hidden")
    assert tab.get("steer.painter.chosen") == [0, 0]


def test_what_is_refused_leaves_no_mark_and_says_why(tab):
    tab.go_to(455)
    tab.click(455)
    tab.sees_marks(455)
    tab.key("End")
    tab.until("steer.view.isAtRest && steer.view.isAtEnd()")
    tab.page.keyboard.down("Shift")
    tab.click(599)
    tab.page.keyboard.up("Shift")
    tab.page.wait_for_selector("text=128 tokens can be marked: unmark some first")
    tab.sees_marks(455)
    tab.page.route("**/api/mark", lambda route: route.continue_(post_data=route.request.post_data.replace('"epoch":"', '"epoch":"0')))
    tab.click(595)
    tab.page.wait_for_selector("text=The text has changed since the page saw it")
    tab.page.unroute("**/api/mark")
    tab.sees_marks(455)


def test_folded_text_can_be_recalled(tab):
    tab.go_to(100)
    tab.drag(100, 102)
    assert tab.page.is_hidden("#mark") and not tab.marked()
    tab.page.click("#recall")
    tab.sees_marks(600, 601, 602)
    assert tab.get("document.querySelector('[data-token=\"601\"]').className").split()[2] == "r"
    assert tab.word(601).inner_text().strip() == "word101"
    tab.page.wait_for_selector("text=Recalled: read again")
    tab.until("steer.view.isAtRest && steer.view.isAtEnd()")
    bottom = "document.querySelector('[data-token=\"602\"]').getBoundingClientRect().bottom"
    assert tab.get(f"{bottom} <= document.querySelector('#toasts p:last-child').getBoundingClientRect().top")


def test_pointing_at_a_word_shows_where_the_model_looked(tab, writer):
    tab.page.mouse.move(*tab.middle(590))
    tab.until("document.querySelectorAll('.t.seen').length > 10 && document.querySelector('[data-token=\"590\"].of')")
    look = writer.look(590)
    most = look["tokens"][0][0]
    assert tab.get("[...steer.painter.look.shares.entries()].sort((one, other) => other[1] - one[1])[0]") == [most, "0.70"]
    assert tab.page.inner_text("#looks-of").startswith("To write word590 the model looked at")
    tab.page.click("#heads button[title='layer 2, head 3']")
    tab.page.mouse.move(*tab.middle(591))
    tab.until("document.querySelector('[data-token=\"591\"].of')")
    assert tab.get("[...steer.painter.look.shares.keys()][0]") == writer.look(591, layer=2, head=3)["tokens"][0][0]
    tab.until("steer.map.order?.length === 160")
    tab.page.hover("#map")
    assert "looked at" in tab.page.inner_text("#map-says")


def test_looks_go_with_the_text_that_moves_under_a_resting_pointer(tab):
    tab.page.mouse.move(*tab.middle(560))
    tab.until("steer.painter.look?.position === 560")
    tab.get("steer.view.scroller.scrollTop -= 10 * steer.view.line")
    tab.until("steer.choice.under < 550 && steer.painter.look?.position === steer.choice.under")


def test_the_large_map_says_what_it_shows_and_of_which_head(tab):
    tab.until("steer.map.order?.length === 160")
    tab.page.click("#enlarge")
    assert tab.page.inner_text("#map-dialog h2") == "Where it looks"
    rows, columns = tab.page.inner_text("#map-rows").split("\n"), tab.page.inner_text("#map-columns").split("\n")
    assert (rows[0], rows[-1]) == ("440", "599") and (columns[0], columns[-1]) == ("0", "599")
    tab.page.click("#map-dialog button[title='layer 1, head 2']")
    tab.until("steer.looks.head === 2 && steer.map.order.length === 160")
    tab.page.click("#map-dialog form button")
    assert tab.page.is_visible("aside #heads") and tab.page.is_visible("aside #map") and tab.page.is_hidden("#map-rows")


def test_the_panel_tells_room_from_use_in_every_pool(tab):
    tab.click(590)
    tab.sees_marks(590)
    assert tab.page.inner_text("#held").endswith(", for ever")
    assert "128 marked tokens, 256 of the window" in tab.page.inner_text("#room") and "and grows" in tab.page.inner_text("#dense")
    assert tab.page.get_attribute("#pools > .pins", "title").startswith("pins: what you marked. 1 token of 128: ")
    mixed = "{...steer.painter.state, pools: {...steer.painter.state.pools, sliding: [7, 5000], states: [0, 3000]}}"
    tab.get(f"steer.pools.follow({mixed})")
    said = tab.get("[...document.querySelectorAll('#pools > *, #pools-key > *')].map(one => one.title + one.textContent).join()")
    assert "sliding" in said and "5.0 kB" in said and "undefined" not in said
    tab.get("steer.pools.follow(steer.painter.state)")


def test_a_small_screen_shows_the_text_and_all_buttons(tab):
    tab.page.set_viewport_size({"width": 320, "height": 480})
    tab.until("steer.view.isAtRest && steer.view.isAtEnd()")
    for name in ("#help", "#go", "#undo", "#send", "[data-token='599']"):
        box = tab.page.locator(name).bounding_box()
        assert 0 <= box["x"] and box["x"] + box["width"] <= 320 and box["y"] + box["height"] <= 480, name
    assert tab.get("document.documentElement.scrollWidth") <= 320 and tab.page.locator("main").bounding_box()["height"] > 150
    tab.page.set_viewport_size({"width": 1280, "height": 800})


def test_suggestions_are_labelled_and_a_click_takes_one(tab):
    for token in (560, 570, 580):
        tab.click(token)
    tab.until("document.querySelectorAll('.t.hint').length > 1")
    said = tab.page.inner_text("#suggested")
    assert "suggested, learned from your marks" in said and "chance 3 %" in said
    last = tab.get("steer.painter.hints.at(-1)[0]")
    tab.click(last)
    tab.sees_marks(*sorted({560, 570, 580, last, last + 1}))
    tab.page.uncheck("#suggest")
    tab.until("!document.querySelector('.t.hint')")
    tab.page.check("#suggest")


def test_going_on_pausing_and_ones_own_words(tab, writer):
    writer.rate = 60.0
    tab.page.click("#endless")
    tab.until("steer.store.length > 610")
    generator, token = random.Random(0), None
    while token is None:  # between words and lines there is none
        tab.page.mouse.up()
        place = generator.randrange(300, 600), 400
        tab.page.mouse.move(*place)
        tab.page.mouse.down()
        token = tab.get("steer.choice.pressed")
    tab.until(f"steer.store.length > {writer.state()['tokens'] + 20}")
    tab.key("p")
    tab.page.wait_for_selector("#go:not([hidden])")
    # under a hand the text stands still
    assert tab.get(f"Number(document.elementFromPoint({place[0]}, {place[1]}).dataset.token)") == token
    tab.page.mouse.up()
    tab.until(f"document.querySelector('[data-token=\"{token}\"].pin:not(.sent)')")
    assert writer.state()["marks"] == [[token, token + 1, 0.0]]
    tab.page.fill("#say", "And <img src=x onerror=alert(1)> <script>alert(2)</script>")
    tab.key("Enter")
    tab.until("steer.view.span(steer.store.length - 1)?.textContent.endsWith('</script>')")
    assert tab.get("document.querySelectorAll('#story img, #story script').length") == 0
    tab.click(writer.state()["tokens"] - 1)
    tab.page.wait_for_selector("#kept .go >> text=alert(2)</script>")
    assert tab.get("document.querySelectorAll('#kept script, #popover script').length") == 0
    tab.key("Escape", "g")
    tab.page.click("#pause")
    tab.page.wait_for_selector("#go:not([hidden])")
    tab.page.click("#undo")
    tab.until("steer.painter.state.undo !== 'stretch'")
    writer.rate = 400.0


def test_an_empty_page_begins_with_an_example_and_files(tab, writer):
    tab.page.click("#new")
    tab.page.click("#new-dialog button[value=new]")
    tab.page.wait_for_selector("#welcome:not([hidden])")
    tab.page.click("#examples button")
    tab.page.wait_for_selector("#welcome", state="hidden")
    tab.page.wait_for_selector("#go:not([hidden])")
    tokens = writer.state()["tokens"]
    tab.page.click("#save")
    tab.page.fill("#save-name", "evening")
    tab.key("Enter")
    tab.page.wait_for_selector("text=Saved as evening.")
    tab.page.fill("#say", "More.")
    tab.page.click("#send")
    tab.until(f"steer.store.length === {tokens + 1}")
    tab.page.click("#load")
    tab.page.click("#memories button")
    tab.until(f"steer.store.length === {tokens}")
    tab.key("?")
    tab.page.wait_for_selector("#help-dialog[open]")
    tab.key("Escape")


def test_a_lost_connection_comes_back(browser, tmp_path):
    with fake_writer(tmp_path, tokens=50) as writer:
        with served(writer, token="a-secret") as address:
            context = browser.new_context()
            tab = Tab(context, address)
            tab.click(40)
            tab.sees_marks(40)
            assert "a-secret" not in tab.page.content()
        tab.page.wait_for_selector("#banner:not([hidden])")
        tab.click(41)
        tab.page.wait_for_selector("text=The server cannot be reached")
        tab.sees_marks(40)
        writer.do("mark", start=42, stop=43).result()
        with served(writer, port=int(address.split(":")[2].split("/")[0]), token="a-secret"):
            tab.page.wait_for_selector("#banner", state="hidden")
            tab.sees_marks(40, 42)
            context.close()


def test_a_long_text_is_fast_and_stays_small(context, long):
    """From 50,000 to 100,000 tokens neither the elements nor the pages that are kept grow."""
    writer, address = long
    tab = Tab(context, address)

    def size():
        held = "[...steer.store.pages.values()].reduce((sum, page) => sum + page.pieces.length, 0)"
        return tab.get(f"[document.querySelectorAll('*').length, {held}]")

    for token in (25_000, 3, 49_990, 12_345):
        tab.go_to(token)
        box, seen = tab.word(token).bounding_box(), tab.page.locator("#story").bounding_box()
        assert seen["y"] <= box["y"] <= seen["y"] + seen["height"]
        assert tab.word(token).text_content() == writer.text(token, token + 1)["pieces"][0]
    waits = tab.get("""async () => {
        const waits = [];
        for (let at = 0; at < 30; at += 1) {
            const began = performance.now();
            steer.view.scroller.scrollTop += at % 2 ? 2400 : -900;
            steer.view.layout();
            waits.push(performance.now() - began);
            await new Promise((done) => setTimeout(done, 20));
        }
        return waits;
    }""")
    assert statistics.median(waits) < 150  # milliseconds; a machine that does nothing else takes five
    elements, pieces = size()
    tab.page.click("#to-end")
    for _ in range(5):
        writer.do("read", text=" ".join(["again"] * 10_000)).result()
        tab.until(f"steer.view.span({writer.state()['tokens'] - 1})")
    assert writer.state()["tokens"] == 100_000
    for token in range(100, 100_000, 8_000):
        tab.go_to(token)
    grown = size()
    assert max(elements, grown[0]) < 4_500 and max(pieces, grown[1]) <= 40 * 250
    tab.page.click("#to-end")
    tab.until("steer.view.isAtRest && steer.view.isAtEnd()")
    shown = []
    for token in (99_970, 99_980, 99_990):
        tab.click(token)
        tab.until(f"document.querySelector('[data-token=\"{token}\"].pin:not(.sent)')")
        shown.append(tab.get("steer.pools.marked[0]"))
    assert min(shown) < 500  # milliseconds from the click to the mark; a machine that does nothing else takes twenty
    assert tab.problems == []
