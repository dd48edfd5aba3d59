// Conversations, kept in this browser alone: one entry of localStorage each.

const PREFIX = "llm-server.chat.";

export function fresh() {
  return {
    id: crypto.randomUUID?.() ?? String(Date.now() + Math.random()),
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

/** Throws QuotaExceededError when the browser keeps no more. */
export function save(conversation) {
  const first = conversation.messages.find((message) => message.role === "user");
  if (first) conversation.title = first.content.trim().slice(0, 60) || "New conversation";
  conversation.updated = Date.now();
  localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
}

export function remove(id) {
  localStorage.removeItem(PREFIX + id);
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

function valid(message) {
  return ["system", "user", "assistant", "tool"].includes(message?.role)
    && (message.content === null || message.content === undefined || typeof message.content === "string");
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
    return Array.isArray(value?.messages) ? value : null;
  } catch {
    return null;
  }
}
