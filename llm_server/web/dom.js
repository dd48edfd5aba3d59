// Elements from plain calls, and words for numbers. The only place that inserts HTML.

const policy = window.trustedTypes?.createPolicy("rendered", { createHTML: (html) => html });

/** An element: `on...` properties are listeners, `data` and `aria` objects their attributes. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && name !== "list" && name !== "role") element[name] = value;
    else if (value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Insert HTML that the server has sanitised (POST /api/render), nothing else. */
export function insertRendered(element, html) {
  element.innerHTML = policy ? policy.createHTML(html) : html;
  // What is wide scrolls, also for who has no mouse.
  for (const wide of element.querySelectorAll("pre, table")) wide.tabIndex = 0;
}

export function field(label, control, hint) {
  return h("label", { className: "field" }, h("span", {}, label), control,
    hint ? h("small", {}, hint) : null);
}

export function button(text, onclick, props = {}) {
  return h("button", { type: "button", onclick, ...props }, text);
}

export function bytes(n) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  for (; n >= 1000 && unit < units.length - 1; unit++) n /= 1000;
  return `${unit && n < 10 ? n.toFixed(1) : Math.round(n)} ${units[unit]}`;
}

export function seconds(s) {
  if (s < 10) return `${s.toFixed(2)} s`;
  if (s < 120) return `${Math.round(s)} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  return `${Math.round(s / 3600)} h`;
}

export function count(n) {
  return n.toLocaleString("en");
}

export function when(epoch) {
  return new Date(epoch * 1000).toLocaleString();
}

/** A bar of groups [title, parts] against a whole, parts being [name, size, class]; with a legend. */
export function bar(groups, whole, label) {
  const track = h("div", { className: "bar", role: "img", "aria-label": label });
  for (const [title, parts] of groups) {
    const group = h("span", { className: "group" });
    for (const [name, size, kind] of parts) {
      const part = h("span", { className: `part ${kind}`, title: [title, name, bytes(size)].filter(Boolean).join(" ") });
      part.style.flexGrow = size;
      group.append(part);
    }
    const size = parts.reduce((sum, part) => sum + part[1], 0);
    group.style.width = `${whole ? Math.min(100, (100 * size) / whole) : 0}%`;
    track.append(group);
  }
  return h("div", {}, track, groups.map(([title, parts]) => h("ul", { className: "legend" },
    title ? h("li", { className: "title" }, title) : null,
    parts.map(([name, size, kind]) => h("li", {}, h("i", { className: kind }), `${name} ${bytes(size)}`)))));
}

/** Replace what a list shows only if it has changed: nothing loses focus or jumps. */
export function show(element, key, make) {
  if (element.dataset.key === key) return;
  element.dataset.key = key;
  element.replaceChildren(...[make()].flat().filter(Boolean));
}
