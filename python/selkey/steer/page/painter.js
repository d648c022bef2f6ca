// How every word looks: whose it is, what holds it, what is marked, chosen, suggested, looked at.

import { PAGE } from "./store.js";

const STRONG = 0.2; // a shade on which faded text would be hard to read

export class Painter {
  constructor() {
    this.state = null;
    this.marks = []; // [start, stop, boost, isSent], ascending: as the human sees them
    this.hints = [];
    this.chosen = [0, 0];
    this.cursor = null;
    this.look = null; // {position, shares: Map of token to alpha, folds: [[first, last, alpha]]}
    this.flashed = null;
  }

  flash(token) {
    this.flashed = token;
    setTimeout(() => (this.flashed = null), 1500);
  }

  mark(token) {
    let low = 0;
    for (let high = this.marks.length; low < high; ) {
      const middle = (low + high) >> 1;
      if (this.marks[middle][1] > token) high = middle;
      else low = middle + 1;
    }
    return this.marks[low]?.[0] <= token ? this.marks[low] : null;
  }

  // The pool of a token: pin, sink, window, or fold.
  pool(token) {
    if (this.mark(token)) return "pin";
    if (token < this.state.sinks) return "sink";
    return token >= this.state.window_start ? "window" : "fold";
  }

  paint(page) {
    if (!this.state) return;
    page.spans.forEach((span, at) => {
      const token = page.number * PAGE + at;
      const [names, boost, share] = this.describe(token, page.by[at], span.textContent.startsWith(" "));
      const key = `${names}|${boost}|${share}`;
      if (page.painted[at] === key) return;
      page.painted[at] = key;
      span.className = names;
      if (boost) span.dataset.boost = boost;
      else delete span.dataset.boost;
      if (share) span.style.setProperty("--share", share);
      else span.style.removeProperty("--share");
    });
  }

  describe(token, by, hasSpace) {
    const names = hasSpace ? ["t", "lead", by] : ["t", by];
    const mark = this.mark(token);
    let boost = "";
    names.push(mark ? "pin" : this.pool(token));
    if (mark) {
      if (mark[0] === token) names.push("start");
      if (mark[1] === token + 1) {
        names.push("stop");
        if (mark[2]) boost = `${Math.round(100 * mark[2])} %`;
      }
      if (mark[3]) names.push("sent");
    } else if (this.hints.some(([start, stop]) => start <= token && token < stop)) names.push("hint");
    if (this.chosen[0] <= token && token < this.chosen[1]) names.push("chosen");
    if (this.cursor === token) names.push("cursor");
    if (this.flashed === token) names.push("flash");
    const share = this.share(token);
    if (share) names.push(share > STRONG ? "seen strong" : "seen");
    if (this.look?.position === token) names.push("of");
    return [names.join(" "), boost, share];
  }

  share(token) {
    if (!this.look) return 0;
    const alpha = this.look.shares.get(token);
    if (alpha !== undefined) return alpha;
    if (this.pool(token) !== "fold") return 0;
    const fold = this.look.folds.find(([first, last]) => first <= token && token <= last);
    return fold ? fold[2] : 0;
  }
}
