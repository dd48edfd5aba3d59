// What the server does at the moment, and did in the last 15 minutes.

import { post, words } from "./api.js";
import { bytes, button, count, h, seconds, show, when } from "./dom.js";
import { live, subscribe } from "./live.js";
import { plot } from "./plot.js";

export function start(view) {
  const plots = [
    plot("Requests", [["running", (s) => s.running], ["waiting", (s) => s.waiting]], count),
    plot("Tokens per second", [["", (s) => s.tokens_per_second]], (n) => n.toFixed(1)),
    plot("First token", [["", (s) => s.first_token_ms]], (ms) => seconds(ms / 1000)),
    plot("Prompt tokens", [["cells", (s) => s.cells_tokens], ["disk", (s) => s.disk_tokens],
      ["computed", (s) => s.computed_tokens]], count),
    plot("Memory", [["workers", (s) => s.worker_bytes], ["server", (s) => s.server_bytes]], bytes),
  ];
  const facts = h("dl", { className: "facts" });
  const running = h("div", {});
  const errors = h("div", {});
  view.append(
    h("h1", {}, "Now"), facts,
    h("div", { className: "plots" }, plots),
    h("h2", {}, "Running requests"), running,
    h("h2", {}, "Last errors"), errors,
  );
  let drawn = null;
  const draw = () => {
    const status = live.status;
    if (!status || view.hidden) return;
    if (drawn !== live.history) plots.forEach((figure) => figure.draw(live.history));
    drawn = live.history;
    show(facts, JSON.stringify([status.state, status.model, status.worker, status.models, Math.floor(status.uptime_seconds)]),
      () => factsOf(status));
    drawRunning(running, status.requests);
    show(errors, JSON.stringify(status.errors), () => errorsOf(status.errors));
  };
  subscribe(draw);
  return draw;
}

function factsOf(status) {
  const facts = [
    ["State", status.state], ["Default model", status.model ?? "none"],
    ["Its context", status.n_ctx ? `${count(status.n_ctx)} tokens, ${status.parallel} at once` : "none"],
    ["Workers", status.models.map(workerOf).join(", ") || "none"],
    ["Their sandbox", status.worker.sandbox ?? "none"],
    ["Crashed and restarted", count(status.worker.crashes)],
    ["Memory free", `${bytes(status.memory.available)} of ${bytes(status.memory.total)}`],
    ["Up for", seconds(status.uptime_seconds)], ["Version", status.version],
  ];
  return facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)));
}

function workerOf({ model, state, running }) {
  const doing = [state === "ready" ? null : state, running ? `${count(running)} running` : null].filter(Boolean);
  return doing.length ? `${model} (${doing.join(", ")})` : model;
}

/** The rows are kept as they are while figures change, so that a button stays where it is. */
function drawRunning(place, requests) {
  show(place, requests.map((request) => request.id).join(), () => requests.length
    ? h("ul", { className: "rows" }, requests.map((request) => h("li", {},
      h("span", { className: "grow", id: `row-${request.id}` }),
      button("Cancel", () => cancel(request.id), { "aria-label": `Cancel ${request.id}` }))))
    : h("p", { className: "quiet" }, "None."));
  for (const request of requests) {
    const cached = request.cached_tokens ? `, ${count(request.cached_tokens)} from the cache` : "";
    const prompt = request.prompt_tokens ? ` · prompt ${count(request.prompt_tokens)}${cached}` : "";
    const rate = request.pieces ? ` · ${count(request.pieces)} pieces, ${request.tokens_per_second}/s` : "";
    document.getElementById(`row-${request.id}`).textContent =
      `${request.path} · ${request.model ?? "no model yet"} · ${request.state} · ${seconds(request.seconds)}${prompt}${rate}`;
  }
}

async function cancel(id) {
  try {
    await post(`/api/requests/${id}/cancel`);
  } catch (error) {
    console.info("cancel:", words(error));
  }
}

function errorsOf(errors) {
  if (!errors.length) return h("p", { className: "quiet" }, "None since the start.");
  return h("ul", { className: "rows" }, errors.map((error) => h("li", {},
    h("span", { className: "grow" }, h("b", {}, `${error.status} ${error.code ?? ""} `), error.message),
    h("time", {}, when(error.time)))));
}
