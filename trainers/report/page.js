// The page is complete without this script, which adds sorting, filters, values below the pointer and the theme.
(() => {
"use strict";
const all = (selector, parent = document) => [...parent.querySelectorAll(selector)];
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

// ---- theme ----
const root = document.documentElement, themeButton = document.getElementById("theme");
const isDark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const nameTheme = () => { themeButton.textContent = isDark() ? "Light colours" : "Dark colours"; };
try { if (localStorage.getItem("theme")) root.dataset.theme = localStorage.getItem("theme"); } catch { /* no storage for files */ }
themeButton.hidden = false;
themeButton.onclick = () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try { localStorage.setItem("theme", root.dataset.theme); } catch { /* as above */ }
  nameTheme();
};
nameTheme();

// ---- tables: sorting, a filter of rows, a choice of columns ----
const collator = new Intl.Collator(undefined, { numeric: true });
const valueOf = (row, column) => {
  const cell = row.cells[column];
  if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
  const text = cell.textContent.trim();
  return text === "" || text === "–" ? null : text;
};
const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : collator.compare(a, b));

function sortBy(table, column) {
  const heads = [...table.tHead.rows[0].cells], head = heads[column], body = table.tBodies[0];
  table.original ??= [...body.rows];
  const present = table.original.filter((row) => valueOf(row, column) !== null);
  const first = present.length && typeof valueOf(present[0], column) === "number" ? "descending" : "ascending";
  const second = first === "ascending" ? "descending" : "ascending";
  const order = { none: first, [first]: second, [second]: "none" }[head.getAttribute("aria-sort")];
  heads.forEach((other) => other.setAttribute("aria-sort", "none"));
  head.setAttribute("aria-sort", order);
  if (order === "none") { body.append(...table.original); return; }
  const sign = order === "ascending" ? 1 : -1;
  present.sort((a, b) => sign * compare(valueOf(a, column), valueOf(b, column)));
  body.append(...present, ...table.original.filter((row) => valueOf(row, column) === null)); // empty cells last
}

function equip(table) {
  const heads = [...table.tHead.rows[0].cells], rows = table.tBodies[0].rows.length;
  table.hiddenColumns = new Set();
  heads.forEach((head, column) => {
    const button = make("button", { type: "button", className: "sort" }, ...head.childNodes);
    button.onclick = () => sortBy(table, column);
    head.append(button);
    head.setAttribute("aria-sort", "none");
  });
  if (rows < 5 && heads.length < 6) return;
  const search = make("input", { type: "search", placeholder: "filter rows" });
  search.setAttribute("aria-label", `Filter rows: ${table.getAttribute("aria-label")}`);
  search.oninput = () => { table.words = search.value.toLowerCase().split(/\s+/).filter(Boolean); showTable(table); };
  const list = make("div", { className: "choices" });
  heads.slice(1).forEach((head, i) => {
    const box = make("input", { type: "checkbox", checked: true });
    box.onchange = () => { table.hiddenColumns[box.checked ? "delete" : "add"](i + 1); showTable(table); };
    list.append(make("label", {}, box, ` ${head.textContent}`));
  });
  table.count = make("output");
  table.parentNode.before(make("div", { className: "tools" }, search, make("details", {}, make("summary", { textContent: "columns" }), list), table.count));
}

// ---- filters of the whole page ----
const hidden = { model: new Set(), scenario: new Set(), metric: new Set(), dataset: new Set() };
let modelText = "";
const isShown = (kind, name) => !hidden[kind].has(name) && (kind !== "model" || name.toLowerCase().includes(modelText));

function showTable(table) {
  let shown = 0;
  for (const row of table.tBodies[0].rows) {
    const passes = ["model", "scenario", "dataset"].every((kind) => row.dataset[kind] === undefined || isShown(kind, row.dataset[kind]));
    const text = row.textContent.toLowerCase();
    row.hidden = !(passes && (table.words || []).every((word) => text.includes(word)));
    shown += !row.hidden;
  }
  const off = [...table.tHead.rows[0].cells].map((head, column) => table.hiddenColumns.has(column) || (head.dataset.scenario !== undefined && !isShown("scenario", head.dataset.scenario)));
  for (const row of table.rows) [...row.cells].forEach((cell, column) => { cell.hidden = off[column]; });
  if (table.count) table.count.textContent = `${shown} of ${table.tBodies[0].rows.length} rows`;
}

