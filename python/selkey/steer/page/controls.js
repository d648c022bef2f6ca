// Go on, write without end, pause; the human's words; undo; temperature; the keys for all of them.

import { post } from "./api.js";
import { count, find, make } from "./words.js";

const EXAMPLES = [
  "Anna hid the pearl under the bridge. Then she went home.",
  "The secret word of the tower is zorvak. Vera could not sleep that night.",
];

export class Controls {
  constructor(hooks) {
    this.hooks = hooks; // {accepted(state), failed(problem), moved(), toStart(), toEnd(), help(), escape()}
    find("go").addEventListener("click", () => this.go());
    find("endless").addEventListener("click", () => this.go(0));
    find("pause").addEventListener("click", () => this.send("pause"));
    find("undo").addEventListener("click", () => this.send("undo"));
    find("words").addEventListener("submit", (event) => {
      event.preventDefault();
      this.say();
    });
    find("say").addEventListener("keydown", (event) => this.type(event));
    find("temperature").addEventListener("input", () => this.showTemperature(find("temperature").value));
    find("temperature").addEventListener("change", () => this.send("settings", { temperature: Number(find("temperature").value) }));
    document.addEventListener("keydown", (event) => this.press(event));
    find("examples").append(...EXAMPLES.map((text) => this.example(text)));
  }

  example(text) {
    const button = make("button", { text, title: "Begin with this, and let the model go on" });
    button.addEventListener("click", async () => {
      if (await this.send("read", { text })) this.go();
    });
    return button;
  }

  async send(name, body = {}) {
    try {
      const answer = await post(name, body);
      this.hooks.accepted(answer.state);
      return answer;
    } catch (problem) {
      this.hooks.failed(problem);
      return null;
    }
  }

  go(tokens) {
    this.hooks.moved();
    return this.send("go", tokens === undefined ? {} : { tokens });
  }

  async say() {
    const box = find("say");
    const text = box.value;
    if (!text.trim()) return box.focus();
    box.value = "";
    this.hooks.moved();
    if (await this.send("read", { text })) return true;
    if (!box.value) box.value = text; // refused: nothing that was typed is lost
    return false;
  }

  async type(event) {
    if (event.key === "Escape") return box_blur(event);
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    const goesOn = event.ctrlKey || event.metaKey;
    if (!find("say").value.trim()) {
      if (goesOn) this.go();
    } else if ((await this.say()) && goesOn) this.go();
  }

  press(event) {
    const { target, key } = event;
    if (event.defaultPrevented || document.querySelector("dialog[open]")) return;
    const isTyping = target.matches("textarea, input:not([type='range'], [type='checkbox'])");
    if ((event.ctrlKey || event.metaKey) && !event.shiftKey && key.toLowerCase() === "z" && !isTyping) {
      event.preventDefault();
      this.send("undo");
    }
    if (event.ctrlKey && key === "Enter" && !isTyping) this.go();
    if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
    const actions = {
      g: () => this.go(), e: () => this.go(0), p: () => this.send("pause"), "/": () => find("say").focus(), "?": () => this.hooks.help(),
      Home: () => this.hooks.toStart(), End: () => this.hooks.toEnd(), Escape: () => this.hooks.escape(),
    };
    const action = actions[key] ?? actions[key.toLowerCase()];
    if (!action || (target.matches("input[type='range']") && key !== "Escape")) return;
    event.preventDefault();
    action();
  }

  follow(state) {
    this.state = state;
    find("model").textContent = state.model;
    document.title = state.writing ? "▸ selkey steer" : "selkey steer";
    find("go").hidden = find("endless").hidden = state.writing;
    find("pause").hidden = !state.writing;
    find("go").title = `Write ${count(state.stretch)} tokens (G, or Ctrl+Enter)`;
    find("progress").textContent = state.writing ? progress(state) : "";
    find("welcome").hidden = state.tokens > 0;
    find("undo").disabled = !state.undo;
    find("undo").lastElementChild.textContent = state.undo ?? "";
    find("undo").title = state.undo ? `Take back: ${state.undo} (Ctrl+Z)` : "There is nothing to take back";
    if (document.activeElement === find("temperature")) return;
    find("temperature").value = state.temperature;
    this.showTemperature(state.temperature);
  }

  showTemperature(value) {
    find("warmth").querySelector("output").textContent = Number(value).toFixed(2).replace(/0$/, "");
  }
}

function progress(state) {
  const left = Number.isFinite(state.left) && state.left !== null && state.left <= state.stretch ? `${count(state.left)} left` : "without end";
  return `${count(state.tokens)} tokens, ${left}`;
}

function box_blur(event) {
  event.target.blur();
  find("story").focus({ preventScroll: true });
}
