// Choosing words with the pointer or the keyboard. What is chosen is [start, stop); the cursor is one of its ends.

import { boxOf, excerpt, find } from "./words.js";

const AIMING = 2000; // milliseconds after the pointer moved over a word

export class Choice {
  constructor(view, painter, store, hooks) {
    Object.assign(this, { view, painter, store, hooks }); // hooks {click(token, began), span(start, stop, began), moved(), key(event), hover(token)}
    this.anchor = this.pressed = null;
    this.isDragging = false;
    this.at = null; // where the pointer is, [x, y]
    this.under = null; // the word there
    const story = find("story");
    story.addEventListener("pointerdown", (event) => this.down(event));
    story.addEventListener("pointermove", (event) => this.move(event));
    story.addEventListener("pointerup", (event) => this.up(event));
    story.addEventListener("pointercancel", () => this.drop());
    story.addEventListener("pointerleave", () => this.leave());
    story.addEventListener("keydown", (event) => this.press(event));
    story.addEventListener("copy", (event) => this.copy(event));
  }

  get start() {
    return this.painter.chosen[0];
  }

  get stop() {
    return this.painter.chosen[1];
  }

  get isEmpty() {
    return this.start >= this.stop;
  }

  set(start, stop) {
    this.painter.chosen = [start, stop];
    this.hooks.moved();
  }

  clear() {
    this.painter.cursor = this.anchor = null;
    this.set(0, 0);
  }

  down(event) {
    const token = tokenAt(event);
    if (event.button !== 0 || (token === null && event.target.closest(".page"))) return;
    if (token === null) return this.clear();
    this.began = performance.now();
    this.isDragging = event.pointerType !== "touch"; // a finger scrolls
    if (this.isDragging) this.view.hold(Infinity);
    this.painter.cursor = null;
    this.anchor = event.shiftKey && this.anchor !== null ? this.anchor : token;
    this.last = token;
    this.pressed = token;
    if (event.shiftKey) this.extend(token);
  }

  move(event) {
    const token = tokenAt(event);
    if (!this.isDragging) {
      const hasMoved = this.at?.[0] !== event.clientX || this.at[1] !== event.clientY; // or the text moved under it
      this.at = [event.clientX, event.clientY];
      this.under = token;
      if (token !== null && hasMoved) this.view.hold(AIMING);
      return this.hooks.hover(token);
    }
    if (token === null || token === this.last) return;
    this.last = token;
    this.extend(token);
  }

  leave() {
    this.at = this.under = null;
    this.hooks.hover(null);
  }

  // Called after every layout: another word may be under a pointer that rests.
  again() {
    if (!this.at || this.isDragging) return;
    const token = tokenUnder(...this.at);
    if (token === this.under) return;
    this.under = token;
    this.hooks.hover(token);
  }

  up(event) {
    const { pressed } = this;
    this.drop();
    if (pressed === null || tokenAt(event) === null) return;
    const began = performance.now();
    if (this.anchor === this.last) this.hooks.click(this.anchor, began);
    else this.hooks.span(this.start, this.stop, began);
  }

  drop() {
    if (this.isDragging) this.view.hold(AIMING);
    this.isDragging = false;
    this.pressed = null;
  }

  extend(token) {
    this.set(Math.min(this.anchor, token), Math.max(this.anchor, token) + 1);
  }

  press(event) {
    this.at = this.under = null; // the cursor is what points now
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key] ?? null;
    const line = { ArrowUp: -1, ArrowDown: 1 }[event.key] ?? null;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (step === null && line === null) return this.hooks.key(event);
    event.preventDefault();
    const from = this.painter.cursor ?? (this.anchor !== null ? this.last : this.firstSeen() - (step ?? 0));
    const to = step === null ? this.nextLine(from, line) : from + step;
    this.moveTo(Math.max(0, Math.min(this.store.length - 1, to)), event.shiftKey);
  }

  moveTo(token, isExtending) {
    if (!isExtending || this.anchor === null) this.anchor = token;
    this.last = this.painter.cursor = token;
    this.extend(token);
    this.hooks.hover(token);
    const span = this.view.span(token);
    if (!span) return this.view.toToken(token);
    const box = boxOf(span);
    const seen = find("story").getBoundingClientRect();
    if (box.top < seen.top + 40 || box.bottom > seen.bottom - 60) {
      this.view.isFollowing = false;
      span.scrollIntoView({ block: "center" });
    }
    find("cursor-says").textContent = `${excerpt([this.store.piece(token) ?? ""])}, ${SAID[this.painter.pool(token)]}`;
  }

  // A word in the middle of what is seen, for the first arrow.
  firstSeen() {
    const seen = find("story").getBoundingClientRect();
    for (const page of this.view.ordered()) {
      const span = page.spans.find((one) => boxOf(one).top > seen.top + seen.height / 3);
      if (span) return Number(span.dataset.token);
    }
    return this.store.length - 1;
  }

  nextLine(token, way) {
    const span = this.view.span(token);
    if (!span) return token + 12 * way;
    const box = boxOf(span);
    const middle = (box.left + box.right) / 2;
    let best = null;
    for (let at = token + way; this.view.span(at); at += way) {
      const other = boxOf(this.view.span(at));
      const lines = Math.round(((other.top - box.top) * way) / this.view.line);
      if (lines > 1) break;
      const far = Math.abs((other.left + other.right) / 2 - middle);
      if (lines === 1 && (best === null || far < best[1])) best = [at, far];
    }
    return best?.[0] ?? token + 12 * way;
  }

  copy(event) {
    if (this.isEmpty) return;
    const pieces = [];
    for (let token = this.start; token < this.stop; token += 1) pieces.push(this.store.piece(token) ?? "");
    event.clipboardData.setData("text/plain", pieces.join(""));
    event.preventDefault();
  }
}

const SAID = { pin: "marked", sink: "always held", window: "in the window", fold: "folded" };

function tokenAt(event) {
  return event.type === "pointerdown" ? tokenOf(event.target) : tokenUnder(event.clientX, event.clientY);
}

const tokenUnder = (x, y) => tokenOf(document.elementFromPoint(x, y));

function tokenOf(element) {
  const span = element?.closest?.(".t");
  return span ? Number(span.dataset.token) : null;
}
