// The server's status as it changes: one stream for the whole page, taken up again when it breaks.
// A page that is not seen has none: browsers have six connections to a server for all tabs together.

import { events, request } from "./api.js";

const listeners = new Set();
export const live = { connected: false, status: null, history: [], interval: 5, sampling: {} };

/** Call `listener(live)` now and at every change. */
export function subscribe(listener) {
  listeners.add(listener);
  if (live.status) listener(live);
}

function tell() {
  for (const listener of listeners) listener(live);
}

function take(status) {
  if (status.history) {
    live.history = status.history;
    live.interval = status.interval_seconds;
    live.sampling = status.sampling;
  } else if (status.sample && status.sample.time !== live.history.at(-1)?.time) {
    live.history = [...live.history, status.sample].slice(-180);
  }
  live.status = status;
  live.connected = true;
  tell();
}

/** Follow the server for ever, while the page is seen. */
export async function follow() {
  let stream = new AbortController();
  document.addEventListener("visibilitychange", () => { if (document.hidden) stream.abort(); });
  for (let pause = 500; ; pause = Math.min(pause * 1.5, 5000)) {
    await seen();
    stream = new AbortController();
    const { signal } = stream;
    try {
      const response = await request("/api/status", { accept: "text/event-stream", signal });
      for await (const { data } of events(response)) {
        if (data) take(JSON.parse(data));
        pause = 500;
      }
    } catch (error) {
      if (signal.aborted) continue;
      console.info("status:", error.message);
    }
    live.connected = false;
    tell();
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}

async function seen() {
  if (!document.hidden) return;
  await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
}
