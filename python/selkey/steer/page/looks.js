// Where the model looked when it wrote a word: shades in the text, shares of the pools, the words looked at most.

import { get } from "./api.js";
import { bar } from "./pools.js";
import { count, excerpt, find, make, NOTHING, percent, Recent } from "./words.js";

const STRONGEST = 0.7; // the shade of the token that was looked at most
const WEAKEST = 0.02; // of its share: what is less is not shaded

export class Looks {
  constructor(painter, view, excerpts) {
    Object.assign(this, { painter, view, excerpts });
    this.seen = new Recent(200);
    this.wanted = this.pointed = null;
    this.layer = this.head = null;
    this.timer = null;
    this.request = null;
    this.headsChanged = () => {};
  }

  follow(state) {
    if (state.epoch !== this.state?.epoch) {
      this.seen.clear();
      this.wanted = this.pointed = null;
      this.show(null);
    }
    if (state.n_layers !== this.state?.n_layers || state.n_heads !== this.state?.n_heads) this.grid(state.n_layers, state.n_heads);
    this.state = state;
  }

  // A word is pointed at; null: none, and the panel still tells of the last one.
  hover(token) {
    if (token === this.pointed) return;
    this.pointed = token;
    clearTimeout(this.timer);
    if (token === null) return this.shade(null);
    this.wanted = token;
    this.timer = setTimeout(() => this.ask(token), 40);
  }

  async ask(token) {
    const { state, layer, head } = this;
    if (!state || token < state.look_start || token >= state.look_stop) return this.show(null, token);
    const name = `${state.epoch} ${token} ${layer} ${head}`;
    let look = this.seen.get(name);
    if (!look) {
      this.request?.abort();
      this.request = new AbortController();
      try {
        look = await get("look", { position: token, layer, head }, this.request.signal);
      } catch (problem) {
        return problem.name === "AbortError" ? null : this.show(null, token);
      }
      if (state.epoch !== this.state.epoch) return null;
      this.seen.set(name, look);
    }
    if (token === this.wanted && layer === this.layer && head === this.head) this.show(look, token);
    return look;
  }

  show(look, token = null) {
    this.shown = [look, token];
    this.shade(look);
    this.describe(look, token);
  }

  // Words that were far away have come.
  again() {
    if (this.shown?.[0]) this.describe(...this.shown);
  }

  shade(look) {
    const most = look?.tokens[0]?.[1] || 1;
    const alpha = (share) => (STRONGEST * Math.min(1, share / most) ** 0.6).toFixed(2);
    this.painter.look = look && {
      position: look.position,
      shares: new Map(look.tokens.filter(([, share]) => share > WEAKEST * most).map(([at, share]) => [at, alpha(share)])),
      folds: look.folds.filter(([, , , share]) => share > WEAKEST * most).map(([first, last, , share]) => [first, last, alpha(share)]),
    };
    this.view.changed();
  }

  describe(look, token) {
    const says = find("looks-of");
    const top = find("looks-top");
    find("looks-pools").hidden = !look;
    if (!look) {
      const known = this.state && this.state.look_stop > this.state.look_start;
      const range = known ? `known for tokens ${count(this.state.look_start)} to ${count(this.state.look_stop - 1)}` : "nothing is known yet";
      says.textContent = token === null ? "Point at a word." : `Where the model looked is ${range}.`;
      return top.replaceChildren();
    }
    const folds = look.pools.folds ? ` these, and ${percent(look.pools.folds)} at folded text` : "";
    says.replaceChildren("To write ", make("b", { text: this.excerpts.one(token) }), ` the model looked at${folds}:`);
    bar(find("looks-pools"), look.pools, (pool) => percent(look.pools[pool]));
    const items = look.tokens.slice(0, 8).map(([at, share]) => {
      const button = make("button", { title: `token ${count(at)}: press to go there`, children: [this.excerpts.one(at), make("small", { text: percent(share) })] });
      button.style.setProperty("--share", alphaOf(share, look));
      button.addEventListener("click", () => this.view.toToken(at));
      return make("li", { children: [button] });
    });
    top.replaceChildren(...items);
    return null;
  }

  // One row of buttons a layer, one column a head; the first button is the mean over all.
  grid(layers, heads) {
    const place = find("heads");
    place.style.gridTemplateColumns = `3.4rem repeat(${heads}, minmax(1.15rem, 1fr))`;
    const button = (text, layer, head, title) => {
      const one = make("button", { text, title });
      one.addEventListener("click", () => this.choose(layer, head));
      one.dataset.of = `${layer} ${head}`;
      return one;
    };
    const rows = [button("mean", null, null, "the mean over all layers and heads")];
    rows[0].style.gridColumn = "1 / -1";
    for (let layer = 0; layer < layers; layer += 1) {
      rows.push(button(`layer ${layer}`, layer, null, `the mean over the heads of layer ${layer}`));
      for (let head = 0; head < heads; head += 1) rows.push(button("", layer, head, `layer ${layer}, head ${head}`));
    }
    rows.forEach((one) => !one.textContent && one.setAttribute("aria-label", one.title));
    place.replaceChildren(...rows);
    this.choose(null, null);
  }

  choose(layer, head) {
    this.layer = layer;
    this.head = head;
    for (const button of find("heads").children) button.setAttribute("aria-pressed", String(button.dataset.of === `${layer} ${head}`));
    if (this.wanted !== null) this.ask(this.wanted);
    this.headsChanged();
  }
}

function alphaOf(share, look) {
  return (0.12 + 0.5 * Math.sqrt(share / look.tokens[0][1])).toFixed(2);
}

// The words of tokens that may be far away, asked for when they are needed.
export class Excerpts {
  constructor(store, changed) {
    this.store = store;
    this.changed = changed;
    this.known = new Recent(300);
    this.asked = new Set();
  }

  one(token) {
    const text = this.of(token, token + 1);
    return token === 0 && text === NOTHING ? "(start)" : text;
  }

  of(start, stop, length = 40) {
    const end = Math.min(stop, start + 24);
    const name = `${this.store.epoch} ${start} ${end}`;
    const known = this.known.get(name);
    if (known !== undefined) return excerpt(known, length);
    const pieces = [];
    for (let token = start; token < end; token += 1) pieces.push(this.store.piece(token));
    if (!pieces.includes(undefined)) return excerpt(pieces, length);
    this.ask(name, start, end);
    return "…";
  }

  async ask(name, start, stop) {
    if (this.asked.has(name)) return;
    this.asked.add(name);
    try {
      const text = await get("text", { start, stop });
      if (name.startsWith(`${text.epoch} `)) this.known.set(name, text.pieces);
      this.changed();
    } catch {
      // asked again when it is shown again
    } finally {
      this.asked.delete(name);
    }
  }
}
