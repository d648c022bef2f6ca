// What of the text is on the screen: it follows the end as it is written, goes to a token, and else stands still.

import { Sheets } from "./sheets.js";
import { PAGE } from "./store.js";
import { find } from "./words.js";

const BEYOND = 700; // pixels above and below what is seen

export class View {
  constructor(store, painter) {
    this.store = store;
    this.painter = painter;
    this.sheets = new Sheets(store);
    this.scroller = find("story");
    this.isFollowing = true;
    this.heldUntil = 0; // the hand is on the text: it must not move
    this.goal = null; // a token to bring into view
    this.frame = null;
    this.lastTop = this.lastHeight = 0;
    this.afterLayout = () => {};
    this.scroller.addEventListener("scroll", () => this.scrolled(), { passive: true });
    const resizes = new ResizeObserver(() => this.resized());
    resizes.observe(this.sheets.place);
    resizes.observe(this.scroller);
    this.scroller.addEventListener("wheel", () => (this.goal = null), { passive: true });
    find("to-end").addEventListener("click", () => this.toEnd());
  }

  changed() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.layout();
    });
  }

  // The text does not follow its end for some milliseconds: somebody aims at a word.
  hold(time) {
    this.heldUntil = performance.now() + time;
    clearTimeout(this.timer);
    if (time < Infinity) this.timer = setTimeout(() => this.changed(), time + 1);
  }

  release() {
    this.hold(0);
  }

  // The text is another one from some token on.
  forget() {
    this.sheets.forget();
    this.changed();
  }

  toEnd() {
    this.goal = null;
    this.isFollowing = true;
    this.heldUntil = 0;
    this.changed();
  }

  toToken(token) {
    this.isFollowing = false;
    this.goal = token;
    this.scroller.scrollTop = Math.max(0, this.sheets.between(0, Math.floor(token / PAGE)) - 100);
    this.changed();
  }

  get line() {
    return this.sheets.line;
  }

  ordered() {
    return this.sheets.ordered();
  }

  span(token) {
    return this.sheets.span(token);
  }

  epochOf(token) {
    return this.sheets.of(token)?.epoch ?? this.store.epoch;
  }

  scrolled() {
    const { scrollTop, scrollHeight } = this.scroller;
    if (scrollTop < this.lastTop - 1 && scrollHeight >= this.lastHeight) this.isFollowing = false;
    else if (scrollTop > this.lastTop && this.isAtEnd()) this.isFollowing = true;
    this.lastTop = scrollTop;
    this.lastHeight = scrollHeight;
    this.changed();
  }

  resized() {
    const { place } = this.sheets;
    const width = place.clientWidth;
    const pen = document.createElement("canvas").getContext("2d");
    pen.font = getComputedStyle(place).font;
    place.style.setProperty("--space", `${pen.measureText(" ").width}px`);
    if (width !== this.width) this.forget();
    else this.changed();
    this.width = width;
  }

  isAtEnd() {
    return this.scroller.scrollHeight - this.scroller.clientHeight - this.scroller.scrollTop < 30;
  }

  layout() {
    const { scroller, sheets } = this;
    sheets.estimate();
    const seen = scroller.getBoundingClientRect();
    const anchor = this.anchor(seen);
    const anchorTop = anchor?.element.getBoundingClientRect().top;
    const isAtEnd = this.isFollowing && performance.now() >= this.heldUntil && this.goal === null;
    const scrolled = anchor ? sheets.between(0, anchor.number) - anchorTop + seen.top : scroller.scrollTop;

    const [first, last] = this.range(isAtEnd, scrolled, seen.height);
    this.store.want(first, last);
    sheets.show(first, last);

    if (isAtEnd) scroller.scrollTop = scroller.scrollHeight;
    else if (this.goal !== null) this.reach();
    else if (anchor && anchor.element.isConnected) {
      const moved = anchor.element.getBoundingClientRect().top - anchorTop;
      if (Math.abs(moved) > 0.5) scroller.scrollTop += moved;
    }
    this.lastTop = scroller.scrollTop;
    this.lastHeight = scroller.scrollHeight;
    find("to-end").hidden = this.isFollowing || this.isAtEnd() || !this.store.length;
    for (const page of sheets.shown.values()) this.painter.paint(page);
    this.afterLayout();
  }

  // Pages to be shown, [first, last]. Those before the one to go to come with it: its lines depend on where they end.
  range(isAtEnd, scrolled, height) {
    const { sheets, goal } = this;
    if (goal !== null) return [Math.max(0, Math.floor(goal / PAGE) - 2), Math.min(sheets.count - 1, Math.floor(goal / PAGE) + 1)];
    return isAtEnd ? sheets.end(height + BEYOND) : sheets.range(scrolled - BEYOND, scrolled + height + BEYOND);
  }

  // The first page that is seen: what it shows must not move when heights above it turn out to be others.
  anchor(seen) {
    return this.ordered().find(({ element }) => {
      const box = element.getBoundingClientRect();
      return box.bottom > seen.top + this.line && box.top < seen.bottom;
    });
  }

  reach() {
    const span = this.span(this.goal);
    if (!span || this.store.missing() !== null) return;
    span.scrollIntoView({ block: "center" });
    this.painter.flash(this.goal);
    this.goal = null;
    this.changed();
  }

  // Nothing is on its way and nothing will move.
  get isAtRest() {
    return this.frame === null && this.goal === null && !this.store.isBusy && this.store.missing() === null;
  }
}
