// The small window at the words that are chosen: mark, boost, unmark, recall.

import { boxOf, find, tokens } from "./words.js";

const EDGE = 10; // pixels to the edge of the screen

export class Popover {
  constructor(view, painter, choice, actions) {
    Object.assign(this, { view, painter, choice }); // actions {mark(boost, began), unmark(began), recall(began)}
    this.isOpen = false;
    this.place = find("popover");
    const press = (id, action) => find(id).addEventListener("click", () => action(performance.now()));
    press("mark", (began) => actions.mark(this.boost(), began));
    press("unmark", (began) => actions.unmark(began));
    press("recall", (began) => actions.recall(began));
    find("boost").addEventListener("input", () => this.sayBoost());
    find("boost").addEventListener("change", () => actions.mark(this.boost(), performance.now()));
    this.place.addEventListener("pointerenter", () => view.hold(Infinity));
    this.place.addEventListener("pointerleave", () => view.release());
    this.place.addEventListener("keydown", (event) => event.key === "Escape" && this.leave());
  }

  boost() {
    return Number(find("boost").value) / 100;
  }

  open() {
    this.isOpen = true;
    this.update();
  }

  close() {
    if (this.isOpen && this.place.matches(":hover")) this.view.release();
    this.isOpen = false;
    this.place.hidden = true;
  }

  leave() {
    this.choice.clear();
    find("story").focus({ preventScroll: true });
  }

  // Called after every layout: the words may have moved, or what holds them may have changed.
  update() {
    const { start, stop, isEmpty } = this.choice;
    if (!this.isOpen || isEmpty) return this.close();
    const pools = [];
    for (let token = start; token < stop; token += 1) pools.push(this.painter.pool(token));
    const marked = pools.filter((pool) => pool === "pin").length;
    const folded = pools.filter((pool) => pool === "fold").length;
    const free = pools.length - marked - folded;
    find("mark").hidden = !free;
    find("mark").textContent = folded && free ? `Mark the ${free} still held` : "Mark";
    find("unmark").hidden = !marked;
    find("recall").hidden = !folded;
    find("boost-row").hidden = pools.length === folded;
    find("chosen-says").textContent = folded ? `${tokens(folded)} folded` : "";
    const mark = this.painter.mark(start) ?? this.painter.mark(stop - 1);
    if (document.activeElement !== find("boost")) find("boost").value = 100 * (mark?.[2] ?? 0);
    this.sayBoost();
    this.put(start, stop);
  }

  sayBoost() {
    const percent = Number(find("boost").value);
    find("boost-says").textContent = percent ? `at least ${percent} % of the attention` : "the model decides how much";
  }

  put(start, stop) {
    const first = this.view.span(start) ?? this.view.span(stop - 1);
    const seen = find("story").getBoundingClientRect();
    const box = first && boxOf(first);
    if (!box || box.bottom < seen.top || box.top > seen.bottom) return (this.place.hidden = true);
    this.place.hidden = false;
    const last = boxOf(this.view.span(stop - 1) ?? first);
    const { offsetWidth: width, offsetHeight: height } = this.place;
    const above = box.top - height - 6; // the next word to choose is more often below
    const top = above > seen.top ? above : Math.max(box.bottom, last.bottom) + 6;
    const left = Math.min(Math.max(EDGE, box.left - 6), window.innerWidth - width - EDGE);
    this.place.style.top = `${Math.min(top, window.innerHeight - height - EDGE)}px`;
    this.place.style.left = `${left}px`;
    return false;
  }
}
