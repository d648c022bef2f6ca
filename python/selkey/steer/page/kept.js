// The list of what is marked, wherever in the text it is, and what is suggested.

import { get } from "./api.js";
import { count, find, make, throttle, tokens } from "./words.js";

const LISTED = 40;

export class Kept {
  constructor(painter, excerpts, hooks) {
    Object.assign(this, { painter, excerpts, hooks }); // hooks {go(start, stop), unmark(start, stop, began)}
  }

  update() {
    const { marks } = this.painter;
    const shown = marks.slice(-LISTED).reverse();
    const rows = shown.map(([start, stop, boost]) => [start, stop, boost, this.excerpts.of(start, stop)]);
    const total = marks.reduce((sum, [start, stop]) => sum + stop - start, 0);
    const name = JSON.stringify([rows, total]);
    if (name === this.shown) return;
    this.shown = name;
    find("kept-none").hidden = marks.length > 0;
    find("kept-count").textContent = marks.length ? `${count(marks.length)}, ${tokens(total)}` : "";
    find("kept").replaceChildren(...rows.map((row) => this.item(...row)));
    if (marks.length > LISTED) find("kept").append(make("li", { className: "quiet", text: `and ${count(marks.length - LISTED)} earlier ones` }));
  }

  item(start, stop, boost, text) {
    const go = make("button", { className: "go", text, title: `tokens ${count(start)} to ${count(stop - 1)}: press to go there` });
    go.addEventListener("click", () => this.hooks.go(start, stop));
    const away = make("button", { className: "away", text: "×", title: "Unmark: let these words go", ariaLabel: `Unmark ${text}` });
    away.addEventListener("click", () => this.hooks.unmark(start, stop, performance.now()));
    const share = boost ? [make("small", { text: `${Math.round(100 * boost)} %`, title: "boost: at least this share of the attention" })] : [];
    return make("li", { children: [go, ...share, away] });
  }
}

export class Suggestions {
  constructor(painter, view) {
    Object.assign(this, { painter, view });
    this.key = null;
    this.spans = [];
    this.load = throttle(() => this.fetch(), 500);
    find("suggest").addEventListener("change", () => this.show());
  }

  get isOn() {
    return find("suggest").checked;
  }

  follow(state) {
    const key = `${state.epoch} ${state.suggestions} ${state.logged} ${JSON.stringify(state.marks)} ${state.writing}`;
    if (key === this.key) return;
    this.key = key;
    this.load();
  }

  async fetch() {
    try {
      const { sentence, spans } = await get("suggestions");
      this.sentence = sentence;
      this.spans = spans ?? [];
      this.show();
    } catch {
      // the next state asks again
    }
  }

  show() {
    this.painter.hints = this.isOn ? this.spans : [];
    const label = this.isOn && this.spans.length ? "Dotted words are suggested, learned from your marks; click one to mark it. " : "";
    find("suggested").textContent = this.isOn ? `${label}${this.sentence ?? ""}` : "Off.";
    this.view.changed();
  }

  // The suggestion that a token is in.
  at(token) {
    return this.painter.hints.find(([start, stop]) => start <= token && token < stop) ?? null;
  }
}
