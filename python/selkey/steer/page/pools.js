// What is held, and how the attention is shared: bars, keys, the short history, the certificate, the pace.

import { bytes, count, find, make, milliseconds, percent, POOLS, tokens } from "./words.js";

const REMEMBERED = 300; // samples of the history

const MEANING = {
  sinks: "sinks: the first tokens, always held", pins: "pins: what you marked", window: "window: the last tokens",
  keep: "keep: tokens that the model looked at most", folds: "folds: all else, as a few summaries", tables: "tables: where everything lies",
  sliding: "sliding: layers that look at no more than the last tokens by themselves", states: "states: layers that keep a running state",
};

export function bar(place, shares, say) {
  const names = Object.keys(shares);
  while (place.children.length < names.length) place.append(make("div"));
  names.forEach((name, at) => {
    const part = place.children[at];
    part.className = name;
    part.style.flexGrow = Math.max(0, shares[name]);
    part.style.display = shares[name] > 0 ? "" : "none";
    part.title = `${MEANING[name] ?? name}. ${say(name)}`;
  });
  place.setAttribute("role", "img");
  place.setAttribute("aria-label", names.map((name) => `${name} ${say(name)}`).join(", "));
}

export function key(place, names, say) {
  while (place.children.length < names.length) place.append(make("li", { children: [make("span"), make("b")] }));
  names.forEach((name, at) => {
    const item = place.children[at];
    item.className = name;
    item.title = MEANING[name] ?? name;
    item.firstChild.textContent = name;
    item.lastChild.textContent = say(name);
  });
}

// How much room a pool takes, and of how many tokens, as far as tokens are what it is made of.
function sayRoom(state, name, used) {
  const [held, size] = state.pools[name];
  if (used !== undefined) return `${tokens(Math.min(held, state[name]))} of ${count(state[name])}: ${bytes(used * size)} used of ${bytes(size)}`;
  return POOLS.includes(name) ? `${tokens(held)}, ${bytes(size)}` : bytes(size);
}

export class Pools {
  constructor() {
    this.history = [];
    this.sampled = [null, 0];
    this.marked = null;
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  timed(shown, kept) {
    this.marked = [shown, kept];
    this.pace();
  }

  follow(state) {
    this.state = state;
    this.room(state);
    this.mass(state);
    this.pace();
  }

  // What is held is room that was taken in the beginning, once and for all: how much of it is used says the darker part of each bar.
  room(state) {
    const pools = Object.keys(state.pools);
    find("held").textContent = state.nbytes ? `${bytes(state.nbytes)}, for ever` : "Nothing yet";
    find("room").textContent = `Room for ${count(state.pins)} marked tokens, ${count(state.window)} of the window, the first ${count(state.sinks)}, and a few folds of all the rest.`;
    find("dense").textContent = state.tokens ? `A full cache would hold ${bytes(state.dense_nbytes)} by now, and grows.` : "A full cache would grow with the text.";
    const used = { sinks: state.sinks, pins: state.pins, window: state.window };
    for (const name in used) used[name] = Math.min(1, (state.pools[name]?.[0] ?? 0) / used[name]);
    bar(find("pools"), Object.fromEntries(pools.map((name) => [name, state.pools[name][1]])), (name) => sayRoom(state, name, used[name]));
    for (const part of find("pools").children) part.style.setProperty("--used", `${100 * (used[part.className] ?? 1)}%`);
    const others = pools.filter((name) => !POOLS.includes(name) && name !== "tables");
    const held = (name) => (others.includes(name) ? bytes(state.pools[name][1]) : count(state.pools[name]?.[0] ?? 0));
    key(find("pools-key"), [...POOLS, ...others], (name) => (name === "pins" ? `${count(state.marked_tokens)} of ${count(state.pins)}` : held(name)));
  }

  mass(state) {
    const mass = state.mass ?? Object.fromEntries(POOLS.map((name) => [name, 0]));
    bar(find("mass"), mass, (name) => percent(mass[name]));
    key(find("mass-key"), POOLS, (name) => (state.mass ? percent(mass[name] ?? 0) : "–"));
    const [epoch, length] = this.sampled;
    if (epoch !== state.epoch) this.history.length = 0;
    if (state.mass && (epoch !== state.epoch || state.tokens !== length)) {
      this.history.push(state.mass);
      if (this.history.length > REMEMBERED) this.history.shift();
    }
    this.sampled = [state.epoch, state.tokens];
    this.draw();
    find("certificate").textContent = state.certificate?.sentence ?? "Nothing has been written yet.";
    this.layers(state.certificate?.layers ?? []);
  }

  layers(figures) {
    const table = find("layers");
    table.hidden = !figures.length;
    if (table.rows.length !== figures.length + 1) {
      const cells = (name, texts) => make("tr", { children: texts.map((text) => make(name, { text })) });
      table.replaceChildren(cells("th", ["layer", "to folds", "error"]), ...figures.map(() => cells("td", ["", "", ""])));
    }
    figures.forEach((figure, layer) => {
      [String(layer), ...figure.map(percent)].forEach((text, at) => (table.rows[layer + 1].cells[at].textContent = text));
    });
  }

  draw() {
    const canvas = find("history");
    const scale = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth * scale, canvas.clientHeight * scale];
    if (!width) return;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const pen = canvas.getContext("2d");
    const style = getComputedStyle(document.documentElement);
    const colours = POOLS.map((name) => style.getPropertyValue(`--pool-${name}`));
    pen.clearRect(0, 0, width, height);
    const step = width / REMEMBERED;
    this.history.forEach((mass, at) => {
      let bottom = height;
      POOLS.forEach((name, pool) => {
        const tall = (mass[name] ?? 0) * height;
        pen.fillStyle = colours[pool];
        pen.fillRect(width - (this.history.length - at) * step, bottom - tall, step + 0.5, tall);
        bottom -= tall;
      });
    });
  }

  pace() {
    const { state, marked } = this;
    if (!state) return;
    const rows = [
      ["written", tokens(state.tokens)],
      ["pace", state.tokens_per_second ? `${count(state.tokens_per_second)} tokens a second` : "–"],
      ["last mark shown after", marked ? milliseconds(marked[0]) : "–"],
      ["and held after", marked ? milliseconds(marked[1]) : "–"],
    ];
    const place = find("pace");
    if (!place.children.length) place.append(...rows.flatMap(([name]) => [make("dt", { text: name }), make("dd")]));
    rows.forEach(([, text], at) => (place.children[2 * at + 1].textContent = text));
  }
}
