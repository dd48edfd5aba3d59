// Conversations with a model: the thread, the composer, and the way of one answer.

import { ApiError, events, request, words } from "./api.js";
import { button, h } from "./dom.js";
import { subscribe } from "./live.js";
import { LiveMessage, messageView } from "./message.js";
import { modelPicker } from "./models.js";
import { panel } from "./panel.js";
import * as store from "./store.js";
import { parseSchema, parseTools } from "./tools.js";

const SAVE_MS = 3000;

export function start(view) {
  let conversation = newest();
  let answering = null;

  const messages = h("div", { className: "messages" });
  const thread = h("div", { className: "thread", tabIndex: 0, role: "log", "aria-label": "Conversation" }, messages);
  const said = h("p", { className: "said", role: "status" });
  const titles = h("ul", {});
  const picker = modelPicker({ "aria-label": "Model", onchange: pick });
  const input = h("textarea", { rows: 1, placeholder: "Ask something", "aria-label": "Message", onkeydown: keys, oninput: grow });
  const sendButton = h("button", { className: "primary" }, "Send");
  const stopButton = button("Stop", stop, { hidden: true });
  const settings = panel(() => conversation, () => persist());
  const drawer = h("aside", { className: "drawer", "aria-label": "Conversations" },
    button("New conversation", () => open(store.fresh()), { className: "primary" }), titles,
    h("div", { className: "actions" }, button("Export", exportFile), button("Import", () => file.click()),
      button("Delete", forget, { className: "danger" })));
  const file = h("input", { type: "file", accept: ".json,application/json", hidden: true, onchange: importFile,
    "aria-label": "Conversation file" });
  const drawerButton = toggle("Conversations", drawer, "open");
  const settingsButton = button("Settings", () => {
    settings.element.hidden = !settings.element.hidden;
    settingsButton.ariaExpanded = String(!settings.element.hidden);
  }, { ariaExpanded: "false" });
  const composer = h("form", { className: "composer", onsubmit: (event) => { event.preventDefault(); send(); } },
    input, sendButton, stopButton);

  view.append(h("h1", { className: "unseen" }, "Chat"), drawer,
    h("div", { className: "middle" },
      h("div", { className: "bar-top" }, drawerButton, picker.element, settingsButton),
      thread, said, composer),
    settings.element, file);

  function toggle(text, element, name) {
    const control = button(text, () => {
      element.classList.toggle(name);
      control.ariaExpanded = String(element.classList.contains(name));
    }, { className: "narrow", ariaExpanded: "false" });
    return control;
  }

  // ---- conversations -------------------------------------------------------------------------

  function persist(which = conversation) {
    try {
      store.save(which);
    } catch (error) {
      if (error.name !== "QuotaExceededError") throw error;
      said.textContent = "This browser keeps no more. Export and delete a conversation.";
    }
  }

  function open(next) {
    stop();
    conversation = next;
    drawer.classList.remove("open");
    drawAll();
    if (matchMedia("(pointer: fine)").matches) input.focus();
  }

  function newest() {
    return store.load(store.list()[0]?.id) ?? store.fresh();
  }

  /** What another tab has saved takes the place of what is shown, from where it differs. */
  function takeOver(stored) {
    const before = conversation.messages.map((message) => JSON.stringify(message));
    let same = 0;
    while (same < before.length && before[same] === JSON.stringify(stored.messages[same])) same++;
    conversation = stored;
    drawAll(Math.max(0, same - 1)); // what was the last one has other buttons now
  }

  store.watch((id) => {
    const stored = store.load(id);
    if (id !== conversation.id) drawTitles();
    else if (!stored) open(newest());
    else if (!answering) takeOver(stored);
  });

  function drawTitles() {
    const known = store.list();
    if (!known.some((each) => each.id === conversation.id)) known.unshift(conversation);
    titles.replaceChildren(...known.map((each) => h("li", {},
      button(each.title, () => choose(each.id),
        { "aria-current": each.id === conversation.id ? "true" : undefined }))));
  }

  /** Show a conversation; an answer to the one that is open already goes on. */
  function choose(id) {
    if (id === conversation.id) drawer.classList.remove("open");
    else open(store.load(id) ?? conversation);
  }

  function drawAll(from = 0) {
    drawTitles();
    settings.show();
    if (conversation.model) picker.choose(conversation.model);
    following = true;
    drawThread(from);
  }

  /** Draw the messages from one on: those before it stay as they are, however many. */
  function drawThread(from = 0) {
    while (messages.children.length > from) messages.lastChild.remove();
    messages.append(...conversation.messages.slice(from).map((message, i) => viewOf(message, from + i)));
    if (!conversation.messages.length) {
      messages.append(h("p", { className: "empty quiet" }, "Nothing said yet. What you write stays between this browser and the server."));
    }
  }

  function viewOf(message, i, body) {
    const last = i === conversation.messages.length - 1;
    return messageView(message, {
      edit: message.role === "user" ? (text) => resend(i, text) : null,
      regenerate: message.role === "assistant" && last ? () => cut(i) : null,
      answerTools: last && whole(message) && message.tool_calls ? (results) => say(...results) : null,
    }, body);
  }

  function exportFile() {
    const blob = new Blob([JSON.stringify(conversation, null, 2)], { type: "application/json" });
    const link = h("a", { href: URL.createObjectURL(blob), download: "conversation.json" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  async function importFile() {
    try {
      const next = store.imported(await file.files[0].text());
      open(next);
      persist();
      drawTitles();
    } catch (error) {
      said.textContent = error.message;
    }
    file.value = "";
  }

  function forget() {
    if (!confirm("Delete this conversation from this browser?")) return;
    store.remove(conversation.id);
    open(newest());
  }

  // ---- the model -----------------------------------------------------------------------------

  async function drawModels() {
    try {
      await picker.refresh(conversation.model);
    } catch (error) {
      said.textContent = words(error);
    }
  }

  /** Remember the choice: the next message loads the model, not each that is passed over in the menu. */
  function pick() {
    conversation.model = picker.element.value;
    if (conversation.messages.length) persist();
  }

  // ---- asking --------------------------------------------------------------------------------

  function keys(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  }

  function grow() {
    input.style.height = "auto";
    input.style.height = `${Math.min(input.scrollHeight + 2, 240)}px`;
  }

  function send() {
    const text = input.value.trim();
    if (!text || answering) return;
    input.value = "";
    grow();
    say({ role: "user", content: text });
  }

  function say(...said) {
    const last = conversation.messages.length - 1;
    conversation.messages.push(...said);
    answer(Math.max(0, last)); // what was the last one has fewer buttons now
  }

  function resend(i, text) {
    if (answering) return;
    conversation.messages.splice(i, Infinity, { role: "user", content: text });
    answer(i);
  }

  function cut(i) {
    if (answering) return;
    conversation.messages.splice(i);
    answer(i);
  }

  function stop() {
    answering?.abort();
  }

  function body(before) {
    const said = plain(before);
    if (conversation.system.trim()) said.unshift({ role: "system", content: conversation.system });
    return {
      ...conversation.sampling, messages: said, model: picker.element.value || undefined, stream: true,
      tools: parseTools(conversation.tools), response_format: parseSchema(conversation.schema),
    };
  }

  /** Ask for an answer; messages have changed from `from` on. */
  async function answer(from) {
    const asked = conversation;
    const controller = answering = new AbortController();
    const message = { role: "assistant", content: "", model: picker.element.value, stats: {} };
    const before = [...asked.messages];
    following = true;
    drawThread(from);
    asked.messages.push(message);
    persist(asked);
    const saving = setInterval(() => persist(asked), SAVE_MS);
    // At once: what has come so far is loaded again by who comes back.
    controller.signal.addEventListener("abort", () => {
      message.finish ??= "stopped";
      persist(asked);
    });
    const drawn = new LiveMessage(message);
    messages.append(drawn.element);
    busy(true);
    try {
      await receive(body(before), message, drawn, controller.signal);
    } catch (error) {
      if (error instanceof SyntaxError) message.error = error.message;
      else if (error.name !== "AbortError") message.error = words(error);
    }
    clearInterval(saving);
    if (!controller.signal.aborted) persist(asked);
    await drawn.growing.finished();
    if (answering === controller) answering = null;
    busy(Boolean(answering));
    if (asked !== conversation) return;
    drawTitles();
    drawn.element.replaceWith(viewOf(message, asked.messages.length - 1, drawn.body));
  }

  async function receive(wanted, message, drawn, signal) {
    const started = performance.now();
    const response = await request("/v1/chat/completions",
      { method: "POST", body: wanted, accept: "text/event-stream", signal });
    for await (const { data, comment } of events(response)) {
      if (comment) drawn.say(comment);
      if (!data) continue;
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(0, chunk.error);
      take(chunk, message, performance.now() - started);
      drawn.update();
    }
    throw new TypeError("the connection broke");
  }

  function take(chunk, message, ms) {
    if (chunk.timings) message.stats.timings = chunk.timings;
    message.model = chunk.model;
    const [choice] = chunk.choices;
    if (!choice) return;
    const { content, reasoning_content: thought, tool_calls: calls } = choice.delta;
    if (content || thought || calls) message.stats.first_ms ??= ms;
    if (content) message.content += content;
    if (thought) message.reasoning = (message.reasoning ?? "") + thought;
    for (const part of calls ?? []) {
      message.tool_calls ??= [];
      const call = message.tool_calls[part.index] ??=
        { id: part.id, type: "function", function: { name: "", arguments: "" } };
      call.function.name += part.function.name ?? "";
      call.function.arguments += part.function.arguments;
    }
    if (choice.finish_reason) message.finish = choice.finish_reason;
  }

  // ---- keeping still -------------------------------------------------------------------------

  let following = true;
  // Only a person ends the following: positions also change when content grows or is replaced.
  for (const name of ["wheel", "touchmove", "pointerdown", "keydown"]) {
    thread.addEventListener(name, () => { following = false; }, { passive: true });
  }
  thread.addEventListener("scroll", () => { following ||= atEnd(); }, { passive: true });
  new ResizeObserver(keepAtEnd).observe(messages);

  function atEnd() {
    return thread.scrollHeight - thread.scrollTop - thread.clientHeight < 60;
  }

  function keepAtEnd() {
    if (following) thread.scrollTop = thread.scrollHeight;
  }

  function busy(on) {
    sendButton.hidden = on;
    stopButton.hidden = !on;
  }

  view.addEventListener("keydown", (event) => {
    if (event.key === "Escape") stop();
  });
  addEventListener("pagehide", stop);

  let known = "";
  subscribe(({ status, sampling }) => {
    settings.defaults({ ...sampling, ...picker.sampling() });
    const key = `${status?.model} ${status?.state}`;
    if (key !== known) drawModels();
    known = key;
    const loading = status?.loading;
    if (loading) said.textContent = `Loading ${loading.model}: ${Math.round(loading.progress * 100)} %`;
    else if (said.textContent.startsWith("Loading ")) said.textContent = "";
  });
  drawAll();
  return drawModels;
}

/** Whether an answer came to its end: calls of others are half a call, perhaps. */
function whole({ error, finish }) {
  return !error && finish !== "stopped";
}

/** Messages as the API takes them: without calls that broke off, and without results of such. */
function plain(messages) {
  const called = new Set();
  const taken = [];
  for (const message of messages) {
    const { role, content, tool_call_id: id } = message;
    if ((message.error && !content) || (role === "tool" && !called.has(id))) continue;
    const calls = whole(message) ? message.tool_calls : undefined;
    for (const call of calls ?? []) called.add(call.id);
    taken.push({ role, content: content || (calls ? null : ""), tool_calls: calls, tool_call_id: id });
  }
  return taken;
}
