// The pages of the text as elements, and how tall each is; one that was never shown counts as tall as the usual one.
// A page begins where the one before it ended, in the middle of a line: the first line is indented and drawn over the last one.

import { PAGE } from "./store.js";
import { find, make } from "./words.js";

export class Sheets {
  constructor(store) {
    this.store = store;
    this.place = find("pages");
    this.shown = new Map(); // number of a page -> {number, element, spans, painted, by, end, epoch}
    this.heights = []; // of pages that were measured
    this.indents = [0];
    this.line = this.usual = 0; // heights of a line and of a page
  }

  // Heights are measured again; elements stay until their text is there.
  forget() {
    this.heights.length = 0;
    this.indents.length = 1;
  }

  get count() {
    return Math.ceil(this.store.length / PAGE);
  }

  // Pages that are shown, from the first to the last.
  ordered() {
    return [...this.shown.values()].sort((one, other) => one.number - other.number);
  }

  of(token) {
    return this.shown.get(Math.floor(token / PAGE));
  }

  span(token) {
    return this.of(token)?.spans[token % PAGE];
  }

  height(number) {
    return this.heights[number] ?? this.usual;
  }

  // How tall the pages from `first` to before `stop` are together.
  between(first, stop) {
    let sum = 0;
    for (let at = first; at < stop; at += 1) sum += this.height(at);
    return sum;
  }

  estimate() {
    this.line = parseFloat(getComputedStyle(this.place).lineHeight);
    const known = this.heights.filter((height, number) => height && (number + 1) * PAGE <= this.store.length);
    this.usual = known.length ? known.reduce((sum, height) => sum + height, 0) / known.length : 16 * this.line;
  }

  // The numbers [first, last] of the pages between two heights, in pixels from the beginning of the text.
  range(upper, lower) {
    if (!this.count) return [0, -1];
    const end = this.count - 1;
    let [first, sum] = [0, 0];
    for (; first < end && sum + this.height(first) < upper; first += 1) sum += this.height(first);
    let last = first;
    for (sum += this.height(first); last < end && sum < lower; last += 1) sum += this.height(last + 1);
    return [first, last];
  }

  // The last pages, so many that they are `height` tall.
  end(height) {
    let first = this.count - 1;
    for (let sum = 0; first > 0 && sum < height; first -= 1) sum += this.height(first);
    return [Math.max(0, first), this.count - 1];
  }

  // Those and no others are elements, the rest two empty blocks of the right height.
  show(first, last) {
    this.render(first, last);
    this.measure(first, last);
    find("before").style.height = `${this.between(0, first) + (first > 0 ? this.line : 0)}px`;
    find("after").style.height = `${this.between(last + 1, this.count)}px`;
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
}
