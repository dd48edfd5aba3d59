// Talking to the server: JSON, event streams, errors in its own words, and the API key.

const KEY = "llm-server.key";
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

async function send(path, { method = "GET", body, accept = "application/json", signal } = {}) {
  const headers = { accept };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.authorization = `Bearer ${key}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  return fetch(path, { method, headers, signal, body: body && JSON.stringify(body), cache: "no-store" });
}

/** A response that went well. Asks for the key when one is needed. Throws ApiError. */
export async function request(path, options = {}) {
  let response = await send(path, options);
  while (response.status === 401) {
    await askKey();
    response = await send(path, options);
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

/** One dialog, however many requests need the key. */
function askKey() {
  asking ??= new Promise((resolve) => {
    const dialog = document.createElement("dialog");
    const form = document.createElement("form");
    const label = document.createElement("label");
    const input = document.createElement("input");
    const submit = document.createElement("button");
    label.textContent = "This server asks for an API key. It is kept until you close this tab.";
    input.type = "password";
    input.name = "key";
    input.autocomplete = "off";
    input.required = true;
    submit.textContent = "Use this key";
    label.append(input);
    form.append(label, submit);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, input.value.trim());
      dialog.close();
      dialog.remove();
      asking = null;
      resolve();
    });
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.append(form);
    document.body.append(dialog);
    dialog.showModal();
  });
  return asking;
}
