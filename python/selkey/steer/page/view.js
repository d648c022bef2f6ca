// The text on the screen: only pages near what is seen are elements, the others are two empty blocks of the right height.
// A page begins where the one before it ended, in the middle of a line: the first line is indented and drawn over the last one.

import { PAGE } from "./store.js";
import { find, make } from "./words.js";

const BEYOND = 700; // pixels above and below what is seen

export class View {
  constructor(store, painter) {
    this.store = store;
    this.painter = painter;
    this.scroller = find("story");
    this.place = find("pages");
    this.shown = new Map(); // number of a page -> {number, element, spans, painted, by, end, epoch}
    this.heights = []; // of pages that were measured
    this.indents = [0];
    this.isFollowing = true;
    this.heldUntil = 0; // the hand is on the text: it must not move
    this.goal = null; // a token to bring into view
    this.frame = null;
    this.lastTop = this.lastHeight = 0;
    this.afterLayout = () => {};
    this.scroller.addEventListener("scroll", () => this.scrolled(), { passive: true });
    const resizes = new ResizeObserver(() => this.resized());
    resizes.observe(this.place);
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

  // The text is another one from some token on: heights are measured again, elements stay until their text is there.
  forget() {
    this.heights.length = 0;
    this.indents.length = 1;
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
    this.scroller.scrollTop = Math.max(0, this.top(Math.floor(token / PAGE)) - 100);
    this.changed();
  }

  // Pages that are shown, from the first to the last.
  ordered() {
    return [...this.shown.values()].sort((one, other) => one.number - other.number);
  }

  span(token) {
    return this.shown.get(Math.floor(token / PAGE))?.spans[token % PAGE];
  }

  epochOf(token) {
    return this.shown.get(Math.floor(token / PAGE))?.epoch ?? this.store.epoch;
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
    const width = this.place.clientWidth;
    const pen = document.createElement("canvas").getContext("2d");
    pen.font = getComputedStyle(this.place).font;
    this.place.style.setProperty("--space", `${pen.measureText(" ").width}px`);
    if (width !== this.width) this.forget();
    else this.changed();
    this.width = width;
  }

  isAtEnd() {
    return this.scroller.scrollHeight - this.scroller.clientHeight - this.scroller.scrollTop < 30;
  }

  pageCount() {
    return Math.ceil(this.store.length / PAGE);
  }

  height(number) {
    return this.heights[number] ?? this.usual;
  }

  // Where a page begins, in pixels from the beginning of the text.
  top(number) {
    let sum = 0;
    for (let at = 0; at < number; at += 1) sum += this.height(at);
    return sum;
  }

  estimate() {
    this.line = parseFloat(getComputedStyle(this.place).lineHeight);
    const known = this.heights.filter((height, number) => height && (number + 1) * PAGE <= this.store.length);
    this.usual = known.length ? known.reduce((sum, height) => sum + height, 0) / known.length : 16 * this.line;
  }

  layout() {
    const { scroller } = this;
    this.estimate();
    const seen = scroller.getBoundingClientRect();
    const anchor = this.anchor(seen);
    const anchorTop = anchor?.element.getBoundingClientRect().top;
    const scrolled = anchor ? this.top(anchor.number) - anchorTop + seen.top : scroller.scrollTop;

    const pages = this.pageCount();
    const isAtEnd = this.isFollowing && performance.now() >= this.heldUntil && this.goal === null;
    const upper = isAtEnd ? Infinity : scrolled - BEYOND;
    const lower = scrolled + seen.height + BEYOND;
    let [first, last] = this.range(upper, lower, pages, seen.height);
    if (this.goal !== null) [first, last] = this.around(Math.floor(this.goal / PAGE), pages);
    this.store.want(first, last);
    this.render(first, last);
    this.measure(first, last);

    find("before").style.height = `${this.top(first) + (first > 0 ? this.line : 0)}px`;
    let rest = 0;
    for (let at = last + 1; at < pages; at += 1) rest += this.height(at);
    find("after").style.height = `${rest}px`;

    if (isAtEnd) scroller.scrollTop = scroller.scrollHeight;
    else if (this.goal !== null) this.reach();
    else if (anchor && anchor.element.isConnected) {
      const moved = anchor.element.getBoundingClientRect().top - anchorTop;
      if (Math.abs(moved) > 0.5) scroller.scrollTop += moved;
    }
    this.lastTop = scroller.scrollTop;
    this.lastHeight = scroller.scrollHeight;
    find("to-end").hidden = this.isFollowing || this.isAtEnd() || !this.store.length;
    this.paint();
    this.afterLayout();
  }

  // Pages before the one to go to come with it: its lines depend on where they end.
  around(number, pages) {
    return [Math.max(0, number - 2), Math.min(pages - 1, number + 1)];
  }

  // The first page that is seen: what it shows must not move when heights above it turn out to be others.
  anchor(seen) {
    return this.ordered().find(({ element }) => {
      const box = element.getBoundingClientRect();
      return box.bottom > seen.top + this.line && box.top < seen.bottom;
    });
  }

  range(upper, lower, pages, height) {
    if (upper === Infinity) {
      let first = pages - 1;
      for (let sum = 0; first > 0 && sum < height + BEYOND; first -= 1) sum += this.height(first);
      return [Math.max(0, first), pages - 1];
    }
    if (!pages) return [0, -1];
    let first = 0;
    let sum = 0;
    for (; first < pages - 1 && sum + this.height(first) < upper; first += 1) sum += this.height(first);
    let last = first;
    for (sum += this.height(first); last < pages - 1 && sum < lower; last += 1) sum += this.height(last + 1);
    return [first, last];
  }

  render(first, last) {
    for (const [number, page] of this.shown) {
      if (number >= first && number <= last) continue;
      page.element.remove();
      this.shown.delete(number);
    }
    let next = this.place.firstElementChild;
    for (let number = first; number <= last; number += 1) {
      let page = this.shown.get(number);
      if (!page) {
        page = { number, element: make("div", { className: "page" }), spans: [], painted: [], by: "", end: make("i"), epoch: null };
        page.element.append(page.end);
        this.place.insertBefore(page.element, next);
        this.shown.set(number, page);
      } else next = page.element.nextElementSibling;
      this.write(page, this.store.page(number));
    }
  }

  write(page, text) {
    const cut = this.store.length - page.number * PAGE;
    if (!text) {
      while (page.spans.length > Math.max(0, cut)) page.spans.pop().remove();
      return;
    }
    if (page.epoch !== text.epoch) {
      page.spans.forEach((span) => span.remove());
      page.spans.length = page.painted.length = 0;
      page.epoch = text.epoch;
    }
    const added = document.createDocumentFragment();
    for (let at = page.spans.length; at < text.pieces.length; at += 1) {
      const span = make("span", { text: text.pieces[at] });
      span.dataset.token = page.number * PAGE + at;
      page.spans.push(span);
      added.append(span);
    }
    page.by = text.by;
    page.element.insertBefore(added, page.end);
  }

  measure(first, last) {
    for (let number = first; number <= last; number += 1) {
      const page = this.shown.get(number);
      const { style } = page.element;
      const isWaiting = !page.spans.length;
      style.marginTop = number > 0 ? `${-this.line}px` : "0";
      style.textIndent = `${this.indents[number] ?? 0}px`;
      style.height = isWaiting ? `${this.usual + this.line}px` : "";
      if (isWaiting) continue;
      const box = page.element.getBoundingClientRect();
      const end = page.end.getBoundingClientRect();
      this.heights[number] = box.height - this.line;
      this.indents[number + 1] = end.left - box.left;
    }
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

  paint() {
    for (const page of this.shown.values()) this.painter.paint(page);
  }
}
