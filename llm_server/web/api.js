// Talking to the server: JSON, event streams, errors in its own words, and the API key.

import { h } from "./dom.js";

const KEY = "llm-server.key";
const USABLE = /^[\x21-\x7e]+$/; // what a server takes for a key; fetch() throws for much of the rest
let asking = null;

export class ApiError extends Error {
  constructor(status, error) {
    super(error?.message ?? `The server answered with status ${status}.`);
    this.status = status;
    this.code = error?.code;
    this.param = error?.param;
  }
}

/** What a person is shown for any failure. */
export function words(error) {
  if (error instanceof ApiError) return error.param ? `${error.message} (${error.param})` : error.message;
  if (error.name === "AbortError") return "Stopped.";
  return "The server cannot be reached.";
}

/** The key of this tab, "" for none. One that was kept and is of no use is forgotten. */
function storedKey() {
  const key = sessionStorage.getItem(KEY) ?? "";
  if (USABLE.test(key)) return key;
  sessionStorage.removeItem(KEY);
  return "";
}

async function send(path, key, { method = "GET", body, accept = "application/json", signal } = {}) {
  const headers = { accept };
  if (key) headers.authorization = `Bearer ${key}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  return fetch(path, { method, headers, signal, body: body && JSON.stringify(body), cache: "no-store" });
}

/** A response that went well. Asks for the key when one is needed. Throws ApiError. */
export async function request(path, options = {}) {
  let key = storedKey();
  let response = await send(path, key, options);
  while (response.status === 401) {
    if (key === storedKey()) await askKey(key);
    key = storedKey();
    response = await send(path, key, options);
  }
  if (response.ok) return response;
  let error;
  try {
    error = (await response.json()).error;
  } catch {
    error = undefined;
  }
  throw new ApiError(response.status, error);
}

export async function get(path) {
  return (await request(path)).json();
}

export async function post(path, body = {}, signal) {
  return (await request(path, { method: "POST", body, signal })).json();
}

/** The events of a stream: `{data}` for each, `{comment}` for what the server says meanwhile. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += value;
      const lines = rest.split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data: ")) yield { data: line.slice(6) };
        else if (line.startsWith(":")) yield { comment: line.slice(1).trim() };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** One dialog, however many requests need the key; `refused` is the one that was sent, if any. */
function askKey(refused) {
  asking ??= new Promise((resolve) => {
    const input = h("input", { type: "password", name: "key", autocomplete: "off", required: true, oninput: () => {
      const usable = !input.value || USABLE.test(input.value.trim());
      input.setCustomValidity(usable ? "" : "A key is of visible ASCII characters, without blanks.");
    } });
    const form = h("form", { onsubmit: (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, input.value.trim());
      dialog.close();
      dialog.remove();
      asking = null;
      resolve();
    } },
    refused ? h("p", { className: "bad", role: "alert" }, "The server does not accept this key.") : null,
    h("label", {}, "This server asks for an API key. It is kept until you close this tab.", input),
    h("button", {}, "Use this key"));
    const dialog = h("dialog", {
      oncancel: (event) => event.preventDefault(),
      // Browsers let a second Escape close it all the same.
      onclose: () => { if (dialog.isConnected) dialog.showModal(); },
    }, form);
    document.body.append(dialog);
    dialog.showModal();
  });
  return asking;
}
