// The models of the folder: which are loaded, what they take, loading and unloading them.

import { get, post, words } from "./api.js";
import { bar, bytes, button, count, field, h, seconds, show } from "./dom.js";
import { live, subscribe } from "./live.js";

const LOAD_FIELDS = [
  ["n_ctx", "Context", "number", "tokens; 0 or empty: what fits"],
  ["parallel", "Requests at once", "number", "0 or empty: the server chooses"],
  ["n_threads", "Threads", "number", "0 or empty: one per core"],
  ["n_gpu_layers", "Layers on the GPU", "number", "-1: all"],
  ["type_k", "Type of keys", ["", "f16", "q8_0", "q4_0"], "smaller types hold more context"],
  ["type_v", "Type of values", ["", "f16", "q8_0", "q4_0"], "smaller types hold more context"],
];
const PARTS = ["weights", "kv", "compute", "prompt_cache", "process"];
const FIT_DELAY_MS = 250; // Typing a number is one question, not one a digit.

/** Load a model, as POST /setModel does; progress is shown by the status of the page. */
function loadModel(name, settings) {
  const body = { model_name: name };
  if (settings && Object.keys(settings).length) body.load_model_configs = settings;
  return post("/setModel", body);
}

/** A menu of the models that make text, on the default one until somebody chooses. */
export function modelPicker(props) {
  const picker = h("select", props);
  let chosen = false;
  let sampling = {};
  picker.addEventListener("change", () => { chosen = true; });
  const choose = (name) => {
    if ([...picker.options].some((option) => option.value === name)) picker.value = name;
  };
  return {
    element: picker,
    choose,
    /** What the chosen model's requests get that leave it out, where it is not the usual. */
    sampling: () => sampling[picker.value] ?? {},
    /** Look for new models; `wanted` is chosen if it is there. */
    async refresh(wanted) {
      const list = (await modelList()).filter((model) => !model.problem && !model.pooling);
      const models = list.map((model) => model.id);
      sampling = Object.fromEntries(list.map((model) => [model.id, model.sampling]));
      const before = picker.value;
      show(picker, models.join("\n"), () => models.map((name) => h("option", { value: name }, name)));
      choose(wanted || (chosen ? before : live.status?.model));
    },
  };
}

function named(part) {
  return part === "kv" ? "context" : part.replace("_", " ");
}

async function modelList() {
  return (await get("/models")).data;
}

