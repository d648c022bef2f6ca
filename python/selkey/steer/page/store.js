// The text near what is shown, in pages; whatever is far is forgotten and asked for again.

import { get } from "./api.js";
import { Recent } from "./words.js";

export const PAGE = 250; // tokens
const REQUEST = 8; // pages of one request
const KEPT = 40; // pages in memory

export class Store {
  constructor(changed, failed) {
    this.changed = changed; // called with the page that grew
    this.failed = failed;
    this.pages = new Recent(KEPT);
    this.epoch = null;
    this.length = 0; // tokens of the whole text
    this.wanted = [0, -1];
    this.isBusy = false;
  }

  // Follows a state; true if text that was already shown is no longer true.
  follow(state) {
    const isOther = state.epoch !== this.epoch;
    if (isOther) this.pages.clear();
    this.epoch = state.epoch;
    this.length = state.tokens;
    this.fill();
    return isOther;
  }

  page(number) {
    return this.pages.get(number);
  }

  piece(token) {
    return this.pages.get(Math.floor(token / PAGE))?.pieces[token % PAGE];
  }

  // Pages first to last are to be had.
  want(first, last) {
    this.wanted = [first, last];
    this.fill();
  }

  missing() {
    for (let number = this.wanted[0]; number <= this.wanted[1]; number += 1) {
      const have = this.pages.get(number)?.pieces.length ?? 0;
      if (have < Math.min(PAGE, this.length - number * PAGE)) return number * PAGE + have;
    }
    return null;
  }

  async fill() {
    if (this.isBusy) return;
    this.isBusy = true;
    try {
      for (let start = this.missing(); start !== null; start = this.missing()) {
        const stop = Math.min(this.length, (this.wanted[1] + 1) * PAGE, (Math.floor(start / PAGE) + REQUEST) * PAGE);
        const text = await get("text", { start, stop });
        if (text.epoch !== this.epoch || !text.pieces.length) break; // the state that says so is on its way and asks again
        this.take(text);
      }
    } catch (problem) {
      if (problem.status) this.failed(problem);
    } finally {
      this.isBusy = false;
    }
  }

  take(text) {
    text.pieces.forEach((piece, at) => {
      const token = text.start + at;
      const number = Math.floor(token / PAGE);
      let page = this.pages.get(number);
      if (!page) this.pages.set(number, (page = { pieces: [], by: "", epoch: text.epoch }));
      if (page.pieces.length !== token % PAGE) return; // it came twice, or its beginning was forgotten meanwhile
      page.pieces.push(piece);
      page.by += text.by[at];
    });
    this.changed();
  }
}
