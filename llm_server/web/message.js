// One message of a conversation on the page: text, thoughts, calls, what it took, what to do with it.

import { button, count, field, h } from "./dom.js";
import { Growing, render } from "./markdown.js";
import { pretty } from "./tools.js";

const NAMES = { user: "You", assistant: "Model", tool: "Tool result" };

/** The element of a message. `acts`: what the person may do with it; `drawn`: its text, if that is drawn. */
export function messageView(message, acts, drawn) {
  const body = drawn ?? h("div", { className: "text" });
  const extras = h("div", { className: "extras" });
  const stats = h("p", { className: "stats" });
  const element = h("article", { className: `message ${message.role}`, "aria-label": NAMES[message.role] },
    h("h2", {}, message.role === "assistant" && message.model ? message.model : NAMES[message.role]),
    extras, body, message.role === "assistant" ? stats : null, actions(message, acts, body));
  if (message.role !== "assistant") {
    body.classList.add("plain");
    body.textContent = message.content;
  } else if (!message.content) {
    body.hidden = true;
  } else if (!drawn) {
    body.textContent = message.content;
    render(body, message.content);
  }
  drawExtras(extras, message, acts);
  stats.textContent = statsText(message);
  return element;
}

/** A message that is being answered: `update` after each event. */
export class LiveMessage {
  constructor(message) {
    this.message = message;
    this.body = h("div", { className: "text" });
    this.thought = h("div", { className: "thought-text" });
    this.calls = h("div", {});
    this.stats = h("p", { className: "stats" }, "…");
    this.folded = h("details", { className: "thought", hidden: true }, h("summary", {}, "Thinking …"), this.thought);
    this.element = h("article", { className: "message assistant live", "aria-label": NAMES.assistant, "aria-busy": "true" },
      h("h2", {}, message.model || NAMES.assistant), this.folded, this.calls, this.body, this.stats);
    this.growing = new Growing(this.body);
  }

  update() {
    const { content, reasoning, tool_calls: calls } = this.message;
    if (reasoning) {
      this.folded.hidden = false;
      this.thought.textContent = reasoning;
    }
    if (calls) this.calls.replaceChildren(...calls.map((call) => card(call)));
    if (content) this.growing.update(content);
  }

  say(text) {
    this.stats.textContent = text;
  }
}

function drawExtras(place, message, acts) {
  if (message.reasoning) {
    place.append(h("details", { className: "thought" }, h("summary", {}, "Thoughts"),
      h("div", { className: "thought-text" }, message.reasoning)));
  }
  if (message.tool_calls) {
    place.append(...message.tool_calls.map((call) => card(call)));
    if (acts.answerTools) place.append(resultForm(message.tool_calls, acts.answerTools));
  }
  if (message.error) place.append(h("p", { className: "bad", role: "alert" }, message.error));
}

function card(call) {
  return h("div", { className: "call" }, h("b", {}, call.function.name),
    h("pre", { tabIndex: 0 }, pretty(call.function.arguments)));
}

function resultForm(calls, answer) {
  const inputs = calls.map(() => h("textarea", { rows: 2, required: true, spellcheck: false }));
  return h("form", { className: "results", onsubmit: (event) => {
    event.preventDefault();
    answer(calls.map((call, i) => ({ role: "tool", tool_call_id: call.id, content: inputs[i].value })));
  } },
  calls.map((call, i) => field(`Result of ${call.function.name}`, inputs[i])),
  h("button", { className: "primary" }, calls.length > 1 ? "Send the results" : "Send the result"));
}

function actions(message, acts, body) {
  const copy = button("Copy", async () => {
    copy.textContent = await copied(message.content ?? "") ? "Copied" : "Select it to copy it";
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  });
  return h("div", { className: "actions" }, copy,
    acts.edit ? button("Edit", () => edit(message, acts.edit, body)) : null,
    acts.regenerate ? button("Regenerate", acts.regenerate) : null);
}

/** Put a text into the clipboard; whether the browser let us. Plain HTTP has only the older way. */
async function copied(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text).then(() => true, () => false);
  const field = h("textarea", { className: "unseen", value: text, readOnly: true, "aria-hidden": "true" });
  const before = document.activeElement;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  before.focus();
  return done;
}

function edit(message, done, body) {
  const text = h("textarea", { rows: Math.min(12, message.content.split("\n").length + 1), value: message.content,
    "aria-label": "Edit the message" });
  const form = h("form", { className: "edit", onsubmit: (event) => {
    event.preventDefault();
    done(text.value);
  } }, text, h("div", { className: "actions" },
    h("button", { className: "primary" }, "Send again"),
    button("Leave it", () => { form.replaceWith(body); })));
  body.replaceWith(form);
  text.focus();
}

/** What an answer took, in one line. */
export function statsText({ stats, finish }) {
  if (!stats) return "";
  const { timings, first_ms: first } = stats;
  const parts = [];
  if (timings) {
    const memory = timings.cache_n - timings.cache_disk_n;
    const from = [memory && `${count(memory)} from memory`, timings.cache_disk_n && `${count(timings.cache_disk_n)} from disk`]
      .filter(Boolean).join(", ");
    parts.push(`${timings.predicted_per_second.toFixed(1)} tokens/s`);
    if (first !== undefined) parts.push(`first token ${(first / 1000).toFixed(2)} s`);
    parts.push(`${count(timings.predicted_n)} tokens`);
    parts.push(`prompt ${count(timings.prompt_n + timings.cache_n)}: ${from || "none from the cache"}`);
  }
  if (finish === "length") parts.push("cut off: no room or max_tokens");
  if (finish === "stopped") parts.push("stopped");
  return parts.join(" · ");
}