export function start(view) {
  const memory = h("div", {});
  const said = h("p", { role: "status", className: "said" });
  const rows = h("ul", { className: "rows cards" });
  const none = h("p", { className: "quiet", hidden: true }, "No model yet. Put a .gguf file into the models folder.");
  const kept = new Map(); // the row of each model: a form in it stays as it is while figures change

  async function refresh() {
    if (view.hidden) return;
    try {
      const [models, props] = await Promise.all([
        modelList(), get("/props")]);
      drawRows(models, props.default);
      drawMoments();
      show(memory, JSON.stringify([props.budget, props.models.map((model) => [model.model, model.memory])]),
        () => memoryOf(props));
    } catch (error) {
      said.textContent = words(error);
    }
  }

  function memoryOf({ models, budget }) {
    const used = models.reduce((sum, model) => sum + model.memory, 0);
    const text = `${bytes(used)} of ${bytes(budget)}`;
    const groups = models.map((model) => [`${model.model} ${bytes(model.memory)}`,
      PARTS.map((part, i) => [named(part), share(model, part), `k${i + 1}`])]);
    return [h("p", {}, `Loaded models take ${text} that they may have.`),
      bar(groups, budget, [text, ...groups.map(([title]) => title)].join(", "))];
  }

  // What was measured after the load beyond the estimate, or short of it, is the process's.
  function share({ memory, estimate }, part) {
    return Math.max(0, part === "process" ? memory - estimate.total + estimate.process : estimate[part]);
  }

  function drawMoments() {
    for (const { moment } of kept.values()) moment.textContent = "";
    for (const model of live.status?.models ?? []) {
      const row = kept.get(model.model);
      if (row) row.moment.textContent = momentOf(model);
    }
  }

  function drawRows(models, standard) {
    none.hidden = models.length > 0;
    const ids = new Set(models.map((model) => model.id));
    for (const [id, { element }] of kept) {
      if (ids.has(id)) continue;
      element.remove();
      kept.delete(id);
    }
    let place = rows.firstElementChild;
    for (const model of models) {
      if (!kept.has(model.id)) kept.set(model.id, row(model.id));
      const { element, draw } = kept.get(model.id);
      draw(model, standard);
      if (element === place) place = place.nextElementSibling;
      else rows.insertBefore(element, place);
    }
  }

  /** The row of a model, and how it is drawn anew; its moment is another's to write. */
  function row(id) {
    const about = h("div", { className: "grow" });
    const moment = h("p", { className: "quiet moment" });
    const form = h("div", { className: "load-form", hidden: true });
    const loadButton = button("Load", () => load(id), { className: "primary" });
    const open = button("Load with settings", () => {
      if (!form.childElementCount) form.append(...loadForm(id));
      form.hidden = !form.hidden;
      open.ariaExpanded = String(!form.hidden);
    }, { ariaExpanded: "false" });
    const makeDefault = button("Make default", () => load(id));
    const unloadButton = button("Unload", () => unload(id));
    const element = h("li", {}, about,
      h("div", { className: "actions" }, loadButton, open, makeDefault, unloadButton), form);
    const draw = (model, standard) => {
      const loaded = model.state === "loaded";
      const isDefault = loaded && id === standard;
      loadButton.hidden = loaded;
      makeDefault.hidden = !loaded || isDefault;
      unloadButton.hidden = moment.hidden = !loaded;
      show(about, JSON.stringify([model, isDefault]), () => aboutOf(model, isDefault, moment));
    };
    return { element, moment, draw };
  }

  function aboutOf(model, isDefault, moment) {
    const facts = [
      model.size && bytes(model.size), model.n_params && `${(model.n_params / 1e6).toFixed(model.n_params < 1e7 ? 1 : 0)} M parameters`,
      model.quantization, model.architecture,
      model.n_ctx && `context ${count(model.n_ctx)} of ${count(model.n_ctx_train)}`,
      model.memory && `${model.state === "loaded" ? "takes" : "would take"} ${bytes(model.memory)}`,
    ].filter(Boolean);
    return [
      h("b", {}, model.id), " ",
      model.state === "available" ? null : h("span", { className: "tag" }, model.state), " ",
      isDefault ? h("span", { className: "tag" }, "default") : null,
      h("p", { className: "quiet" }, facts.join(" · ")), moment,
      model.problem ? h("p", { className: "bad" }, `Cannot be loaded: ${model.problem}`) : null,
    ];
  }

  function loadForm(id) {
    const preview = h("p", { role: "status", className: "said" });
    const controls = LOAD_FIELDS.map(([name, label, kind, hint]) => {
      const control = Array.isArray(kind)
        ? h("select", { name }, kind.map((value) => h("option", { value }, value || "unchanged")))
        : h("input", { name, type: "number", min: name === "n_gpu_layers" ? -1 : 0, inputMode: "numeric" });
      return field(label, control, hint);
    });
    const form = h("form", { className: "grid", onsubmit: (event) => {
      event.preventDefault();
      load(id, settingsOf(form));
    } }, controls, h("div", { className: "actions" }, h("button", { className: "primary" }, "Load so")));
    let later = 0;
    form.addEventListener("input", () => {
      clearTimeout(later);
      later = setTimeout(() => fit(id, form, preview), FIT_DELAY_MS);
    });
    fit(id, form, preview);
    return [form, preview];
  }

  function settingsOf(form) {
    const settings = {};
    for (const [name, value] of new FormData(form)) {
      if (value !== "") settings[name] = name.startsWith("type_") ? value : Number(value);
    }
    return settings;
  }

  async function fit(model, form, preview) {
    const asked = settingsOf(form);
    const outdated = () => JSON.stringify(asked) !== JSON.stringify(settingsOf(form));
    try {
      const found = await post("/models/fit", { model, load_model_configs: asked });
      if (outdated()) return;
      const parts = PARTS.map((part) => `${named(part)} ${bytes(found.memory[part])}`).join(", ");
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
  view.append(h("h1", {}, "Models"), memory, progress, said, failure, none, rows);
  let seen = "";
  subscribe(({ status }) => {
    progress.hidden = !status?.loading;
    if (status?.loading) progress.value = status.loading.progress;
    const text = status?.load_error ? `The last load failed: ${status.load_error}` : "";
    if (failure.textContent !== text) failure.textContent = text;
    if (!view.hidden) drawMoments();
    const loaded = status?.models.map(({ model, state, n_ctx, memory }) => [model, state, n_ctx, memory]);
    const key = JSON.stringify([status?.model, status?.state, loaded, status?.loading?.model]);
    if (key !== seen) refresh();
    seen = key;
  });
  return refresh;
}

/** What a loaded model does at the moment, and how long it stays. */
function momentOf(model) {
  const { state, n_ctx, running, waiting, cells_running, cells_idle, keep_alive, expires_in } = model;
  return [
    state === "unloading" ? "unloading: ends what it has" : null,
    `${count(running)} running`, waiting ? `${count(waiting)} waiting` : null,
    cells_idle === null ? null
      : `cells: ${count(cells_running)} in use, ${count(cells_idle)} cached, ${count(n_ctx - cells_running - cells_idle)} free`,
    model.max_gpu_layers ? `${model.n_gpu_layers} of ${model.max_gpu_layers} layers on graphics cards` : null,
    expires_in !== null ? `goes in ${seconds(Math.ceil(expires_in))} if nobody asks`
      : keep_alive < 0 ? "stays loaded" : `stays ${seconds(keep_alive)} after its last request`,
  ].filter(Boolean).join(" · ");
}
