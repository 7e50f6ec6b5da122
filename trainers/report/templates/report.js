"use strict";

// Tables: a click on a header sorts by it, a second click the other way round.
for (const button of document.querySelectorAll("table.sortable th button")) {
  button.onclick = () => {
    const head = button.parentNode, body = head.closest("table").tBodies[0];
    const down = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down > 0 ? "ascending" : "descending");
    const key = row => row.cells[head.cellIndex].dataset.v;
    const order = (a, b) => a === "" || b === "" ? (a === "") - (b === "") // unknown values last, both ways
      : down * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
    body.append(...[...body.rows].sort((a, b) => order(key(a), key(b))));
  };
}

// Pictures: the point nearest to the pointer, or the field under it, in words beside it.
const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
document.body.append(tip);

function show(event, title, text) {
  const name = document.createElement("b");
  name.textContent = title;
  tip.replaceChildren(...(title ? [name] : []), text);
  tip.hidden = false;
  const right = document.documentElement.clientWidth - tip.offsetWidth - 8;
  const above = event.clientY - tip.offsetHeight - 14;
  tip.style.left = Math.max(8, Math.min(event.clientX + 14, right)) + "px";
  tip.style.top = (above < 8 ? event.clientY + 18 : above) + "px";
}

function svg(chart, name, attributes) {
  const element = document.createElementNS(chart.namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function scale(axis) { // the place of a value on an axis
  const [low, high, start, stop, log] = axis.split(" ").map(Number), each = log ? Math.log : Number;
  return value => start + (each(value) - each(low)) / (each(high) - each(low)) * (stop - start);
}

function points(chart) {
  const across = scale(chart.dataset.xAxis), down = scale(chart.dataset.yAxis);
  return [...chart.querySelectorAll(".series")].flatMap(series => series.dataset.points.split(" ").map(point => {
    const [x, y] = point.split(",").map(Number);
    return { series, across: across(x), down: down(y), x, y };
  }));
}

const words = value => Math.abs(value) >= 1e4 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(4));

for (const title of document.querySelectorAll("svg title")) { // the browser's own hint would lie over ours
  title.parentNode.dataset.hint = title.textContent;
  title.remove();
}

for (const chart of document.querySelectorAll("svg.chart")) {
  let known, marked;
  const cross = svg(chart, "path", { class: "cross" }), ring = svg(chart, "circle", { class: "here", r: 6 });
  const leave = () => {
    marked?.classList.remove("on");
    cross.remove();
    ring.remove();
    tip.hidden = true;
  };
  chart.onpointerdown = chart.onpointermove = event => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse());
    const far = point => Math.hypot(point.across - at.x, point.down - at.y);
    known ??= points(chart);
    const near = known.reduce((best, point) => far(point) <= far(best) ? point : best);
    if (marked !== near.series) marked?.classList.remove("on");
    marked = near.series;
    marked.classList.add("on");
    cross.setAttribute("d", `M${near.across} 30V${chart.viewBox.baseVal.height - 42}`);
    ring.setAttribute("cx", near.across);
    ring.setAttribute("cy", near.down);
    chart.append(cross, ring);
    const there = known.filter(point => point.across === near.across && point.down === near.down); // equal runs
    show(event, [...new Set(there.map(point => point.series.dataset.label))].join(", "),
      `${chart.dataset.y} ${words(near.y)} at ${chart.dataset.x} ${words(near.x)}`);
  };
  chart.onpointerleave = chart.onpointercancel = leave;
}

for (const field of document.querySelectorAll("svg.map g")) {
  field.onpointerdown = field.onpointermove = event => show(event, "", field.dataset.hint);
  field.onpointerleave = field.onpointercancel = () => { tip.hidden = true; };
}
