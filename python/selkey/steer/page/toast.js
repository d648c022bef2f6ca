// Sentences of the page: what went wrong, what was done, and whether the server is there.

import { find, make } from "./words.js";

export function say(sentence, time = 6000) {
  const text = sentence.charAt(0).toUpperCase() + sentence.slice(1);
  const place = find("toasts");
  const same = [...place.children].find((one) => one.textContent === text);
  same?.remove();
  const toast = make("p", { text });
  place.append(toast);
  while (place.children.length > 3) place.firstChild.remove();
  setTimeout(() => toast.remove(), time);
}

export const fail = (problem) => say(problem.message);

const LOST = "The connection is lost. The page tries again by itself, and nothing of the text is lost.";

export function connection(isThere, sentence = LOST) {
  find("banner").textContent = sentence;
  find("banner").hidden = isThere;
}
