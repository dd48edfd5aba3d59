// Markdown through the server, which renders and sanitises it: in batches, and while it streams.

import { post } from "./api.js";
import { insertRendered } from "./dom.js";

const BATCH = 32;
let waiting = [];
let running = false;

/** Show `text` in `element`: as it is at once, rendered as soon as the server has done it. */
export function render(element, text) {
  waiting.push({ element, text });
  if (!running) queueMicrotask(drain);
}

async function drain() {
  if (running) return;
  running = true;
  while (waiting.length) {
    const batch = waiting.splice(-BATCH);
    try {
      const { html } = await post("/api/render", { texts: batch.map((item) => item.text) });
      batch.forEach((item, i) => insertRendered(item.element, html[i]));
    } catch {
      batch.forEach((item) => { item.element.textContent = item.text; });
    }
  }
  running = false;
}

/** Renders a text that grows. Never more than a fifth of the time is spent on it. */
export class Growing {
  constructor(element) {
    this.element = element;
    this.text = "";
    this.busy = null;
  }

  update(text) {
    this.text = text;
    this.busy ??= this.#draw();
  }

  async #draw() {
    let drawn;
    while (drawn !== this.text) {
      const started = performance.now();
      drawn = this.text;
      try {
        const { html } = await post("/api/render", { texts: [drawn] });
        insertRendered(this.element, html[0]);
      } catch {
        this.element.textContent = drawn;
      }
      const took = performance.now() - started;
      if (drawn !== this.text) await new Promise((resolve) => setTimeout(resolve, Math.max(80, 4 * took)));
    }
    this.busy = null;
  }

  /** When all that came has been drawn. */
  async finished() {
    await this.busy;
  }
}
