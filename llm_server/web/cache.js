// The prompts kept on disk: how much of the budget they take, which heads, warming and clearing.

import { get, post, words } from "./api.js";
import { bar, bytes, button, count, field, h, when } from "./dom.js";
import { modelPicker } from "./models.js";
import { parseJson } from "./tools.js";

export function start(view) {
  const size = h("div", {});
  const tables = h("div", {});
  const said = h("p", { role: "status", className: "said" });
  const picker = modelPicker({ name: "model" });
  const messages = h("textarea", { rows: 5, spellcheck: false,
    placeholder: '[{"role": "system", "content": "You are …"}]' });
  const tools = h("textarea", { rows: 3, spellcheck: false, placeholder: "optional: a list of tools" });

  async function refresh() {
    if (view.hidden) return;
    try {
      draw(await get("/api/cache"));
      await picker.refresh();
    } catch (error) {
      said.textContent = words(error);
    }
  }

  function draw(cache) {
    const heads = cache.models.reduce((sum, model) => sum + model.head_bytes, 0);
    const parts = [["heads", heads, "k1"], ["the rest", cache.bytes - heads, "k2"]];
    size.replaceChildren(
      cache.budget
        ? h("p", {}, `${bytes(cache.bytes)} of ${bytes(cache.budget)} · written: ${cache.write} · since the start `
          + `${count(cache.hits)} chunks read, ${count(cache.misses)} missed`)
        : h("p", {}, "This server keeps no prompts on disk."),
      bar([["", parts]], cache.budget, `${bytes(cache.bytes)} of ${bytes(cache.budget)}`),
    );
    tables.replaceChildren(
      table("Models", ["model", "chunks", "tokens", "size", "of that heads", ""], cache.models.map((m) =>
        [named(m.name, m.id), count(m.chunks), count(m.tokens), bytes(m.bytes), bytes(m.head_bytes),
          button("Clear", () => clear(m.id, m.name), { "aria-label": `Clear ${m.name ?? m.id}` })])),
      table("Heads", ["model", "tokens", "hits", "last used"], cache.heads.map((head) =>
        [head.name ?? head.model, count(head.tokens), count(head.hits), when(head.used)])),
      cache.heads.length ? h("p", { className: "quiet" },
        "A head is a system prompt with its tools; a hit is a request that found it and did not "
          + "compute it. Hits of the last minute may not be counted yet.") : "",
    );
  }

  async function warm() {
    said.textContent = "Computing …";
    try {
      const body = { model: picker.element.value, messages: parseJson(messages.value, "messages") };
      if (tools.value.trim()) body.tools = parseJson(tools.value, "tools");
      const done = await post("/restore_cache", body);
      said.textContent = `${done.model}: ${count(done.prompt_tokens)} tokens, ${count(done.cached_tokens)} known before `
        + `(${done.source}), ${bytes(done.bytes)} on disk, ${(done.ms / 1000).toFixed(2)} s.`;
    } catch (error) {
      said.textContent = error instanceof SyntaxError ? error.message : words(error);
    }
    refresh();
  }

  async function clear(model, name) {
    const whose = model === "*" ? "all models" : name ?? model;
    if (!confirm(`Delete the prompts of ${whose} kept on disk?`)) return;
    try {
      const done = await post("/api/cache/clear", { model });
      said.textContent = `${count(done.chunks)} chunks deleted, ${bytes(done.bytes)} free again.`;
    } catch (error) {
      said.textContent = words(error);
    }
    refresh();
  }

  view.append(
    h("h1", {}, "Cache"), size,
    h("div", { className: "actions" }, button("Look again", refresh), button("Clear all", () => clear("*"), { className: "danger" })),
    said, tables,
    h("h2", {}, "Warm a prompt"),
    h("p", { className: "quiet" }, "Computes and keeps a prompt now, so that the next request that begins like it starts at once."),
    field("Model", picker.element, "One that is not loaded is loaded for it."), field("Messages", messages), field("Tools", tools), button("Warm", warm, { className: "primary" }),
  );
  return refresh;
}

/** A model's name, where it is known, and the id of its chunks. */
function named(name, id) {
  return name ? [name, h("small", { className: "id" }, id)] : id;
}

function table(title, columns, rows) {
  if (!rows.length) return h("p", { className: "quiet" }, `${title}: none.`);
  return h("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": title },
    h("table", {},
      h("caption", {}, title),
      h("thead", {}, h("tr", {}, columns.map((name) => name ? h("th", { scope: "col" }, name) : h("td", {})))),
      h("tbody", {}, rows.map((cells) => h("tr", {}, cells.map((cell) => h("td", {}, ...[cell].flat())))))));
}
