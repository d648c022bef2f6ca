// The map of looks: a row for each of the last words, a column for each place that was held. The newest word is the lowest row.

import { get } from "./api.js";
import { count, find, percent, throttle } from "./words.js";

const ROWS = 160;

export class LookMap {
  constructor(looks, excerpts, accept) {
    Object.assign(this, { looks, excerpts });
    this.canvas = find("map");
    this.rows = new Map(); // token -> [[token looked at, share], ...]
    this.order = this.columns = []; // tokens of rows and columns
    this.isBusy = false;
    this.pointed = null;
    this.fetch = throttle(() => this.load(), 400);
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => this.point(null));
    this.canvas.addEventListener("click", (event) => {
      this.point(event);
      if (this.pointed) accept(this.pointed.column, performance.now());
    });
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    looks.headsChanged = () => {
      this.clear();
      this.fetch();
    };
    find("enlarge").addEventListener("click", () => this.enlarge());
    find("map-dialog").addEventListener("close", () => find("map-place").append(...find("map-large").children));
    find("map-dialog").addEventListener("click", (event) => event.target === find("map-dialog") && find("map-dialog").close());
  }

  enlarge() {
    find("map-large").append(...find("map-place").children);
    find("map-dialog").showModal();
  }

  follow(state) {
    if (state.epoch !== this.state?.epoch) this.clear();
    this.state = state;
    this.fetch();
  }

  clear() {
    this.rows.clear();
    this.order = this.columns = [];
    this.pointed = null;
  }

  async load() {
    const { state, looks } = this;
    if (this.isBusy || !state) return;
    const start = Math.max(state.look_start, state.look_stop - ROWS);
    // of a human's words there are no rows: what is behind the last one is new
    const from = Math.max(start - 1, ...this.rows.keys()) + 1;
    if (from < state.look_stop) {
      this.isBusy = true;
      const { layer, head } = looks;
      try {
        const map = await get("map", { start: from, stop: state.look_stop, layer, head });
        if (state.epoch === this.state.epoch && layer === looks.layer && head === looks.head) map.rows.forEach(([token, row]) => this.rows.set(token, row));
      } catch {
        // the next state asks again
      } finally {
        this.isBusy = false;
      }
    }
    this.arrange(start);
    this.draw();
  }

  // Columns: what was looked at far back, one by one, then the whole stretch of the window.
  arrange(start) {
    for (const token of this.rows.keys()) if (token < start) this.rows.delete(token);
    this.order = [...this.rows.keys()].sort((one, other) => one - other);
    const recent = Math.max(this.state.sinks, (this.order[0] ?? 0) - this.state.window);
    const far = new Set();
    for (let at = 0; at < Math.min(this.state.sinks, this.state.tokens); at += 1) far.add(at);
    for (const [start, stop] of this.state.marks) for (let at = start; at < Math.min(stop, recent); at += 1) far.add(at);
    for (const row of this.rows.values()) for (const [at] of row) if (at < recent) far.add(at);
    this.columns = [...far].sort((one, other) => one - other);
    for (let at = recent; at < this.state.tokens; at += 1) this.columns.push(at);
    this.places = new Map(this.columns.map((token, at) => [token, at]));
    this.label("map-rows", this.order);
    this.label("map-columns", this.columns);
  }

  // The first and the last token of an axis, at its ends.
  label(axis, all) {
    const { firstElementChild: first, lastElementChild: last } = find(axis);
    first.textContent = all.length ? count(all[0]) : "";
    last.textContent = all.length ? count(all.at(-1)) : "";
  }

  draw() {
    const { canvas, order } = this;
    const scale = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(canvas.clientWidth * scale), Math.round(canvas.clientHeight * scale)];
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const pen = canvas.getContext("2d");
    pen.clearRect(0, 0, width, height);
    if (!order.length) return;
    const style = getComputedStyle(document.documentElement);
    const [wide, tall] = [width / this.columns.length, height / Math.max(order.length, 24)];
    pen.fillStyle = style.getPropertyValue("--marker");
    pen.globalAlpha = 0.35;
    for (const [start, stop] of this.state.marks) {
      for (let at = start; at < stop; at += 1) if (this.places.has(at)) pen.fillRect(this.places.get(at) * wide, 0, Math.max(wide, scale), height);
    }
    pen.fillStyle = `rgb(${style.getPropertyValue("--looks")})`;
    order.forEach((token, row) => {
      for (const [at, share] of this.rows.get(token)) {
        const place = this.places.get(at);
        if (place === undefined) continue;
        pen.globalAlpha = Math.min(1, 0.06 + 1.1 * Math.sqrt(share));
        pen.fillRect(place * wide, row * tall, Math.max(wide, scale), Math.max(tall, 1));
      }
    });
    pen.globalAlpha = 1;
    if (!this.pointed) return;
    pen.strokeStyle = style.getPropertyValue("--ink");
    pen.lineWidth = scale;
    pen.strokeRect(this.pointed.place * wide - scale, this.pointed.row * tall - scale, Math.max(wide, scale) + 2 * scale, tall + 2 * scale);
  }

  // The pair under the pointer, or the strongest look within three pixels of it.
  point(event) {
    const { canvas, order } = this;
    this.pointed = null;
    if (event && order.length) {
      const box = canvas.getBoundingClientRect();
      const [wide, tall] = [box.width / this.columns.length, box.height / Math.max(order.length, 24)];
      const [x, y] = [event.clientX - box.left, event.clientY - box.top];
      const row = Math.min(order.length - 1, Math.floor(y / tall));
      const near = this.rows.get(order[row]).filter(([at]) => this.places.has(at) && Math.abs((this.places.get(at) + 0.5) * wide - x) <= 3 + wide / 2);
      const [at, share] = near.sort((one, other) => other[1] - one[1])[0] ?? [this.columns[Math.floor(x / wide)], 0];
      if (at !== undefined) this.pointed = { row, place: this.places.get(at), column: at, token: order[row], share };
    }
    this.say();
    this.draw();
  }

  say() {
    const { pointed } = this;
    find("map-says").textContent = pointed
      ? `${this.excerpts.one(pointed.token)} (${count(pointed.token)}) looked at ${this.excerpts.one(pointed.column)} (${count(pointed.column)}): ${pointed.share ? percent(pointed.share) : "hardly"}. Click marks it.`
      : "Rows: the last words written. Columns: what was held.";
  }
}
