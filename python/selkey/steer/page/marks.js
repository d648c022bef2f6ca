// Marks as the human sees them: those of the server, and on top what was asked a moment ago and is not answered yet.

import { post } from "./api.js";

export class Marks {
  constructor(painter, hooks) {
    this.painter = painter;
    this.hooks = hooks; // {changed(), accepted(state), failed(problem), timed(shown, kept)}
    this.asked = []; // [{start, stop, boost}], boost null: unmarked
    this.state = null;
  }

  follow(state) {
    this.state = state;
    this.combine();
  }

  combine() {
    let marks = (this.state?.marks ?? []).map(([start, stop, boost]) => [start, stop, boost, false]);
    for (const { start, stop, boost } of this.asked) {
      marks = marks.flatMap((mark) => cut(mark, start, stop));
      if (boost !== null) marks.push([start, stop, boost, true]);
      marks.sort((one, other) => one[0] - other[0]);
    }
    this.painter.marks = marks;
    this.hooks.changed();
  }

  // Shown at once, taken back if the server refuses.
  async ask(name, change, body, began) {
    if (change) this.asked.push(change);
    this.combine();
    const shown = new Promise((done) => requestAnimationFrame(() => done(performance.now() - began)));
    try {
      const answer = await post(name, body);
      this.hooks.timed(await shown, performance.now() - began);
      this.settle(change);
      this.hooks.accepted(answer.state);
      return answer.result;
    } catch (problem) {
      this.settle(change);
      this.combine();
      this.hooks.failed(problem);
      return null;
    }
  }

  settle(change) {
    this.asked = this.asked.filter((one) => one !== change);
  }

  mark(start, stop, boost, epoch, began = performance.now()) {
    return this.ask("mark", { start, stop, boost }, { start, stop, boost, epoch }, began);
  }

  unmark(start, stop, epoch, began = performance.now()) {
    return this.ask("unmark", { start, stop, boost: null }, { start, stop, epoch }, began);
  }

  recall(start, stop, epoch, began = performance.now()) {
    return this.ask("recall", null, { start, stop, epoch }, began);
  }

  // The parts of [start, stop) for which `has` holds, as ranges.
  ranges(start, stop, has) {
    const ranges = [];
    for (let token = start; token < stop; token += 1) {
      if (!has(token)) continue;
      const last = ranges.at(-1);
      if (last?.[1] === token) last[1] += 1;
      else ranges.push([token, token + 1]);
    }
    return ranges;
  }
}

function cut([start, stop, boost, isSent], from, to) {
  if (to <= start || stop <= from) return [[start, stop, boost, isSent]];
  const parts = [];
  if (start < from) parts.push([start, from, boost, isSent]);
  if (to < stop) parts.push([to, stop, boost, isSent]);
  return parts;
}
