// The page: which view is shown, and whether the server is there.

import * as cache from "./cache.js";
import * as chat from "./chat.js";
import { follow, subscribe } from "./live.js";
import * as models from "./models.js";
import * as now from "./now.js";

const names = ["chat", "models", "now", "cache"];
const views = Object.fromEntries(names.map((name) => [name, document.getElementById(name)]));
const shown = {
  chat: chat.start(views.chat),
  models: models.start(views.models),
  now: now.start(views.now),
  cache: cache.start(views.cache),
};
const state = document.getElementById("state");
const notice = document.getElementById("notice");

function route() {
  const wanted = location.hash.slice(1);
  if (wanted === "main") return;
  const name = names.includes(wanted) ? wanted : "chat";
  for (const each of names) views[each].hidden = each !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${name[0].toUpperCase()}${name.slice(1)} · LLM Server`;
  shown[name]();
}

subscribe(({ connected, status }) => {
  const loading = status?.loading;
  const text = !connected ? "not connected"
    : loading ? `loading ${loading.model} ${Math.round(loading.progress * 100)} %`
      : status.state === "ready" ? `${status.model} · ${status.running} running` : status.state;
  if (state.textContent !== text) state.textContent = text;
  state.dataset.kind = connected ? status.state : "lost";
  notice.hidden = connected;
  if (!connected) notice.textContent = "The connection to the server is lost. Trying again …";
});

addEventListener("hashchange", route);
route();
follow();
