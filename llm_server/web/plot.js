// Small line plots of the last minutes, as SVG made of elements.

const NS = "http://www.w3.org/2000/svg";
const WIDTH = 300;
const HEIGHT = 70;

function svg(tag, attributes) {
  const element = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** A figure whose `draw(samples)` shows series `[name, of(sample)]`, with `unit(value)` for words. */
export function plot(title, series, unit, span = 180) {
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  const value = document.createElement("output");
  const top = document.createElement("span");
  caption.append(title, value);
  top.className = "top-value";
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
  const lines = series.map((_, i) => svg("path", { class: `line line-${i}`, fill: "none" }));
  drawing.append(...lines);
  const ground = document.createElement("div");
  ground.append(top, drawing);
  figure.append(caption, ground);
  figure.className = "plot";
  figure.draw = (samples) => {
    const values = series.map(([, of]) => samples.map(of));
    const most = Math.max(...values.flat().filter((v) => v !== null), 0);
    lines.forEach((line, i) => line.setAttribute("d", path(values[i], most || 1, span)));
    const now = series.map(([name], i) => {
      const last = values[i].at(-1);
      const text = last === null || last === undefined ? "none" : unit(last);
      return name ? `${name} ${text}` : text;
    });
    value.replaceChildren(...now.map((text, i) => {
      const part = document.createElement("span");
      part.className = `of-line line-${i}`;
      part.textContent = text;
      return part;
    }));
    top.textContent = most ? unit(most) : "";
    drawing.setAttribute("aria-label", `${title}: ${now.join(", ")}; at most ${unit(most)} in 15 minutes`);
  };
  return figure;
}

/** A line that ends at the right edge; gaps where there is no value are bridged. */
function path(values, most, span) {
  let d = "";
  values.forEach((value, i) => {
    if (value === null) return;
    const x = WIDTH - ((values.length - 1 - i) * WIDTH) / (span - 1);
    const y = HEIGHT - 2 - (value / most) * (HEIGHT - 6);
    d += `${d ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
  });
  return d;
}
