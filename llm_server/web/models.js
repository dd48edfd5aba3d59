// The models of the folder: which are loaded, what they take, loading and unloading them.

import { get, post, words } from "./api.js";
import { bar, bytes, button, count, field, h, show } from "./dom.js";
import { live, subscribe } from "./live.js";

const LOAD_FIELDS = [
  ["n_ctx", "Context", "number", "tokens; 0 or empty: what fits"],
  ["parallel", "Requests at once", "number", "0 or empty: the server chooses"],
  ["n_threads", "Threads", "number", "0 or empty: one per core"],
  ["n_gpu_layers", "Layers on the GPU", "number", "-1: all"],
  ["kv_type", "Cache type", ["", "f16", "q8_0", "q4_0"], "smaller types hold more context"],
];

/** Load a model, as POST /setModel does; progress is shown by the status of the page. */
export function loadModel(name, settings) {
  const body = { model_name: name };
  if (settings && Object.keys(settings).length) body.load_model_configs = settings;
  return post("/setModel", body);
}

export async function modelList() {
  return (await get("/models")).data;
}

export function start(view) {
  const memory = h("div", {});
  const said = h("p", { role: "status", className: "said" });
  const rows = h("ul", { className: "rows cards" });
  let endpoints = null;

  async function refresh() {
    if (view.hidden) return;
    try {
      endpoints ??= new Set((await get("/")).endpoints);
      const [models, props] = await Promise.all([
        modelList(), endpoints.has("GET /props") ? get("/props") : null]);
      show(rows, JSON.stringify([models, live.status?.model]), () => models.length
        ? models.map(row)
        : h("li", { className: "quiet" }, "No model yet. Put a .gguf file into the models folder."));
      drawMemory(props);
    } catch (error) {
      said.textContent = words(error);
    }
  }

  function drawMemory(props) {
    const now = live.status?.memory;
    if (props) {
      const parts = props.models.map((model, i) => [model.model, model.memory, `k${(i % 4) + 1}`]);
      const used = props.models.reduce((sum, model) => sum + model.memory, 0);
      memory.replaceChildren(
        h("p", {}, `Loaded models take ${bytes(used)} of a budget of ${bytes(props.budget)}.`),
        bar(parts, props.budget, `${bytes(used)} of ${bytes(props.budget)}`));
    } else if (now) {
      const parts = [["workers", now.workers, "k1"], ["server", now.server, "k2"]];
      memory.replaceChildren(
        h("p", {}, `${bytes(now.available)} of ${bytes(now.total)} of this machine are free.`),
        bar(parts, now.total, "memory"));
    }
  }

  function row(model) {
    const loaded = model.state ? model.state === "loaded" : model.id === live.status?.model;
    const facts = [
      model.size && bytes(model.size), model.n_params && `${(model.n_params / 1e6).toFixed(0)} M parameters`,
      model.quantization, model.architecture,
      model.n_ctx && `context ${count(model.n_ctx)} of ${count(model.n_ctx_train)}`,
      model.memory && `${loaded ? "takes" : "would take"} ${bytes(model.memory)}`,
    ].filter(Boolean);
    const form = h("div", { className: "load-form", hidden: true });
    const open = button("Load with settings", () => {
      if (!form.childElementCount) form.append(...loadForm(model));
      form.hidden = !form.hidden;
      open.ariaExpanded = String(!form.hidden);
    }, { ariaExpanded: "false" });
    return h("li", {},
      h("div", { className: "grow" },
        h("b", {}, model.id), " ", loaded ? h("span", { className: "tag" }, "loaded") : null,
        h("p", { className: "quiet" }, facts.join(" · ")),
        model.problem ? h("p", { className: "bad" }, `Cannot be loaded: ${model.problem}`) : null),
      h("div", { className: "actions" },
        loaded ? null : button("Load", () => load(model.id), { className: "primary" }), open,
        loaded && endpoints.has("POST /models/unload") ? button("Unload", () => unload(model.id)) : null),
      form);
  }

  function loadForm(model) {
    const preview = h("p", { role: "status", className: "said" });
    const controls = LOAD_FIELDS.map(([name, label, kind, hint]) => {
      const control = Array.isArray(kind)
        ? h("select", { name }, kind.map((value) => h("option", { value }, value || "unchanged")))
        : h("input", { name, type: "number", min: name === "n_gpu_layers" ? -1 : 0, inputMode: "numeric" });
      return field(label, control, hint);
    });
    const form = h("form", { className: "grid", onsubmit: (event) => {
      event.preventDefault();
      load(model.id, settingsOf(form));
    } }, controls, h("div", { className: "actions" }, h("button", { className: "primary" }, "Load so")));
    if (endpoints.has("POST /models/fit")) form.addEventListener("input", () => fit(model.id, form, preview));
    if (endpoints.has("POST /models/fit")) fit(model.id, form, preview);
    return [form, preview];
  }

  function settingsOf(form) {
    const settings = {};
    for (const [name, value] of new FormData(form)) {
      if (value !== "") settings[name] = name === "kv_type" ? value : Number(value);
    }
    return settings;
  }

  async function fit(model, form, preview) {
    try {
      const found = await post("/models/fit", { model, load_model_configs: settingsOf(form) });
      const parts = ["weights", "kv", "compute", "prompt_cache", "process"]
        .map((name) => `${name.replace("_", " ")} ${bytes(found.memory[name])}`).join(", ");
      preview.textContent = `${found.fits ? "Fits" : "Does not fit"}: ${bytes(found.memory.total)} of `
        + `${bytes(found.budget)} with a context of ${count(found.n_ctx)} (${parts}). `
        + `The longest that fits is ${count(found.largest_n_ctx)}.`;
    } catch (error) {
      preview.textContent = words(error);
    }
  }

  async function load(name, settings) {
    said.textContent = `Loading ${name} …`;
    try {
      const done = await loadModel(name, settings);
      said.textContent = `${done.model} is loaded: context ${count(done.n_ctx)}, ${done.parallel} at once.`;
    } catch (error) {
      said.textContent = `${name} could not be loaded. ${words(error)}`;
    }
    refresh();
  }

  async function unload(model) {
    said.textContent = `Unloading ${model} …`;
    try {
      await post("/models/unload", { model });
      said.textContent = `${model} is unloaded.`;
    } catch (error) {
      said.textContent = words(error);
    }
    refresh();
  }

  const progress = h("progress", { max: 1, hidden: true, "aria-label": "Loading" });
  const failure = h("p", { className: "bad" });
  view.append(h("h1", {}, "Models"), memory, progress, said, failure, rows);
  let seen = "";
  subscribe(({ status }) => {
    progress.hidden = !status?.loading;
    if (status?.loading) progress.value = status.loading.progress;
    const text = status?.load_error ? `The last load failed: ${status.load_error}` : "";
    if (failure.textContent !== text) failure.textContent = text;
    const key = `${status?.model} ${status?.state}`;
    if (key !== seen) refresh();
    seen = key;
  });
  return refresh;
}
