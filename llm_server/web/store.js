// Conversations, kept in this browser alone: one entry of localStorage each.

const PREFIX = "llm-server.chat.";
const removed = new Set();

function newId() {
  return crypto.randomUUID?.() ?? String(Date.now() + Math.random());
}

export function fresh() {
  return {
    id: newId(),
    title: "New conversation", updated: Date.now(),
    model: "", system: "", sampling: {}, tools: "", schema: "", messages: [],
  };
}

/** Titles of all conversations, the newest first. */
export function list() {
  const found = [];
  for (let i = 0; i < localStorage.length; i++) {
    const key = localStorage.key(i);
    if (!key.startsWith(PREFIX)) continue;
    const conversation = parse(localStorage.getItem(key));
    if (conversation) found.push({ id: conversation.id, title: conversation.title, updated: conversation.updated });
  }
  return found.sort((a, b) => b.updated - a.updated);
}

export function load(id) {
  return parse(localStorage.getItem(PREFIX + id));
}

/**
 * Keep a conversation, unless it was removed. Where another tab has saved it since it was loaded,
 * it becomes one of its own. Throws QuotaExceededError when the browser keeps no more.
 */
export function save(conversation) {
  if (removed.has(conversation.id)) return;
  const stored = load(conversation.id);
  if (stored && stored.updated !== conversation.updated) conversation.id = newId();
  const first = conversation.messages.find((message) => message.role === "user");
  if (first) conversation.title = first.content.trim().slice(0, 60) || "New conversation";
  conversation.updated = Date.now();
  localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
}

export function remove(id) {
  removed.add(id);
  localStorage.removeItem(PREFIX + id);
}

/** Call `changed(id)` when another tab saves or removes a conversation. */
export function watch(changed) {
  addEventListener("storage", ({ key, newValue }) => {
    if (!key?.startsWith(PREFIX)) return;
    const id = key.slice(PREFIX.length);
    if (newValue === null) removed.add(id);
    changed(id);
  });
}

/** A conversation from a file. Throws Error with words for the person. */
export function imported(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    throw new Error("The file is not JSON.");
  }
  const messages = Array.isArray(value) ? value : value?.messages;
  if (!Array.isArray(messages) || !messages.every(valid)) {
    throw new Error("The file holds no conversation: it needs messages with role and content.");
  }
  const conversation = { ...fresh(), ...(Array.isArray(value) ? {} : known(value)) };
  conversation.messages = messages.filter((message) => message.role !== "system");
  conversation.system ||= messages.find((message) => message.role === "system")?.content ?? "";
  return conversation;
}

/** Whether a message can be drawn and sent. */
function valid(message) {
  const { role, content, tool_calls: calls, stats } = message ?? {};
  const text = typeof content === "string";
  if (role !== "assistant") return ["system", "user", "tool"].includes(role) && text;
  return (text || content === null || content === undefined)
    && (calls === undefined || (Array.isArray(calls) && calls.every(isCall)))
    && (stats === undefined || isStats(stats));
}

function isCall(call) {
  return [call?.id, call?.function?.name, call?.function?.arguments].every((part) => typeof part === "string");
}

function isStats(stats) {
  const timings = stats?.timings;
  return stats !== null && (timings === undefined
    || ["prompt_n", "cache_n", "cache_disk_n", "predicted_n", "predicted_per_second"]
      .every((name) => typeof timings?.[name] === "number"));
}

function known(value) {
  const taken = {};
  for (const name of ["model", "system", "tools", "schema"]) {
    if (typeof value[name] === "string") taken[name] = value[name];
  }
  if (value.sampling && typeof value.sampling === "object") taken.sampling = value.sampling;
  return taken;
}

function parse(text) {
  try {
    const value = JSON.parse(text);
    return Array.isArray(value?.messages) && value.messages.every(valid) ? value : null;
  } catch {
    return null;
  }
}
