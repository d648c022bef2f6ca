// Numbers and pieces of text as a person reads them; small helpers of the page.

export const find = (id) => document.getElementById(id);

export const POOLS = ["sinks", "pins", "window", "keep", "folds"];

const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const count = (number) => plain.format(number);

export const tokens = (number) => `${count(number)} ${number === 1 ? "token" : "tokens"}`;

export function bytes(number) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  for (; number >= 999.5 && at < units.length - 1; at += 1) number /= 1000;
  return `${at && number < 9.95 ? number.toFixed(1) : Math.round(number)} ${units[at]}`;
}

export function percent(share) {
  if (share > 0 && share < 0.001) return "< 0.1 %";
  return share < 0.0995 ? `${+(100 * share).toFixed(1)} %` : `${Math.round(100 * share)} %`;
}

export const milliseconds = (time) => (time < 9.95 ? `${time.toFixed(1)} ms` : `${count(time)} ms`);

export const NOTHING = "(no text)";

// The words of some tokens on one line, at most `length` letters.
export function excerpt(pieces, length = 60) {
  const text = pieces.join("").replace(/\s+/g, " ").trim();
  if (!text) return pieces.some((piece) => piece.includes("\n")) ? "¶" : pieces.join("") ? "␣" : NOTHING;
  return text.length > length ? `${text.slice(0, length - 1)}…` : text;
}

// An element with text: whatever comes from a text is never read as HTML.
export function make(name, { text, children = [], ...properties } = {}) {
  const element = Object.assign(document.createElement(name), properties);
  if (text !== undefined) element.textContent = text;
  element.append(...children);
  return element;
}

// Where a word is on the screen; the space before it may be on another line.
export const boxOf = (span) => [...span.getClientRects()].at(-1) ?? span.getBoundingClientRect();

// Calls `action` at most once in `gap` milliseconds, the last call always.
export function throttle(action, gap) {
  let last = -Infinity;
  let timer = null;
  return () => {
    if (timer !== null) return;
    const wait = Math.max(0, last + gap - performance.now());
    timer = setTimeout(() => {
      timer = null;
      last = performance.now();
      action();
    }, wait);
  };
}

// A map that forgets what was not used for the longest time.
export class Recent extends Map {
  constructor(limit) {
    super();
    this.limit = limit;
  }

  get(key) {
    const value = super.get(key);
    if (value !== undefined) {
      this.delete(key);
      super.set(key, value);
    }
    return value;
  }

  set(key, value) {
    this.delete(key);
    super.set(key, value);
    if (this.size > this.limit) this.delete(this.keys().next().value);
    return this;
  }
}
