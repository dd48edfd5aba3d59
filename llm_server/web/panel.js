// What goes along with a conversation: system prompt, sampling, tools, a schema.

import { field, h } from "./dom.js";

const MAX_INT = 2 ** 31 - 1;
const SAMPLING = [
  ["temperature", 0, 2, 0.05], ["top_p", 0.01, 1, 0.01], ["top_k", -1, MAX_INT, 1], ["min_p", 0, 1, 0.01],
  ["max_tokens", 0, MAX_INT, 1], ["repeat_penalty", 0.1, 10, 0.05], ["presence_penalty", -2, 2, 0.1],
  ["frequency_penalty", -2, 2, 0.1], ["seed", -1e15, 1e15, 1],
];
const EMPTY = { max_tokens: "to the end", seed: "random" };

/** The panel; `changed` is called after the conversation that `current()` gives was changed. */
export function panel(current, changed) {
  const system = h("textarea", { rows: 4, oninput: () => set("system", system.value) });
  const tools = h("textarea", { rows: 5, spellcheck: false, oninput: () => set("tools", tools.value),
    placeholder: '[{"name": "weather", "parameters": {…}}]' });
  const schema = h("textarea", { rows: 5, spellcheck: false, oninput: () => set("schema", schema.value),
    placeholder: '{"type": "object", "properties": {…}}' });
  const numbers = SAMPLING.map(([name, min, max, step]) =>
    h("input", { type: "number", name, min, max, step: step < 1 ? "any" : 1, oninput: (event) => number(event.target) }));

  function set(name, value) {
    current()[name] = value;
    changed();
  }

  function number(input) {
    const { sampling } = current();
    // Also out of range: the server says what is wrong with it, as with any client's.
    if (input.value === "") delete sampling[input.name];
    else sampling[input.name] = Number(input.value);
    changed();
  }

  const element = h("aside", { className: "panel", "aria-label": "Settings", hidden: true },
    field("System prompt", system),
    h("fieldset", { className: "grid" }, h("legend", {}, "Sampling"),
      numbers.map((input) => field(input.name, input))),
    field("Tools", tools, "JSON: OpenAI tools or bare functions. The model's calls appear as cards."),
    field("JSON schema", schema, "If given, the answer is JSON that fits it."));

  return {
    element,
    /** What is used where nothing is set, shown there. */
    defaults(sampling) {
      for (const input of numbers) input.placeholder = EMPTY[input.name] ?? String(sampling[input.name] ?? "");
    },
    show() {
      const conversation = current();
      system.value = conversation.system;
      tools.value = conversation.tools;
      schema.value = conversation.schema;
      for (const input of numbers) input.value = conversation.sampling[input.name] ?? "";
    },
  };
}
