// Save, load, begin anew, help.

import { get } from "./api.js";
import { bytes, find, make } from "./words.js";

export class Dialogs {
  constructor(controls, hooks) {
    Object.assign(this, { controls, hooks }); // hooks {done(sentence), failed(problem), moved()}
    find("save").addEventListener("click", () => this.open("save"));
    find("load").addEventListener("click", () => this.load());
    find("new").addEventListener("click", () => (controls.state?.tokens ? this.open("new") : find("say").focus()));
    find("help").addEventListener("click", () => this.open("help"));
    find("save-dialog").addEventListener("close", () => this.saved());
    find("new-dialog").addEventListener("close", () => find("new-dialog").returnValue === "new" && this.other("new"));
    for (const dialog of document.querySelectorAll("dialog")) {
      dialog.addEventListener("click", (event) => event.target === dialog && dialog.close(""));
    }
  }

  open(name) {
    const dialog = find(`${name}-dialog`);
    dialog.returnValue = "";
    dialog.showModal();
  }

  // Another text: it is shown from its end.
  other(name, body) {
    this.hooks.moved();
    return this.controls.send(name, body);
  }

  async saved() {
    const dialog = find("save-dialog");
    const name = find("save-name").value;
    if (dialog.returnValue !== "save" || !name) return;
    if (await this.controls.send("save", { name })) this.hooks.done(`Saved as ${name}.`);
  }

  async load() {
    try {
      const memories = await get("memories");
      const list = (Array.isArray(memories) ? memories : memories.memories).toSorted((one, other) => other.time - one.time);
      find("memories").replaceChildren(...list.map((memory) => make("li", { children: [this.memory(memory)] })));
      find("load-none").hidden = list.length > 0;
      this.open("load");
    } catch (problem) {
      this.hooks.failed(problem);
    }
  }

  memory({ name, bytes: size, time }) {
    const when = new Date(1000 * time).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
    const button = make("button", { type: "button", title: `Go on with ${name}; the text that is shown now is let go`, children: [make("span", { text: name }), make("small", { text: `${bytes(size)}, ${when}` })] });
    button.addEventListener("click", async () => {
      find("load-dialog").close();
      if (await this.other("load", { name })) {
        find("save-name").value = name;
        this.hooks.done(`Loaded ${name}.`);
      }
    });
    return button;
  }
}