const tables = all(".wide > table");
function show() {
  tables.forEach(showTable);
  all("main [data-metric]").forEach((part) => { part.hidden = !isShown("metric", part.dataset.metric); });
  all("main :is(div, figure)[data-dataset]").forEach((part) => { part.hidden = !isShown("dataset", part.dataset.dataset); });
  all(".series").forEach((series) => { series.toggleAttribute("hidden", !isShown("model", series.dataset.model)); });
  all(".legend button").forEach((button) => button.setAttribute("aria-pressed", isShown("model", button.dataset.model)));
  all(".charts").forEach((charts) => {
    charts.classList.toggle("many", all(".legend [aria-pressed=true]", charts).length > 6);
  });
  const boxes = all("#filters fieldset[data-kind=model] .choices input");
  document.getElementById("shown").textContent = `${boxes.filter((box) => isShown("model", box.value)).length} of ${boxes.length} models`;
}

function toggle(kind, name, visible) {
  hidden[kind][visible ? "delete" : "add"](name);
  const box = all(`#filters fieldset[data-kind=${kind}] .choices input`).find((input) => input.value === name);
  if (box) box.checked = visible;
}
all("#filters fieldset").forEach((group) => {
  const kind = group.dataset.kind, boxes = all(".choices input", group);
  boxes.forEach((box) => { box.onchange = () => { toggle(kind, box.value, box.checked); show(); }; });
  all("button", group).forEach((button) => {
    button.setAttribute("aria-label", `${button.textContent}: ${kind}s`);
    button.onclick = () => { boxes.forEach((box) => toggle(kind, box.value, Boolean(button.dataset.set))); show(); };
  });
  const search = group.querySelector("input[type=search]");
  if (search) search.oninput = () => { modelText = search.value.trim().toLowerCase(); show(); };
});
document.getElementById("filters").hidden = false;
if (matchMedia("(max-width: 68rem)").matches) all("aside > details").forEach((details) => { details.open = false; });

// ---- charts: values below the pointer, or chosen with the arrow keys ----
const tip = document.getElementById("tip"), spoken = document.getElementById("spoken");
const seriesOf = (svg) => all(".series", svg).filter((series) => !series.hasAttribute("hidden"));
const pointsOf = (series) => (series.points ??= series.dataset.p.split(";").map((text) => {
  const [x, y, group, value] = text.split("|");
  return { x: Number(x), y: Number(y), group: Number(group), value, series };
}));

function clear() {
  tip.hidden = true;
  all(".chart.dim").forEach((svg) => svg.classList.remove("dim"));
  all(".series.on").forEach((series) => series.classList.remove("on"));
  all(".cursor").forEach((line) => line.remove());
}

function mark(svg, series) {
  all(".series", svg).forEach((other) => other.classList.toggle("on", other === series));
  svg.classList.toggle("dim", Boolean(series));
}

// Points of one group, best first; of a scatter plot all, from left to right.
function pointsAt(svg, group) {
  const axis = svg.dataset.axis, points = seriesOf(svg).flatMap(pointsOf).filter((p) => axis === "xy" || p.group === group);
  return points.sort((a, b) => (axis === "x" ? a.y - b.y : axis === "y" ? b.x - a.x : a.x - b.x));
}

