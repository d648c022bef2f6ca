// Marks as the human sees them: those of the server, and on top what was asked a moment ago and is not answered yet.

import { post } from "./api.js";

export class Marks {
  constructor(painter, hooks) {
    this.painter = painter;
    this.hooks = hooks; // {changed(), accepted(state), failed(problem), timed(shown, kept)}
    this.asked = []; // [{start, stop, boost, isNew}], boost null: unmarked; isNew: what is marked stays as it is
    this.state = null;
  }

  follow(state) {
    this.state = state;
    this.combine();
  }

  combine() {
    let marks = (this.state?.marks ?? []).map(([start, stop, boost]) => [start, stop, boost, false]);
    for (const { start, stop, boost, isNew } of this.asked) {
      const before = marks;
      const isFree = (token) => !isNew || !before.some((mark) => mark[0] <= token && token < mark[1]);
      const parts = this.ranges(start, stop, isFree);
      for (const [from, to] of parts) marks = marks.flatMap((mark) => cut(mark, from, to));
      if (boost !== null) marks.push(...parts.map(([from, to]) => [from, to, boost, true]));
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
      this.combine(); // a newer state may have been here before the answer
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

  // With `isNew` what is marked of [start, stop) stays as it is; it is one thing to take back either way.
  mark(start, stop, boost, epoch, began = performance.now(), isNew = false) {
    return this.ask("mark", { start, stop, boost, isNew }, { start, stop, boost, epoch, new_only: isNew }, began);
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
