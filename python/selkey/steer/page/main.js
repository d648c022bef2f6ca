// Everything together: the state of the server comes in here and goes to all parts; what the human does goes out.

import { listen } from "./api.js";
import { Choice } from "./choose.js";
import { Controls } from "./controls.js";
import { Dialogs } from "./dialogs.js";
import { Kept, Suggestions } from "./kept.js";
import { Excerpts, Looks } from "./looks.js";
import { LookMap } from "./map.js";
import { Marks } from "./marks.js";
import { Painter } from "./painter.js";
import { Pools } from "./pools.js";
import { Popover } from "./popover.js";
import { Store } from "./store.js";
import { connection, fail, say } from "./toast.js";
import { View } from "./view.js";
import { find } from "./words.js";

const STEP = 0.05; // of a boost, by key
const MOST = 0.6;

const painter = new Painter();
const store = new Store(() => view.changed(), fail);
const view = new View(store, painter);
const pools = new Pools();
const excerpts = new Excerpts(store, () => {
  kept.update();
  looks.again();
  map.say();
});
const looks = new Looks(painter, view, excerpts);
const marks = new Marks(painter, {
  changed() {
    view.changed();
    kept.update();
  },
  accepted: (state) => follow(state),
  failed: fail,
  timed: (shown, held) => pools.timed(shown, held),
});
const choice = new Choice(view, painter, store, {
  click: (token, began) => click(token, began),
  span: (start, stop, began) => choose(start, stop, began),
  moved() {
    if (choice.isEmpty) popover.close();
    view.changed();
  },
  hover: (token) => looks.hover(token),
  key: (event) => press(event),
});
const popover = new Popover(view, painter, choice, { mark: markChosen, unmark: unmarkChosen, recall: recallChosen });
const kept = new Kept(painter, excerpts, {
  go(start, stop) {
    choice.anchor = choice.last = start;
    choice.set(start, stop);
    popover.open();
    view.toToken(start);
  },
  unmark: (start, stop, began) => marks.unmark(start, stop, view.epochOf(start), began),
});
const suggestions = new Suggestions(painter, view);
const map = new LookMap(looks, excerpts, (token, began) => markOne(token, began));
const controls = new Controls({
  accepted: (state) => follow(state),
  failed: fail,
  moved: () => view.toEnd(),
  toStart: () => view.toToken(0),
  toEnd: () => view.toEnd(),
  help: () => dialogs.open("help"),
  escape: () => choice.clear(),
});
const dialogs = new Dialogs(controls, { done: say, failed: fail, moved: () => view.toEnd() });

let current = null;

// A state that is older than what is known is not taken, except from a server that began anew.
function follow(state, isFirst = false) {
  if (!state.epoch) return connection(false, state.error ?? "The model is being loaded…");
  if (current && !isFirst && state.version < current.version) return;
  if (state.error && state.error !== current?.error) say(state.error);
  current = painter.state = state;
  if (store.follow(state)) {
    choice.clear();
    view.forget();
  }
  document.body.classList.toggle("writing", state.writing);
  controls.follow(state);
  marks.follow(state);
  pools.follow(state);
  looks.follow(state);
  map.follow(state);
  suggestions.follow(state);
  view.changed();
}

function click(token, began) {
  const hint = suggestions.at(token);
  const mark = painter.mark(token);
  const [start, stop] = mark ?? hint ?? [token, token + 1];
  const isChosen = choice.start === start && choice.stop === stop;
  choice.set(start, stop);
  popover.open();
  if (mark && (isChosen || stop - start === 1)) unmarkChosen(began);
  else if (!mark && painter.pool(token) !== "fold") markChosen(0, began);
}

function choose(start, stop, began) {
  choice.set(start, stop);
  popover.open();
  markChosen(0, began, true);
}

// Marks what is held of the chosen words; with `isNew`, what is marked already keeps its boost.
function markChosen(boost, began, isNew = false) {
  const { start, stop } = choice;
  for (const [from, to] of marks.ranges(start, stop, (token) => painter.pool(token) !== "fold")) {
    const isDone = isNew && !marks.ranges(from, to, (token) => painter.pool(token) !== "pin").length;
    if (!isDone) marks.mark(from, to, boost, view.epochOf(from), began, isNew);
  }
  popover.open();
}

// The server lets go what is marked of them, all at once.
function unmarkChosen(began) {
  const { start, stop } = choice;
  const marked = marks.ranges(start, stop, (token) => painter.pool(token) === "pin");
  if (marked.length) marks.unmark(marked[0][0], marked.at(-1)[1], view.epochOf(start), began);
}

// Of them the server reads again what was folded.
async function recallChosen(began) {
  const { start, stop } = choice;
  const folded = marks.ranges(start, stop, (token) => painter.pool(token) === "fold");
  if (!folded.length || !(await marks.recall(folded[0][0], folded.at(-1)[1], view.epochOf(start), began))) return;
  choice.clear();
  view.toEnd();
  say("Recalled: read again, at the end.");
}

function markOne(token, began) {
  if (painter.pool(token) === "fold") return say("This word has been folded: click it in the text to recall it.");
  return painter.mark(token) ? null : marks.mark(token, token + 1, 0, store.epoch, began);
}

function press(event) {
  const began = performance.now();
  const { key } = event;
  const change = { "+": STEP, "=": STEP, "-": -STEP, "−": -STEP }[key];
  if (choice.isEmpty || !(change || ["Enter", "Delete", "Backspace", "r", "R"].includes(key))) return;
  event.preventDefault();
  const mark = painter.mark(choice.start);
  if (change) markChosen(Math.round(100 * Math.min(MOST, Math.max(0, (mark?.[2] ?? 0) + change))) / 100, began);
  else if (key === "Enter") enter(mark, began);
  else if (key.toLowerCase() === "r") recallChosen(began);
  else unmarkChosen(began);
}

function enter(mark, began) {
  popover.open();
  if (mark && mark[0] <= choice.start && choice.stop <= mark[1]) unmarkChosen(began);
  else markChosen(0, began, true);
}

view.afterLayout = () => {
  choice.again();
  popover.update();
  kept.update();
};
window.addEventListener("resize", () => pools.draw());
window.addEventListener("unhandledrejection", (event) => fail(event.reason));
listen(follow, connection);

// What tests look at.
window.steer = { store, view, choice, painter, pools, looks, map };