function tell(svg, point, x, y) {
  clear();
  mark(svg, point.series);
  const axis = svg.dataset.axis, box = svg.viewBox.baseVal, [at, name] = JSON.parse(svg.dataset.groups)[point.group];
  if (axis !== "xy") {
    const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
    line.setAttribute("class", "cursor");
    line.setAttribute("d", axis === "x" ? `M${at} 20V${box.height - 36}` : `M8 ${at}H${box.width - 8}`);
    svg.append(line);
  }
  const points = axis === "xy" ? [point] : pointsAt(svg, point.group);
  const items = points.map((p) => {
    const button = all(".legend button", svg.closest(".charts")).find((b) => b.dataset.model === p.series.dataset.model);
    return make("li", { className: p === point ? "on" : "" }, button.querySelector("svg").cloneNode(true), make("span", { textContent: p.series.dataset.model }), make("span", { textContent: p.value }));
  });
  tip.replaceChildren(make("p", { textContent: name }), make("ul", {}, ...items));
  tip.classList.toggle("long", items.length > 12);
  tip.hidden = false;
  const size = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, x + 16 + size.width > innerWidth ? x - size.width - 16 : x + 16)}px`;
  tip.style.top = `${Math.max(4, Math.min(y + 12, innerHeight - size.height - 4))}px`;
  return `${name}: ${point.series.dataset.model} ${point.value}`;
}

function nearest(svg, event) {
  const frame = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / frame.width, axis = svg.dataset.axis;
  const x = (event.clientX - frame.left) * scale, y = (event.clientY - frame.top) * scale;
  const distance = (p) => (axis === "x" ? 50 : 1) * (p.x - x) ** 2 + (axis === "y" ? 50 : 1) * (p.y - y) ** 2;
  const points = seriesOf(svg).flatMap(pointsOf);
  return points.length ? points.reduce((best, p) => (distance(p) < distance(best) ? p : best)) : null;
}

function onKey(svg, event) {
  if (event.key === "Escape") { clear(); return; }
  const arrows = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
  const points = seriesOf(svg).flatMap(pointsOf);
  if (!arrows || !points.length) return;
  event.preventDefault();
  const isGroup = svg.dataset.axis === "xy" ? false : (svg.dataset.axis === "x") === (arrows[0] !== 0);
  const step = arrows[0] + arrows[1], groups = [...new Set(points.map((p) => p.group))].sort((a, b) => a - b);
  let point = points.includes(svg.point) ? svg.point : null;
  if (!point) {
    point = pointsAt(svg, groups[0])[0];
  } else if (isGroup) {
    const group = groups[Math.max(0, Math.min(groups.length - 1, groups.indexOf(point.group) + step))];
    const candidates = pointsAt(svg, group);
    point = candidates.find((p) => p.series === point.series) || candidates[0];
  } else {
    const members = pointsAt(svg, point.group);
    point = members[Math.max(0, Math.min(members.length - 1, members.indexOf(point) + step))];
  }
  svg.point = point;
  const frame = svg.getBoundingClientRect(), scale = frame.width / svg.viewBox.baseVal.width;
  spoken.textContent = tell(svg, point, frame.left + point.x * scale, frame.top + point.y * scale);
}

all(".chart").forEach((svg) => {
  const follow = (event) => { const point = nearest(svg, event); if (point) tell(svg, point, event.clientX, event.clientY); };
  svg.addEventListener("pointermove", follow);
  svg.addEventListener("pointerdown", follow);
  svg.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") clear(); });
  svg.addEventListener("keydown", (event) => onKey(svg, event));
  svg.addEventListener("blur", clear);
});
document.addEventListener("pointerdown", (event) => { if (!event.target.closest(".chart")) clear(); });
addEventListener("scroll", () => { if (!tip.hidden && !document.activeElement.closest(".chart")) clear(); }, { passive: true });

all(".legend button").forEach((button) => {
  const model = button.dataset.model;
  const highlight = (on) => all(".chart", button.closest(".charts")).forEach((svg) => {
    mark(svg, on ? seriesOf(svg).find((series) => series.dataset.model === model) : null);
  });
  button.onclick = () => { toggle("model", model, button.getAttribute("aria-pressed") !== "true"); highlight(false); show(); };
  button.onpointerenter = button.onfocus = () => highlight(true);
  button.onpointerleave = button.onblur = () => highlight(false);
});

// ---- links into closed parts of the page ----
function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  target.hidden = false;
  const first = target.querySelector("details");
  if (first) first.open = true;
  for (let parent = target.closest("details"); parent; parent = parent.parentElement.closest("details")) parent.open = true;
  target.scrollIntoView();
}
addEventListener("hashchange", openTarget);
tables.forEach(equip);
show();
openTarget();
})();
