"use strict";

// Rows with what their cell says beside them.
const ROWS = DATA.rows.map((row) => {
  const cell = DATA.cells[row.cell];
  const weightBits = Number(/^W(\d+)/.exec(cell.bits)?.[1] ?? 32);
  return { ...row, task: cell.task, model: cell.model, bits: cell.bits, protocol: cell.protocol,
    scope: cell.scope || "whole model", limit: cell.limit === null ? "all" : String(cell.limit),
    weight_bits: weightBits, name: cell.name, metric: cell.metric, paper: bestPublished(row) };
});

function bestPublished(row) {
  const values = row.published.filter((one) => !one.classes.length).map((one) => one.value);
  return values.length && row.value !== null ? Math.max(...values) : null;
}

const FILTERS = [["task", "task"], ["model", "model"], ["bits", "bits"], ["protocol", "protocol"],
  ["scope", "scope"], ["family", "method family"], ["method", "method"], ["images", "calibration images"], ["limit", "images judged"]];

const ALL_COLUMNS = [
  { key: "rank", title: "rank", number: true, show: rank },
  { key: "label", title: "method", show: named },
  { key: "name", title: "model, bits", show: (row) => row.name },
  { key: "value", title: "%", number: true, show: figure },
  { key: "paper", title: "paper %", number: true, optional: true, show: paper },
  { key: "drop", title: "drop", number: true, show: (row) => row.reference ? "" : digits(row.drop, 1) },
  { key: "seconds", title: "s", number: true, show: (row) => digits(row.seconds, 1) },
  { key: "memory", title: "MB", number: true, show: (row) => digits(row.memory, 0) },
  { key: "size", title: "size, MB", number: true, show: (row) => digits(row.size, 2) },
  { key: "stored", title: "bits stored", optional: true, show: (row) => row.stored === null ? "" : row.stored },
  { key: "images", title: "images", number: true, show: (row) => row.reference ? "" : String(row.images) },
  { key: "runs", title: "run", show: null },
];

// A column that no row has anything for is left out.
const COLUMNS = ALL_COLUMNS.filter((column) => !column.optional || ROWS.some((row) => row[column.key] !== null));

const state = { filters: {}, text: "", sort: "value", down: true };

function digits(value, count) {
  return value === null ? "" : value.toFixed(count);
}

function figure(row) {
  if (row.value === null) return row.status.join(", ");
  const draws = row.deviation === null ? "" : ` ± ${digits(row.deviation, 2)} (${row.runs.length})`;
  const interval = row.low === null ? "" : ` [${digits(row.low, 1)}, ${digits(row.high, 1)}]`;
  return digits(row.value, 2) + draws + interval;
}

// What a place rests on stands behind it.
function rank(row) {
  if (row.basis === null) return "";
  return row.rank === null ? "-" : row.rank + { tests: "", intervals: " ~", nothing: " -" }[row.basis];
}

function named(row) {
  return row.classes.length ? `${row.label} †` : row.label;
}

// What papers report of the same model, data and bits, and how far we are from it.
function paper(row) {
  if (row.paper === null) return "";
  const values = row.published.filter((one) => !one.classes.length).map((one) => one.value);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const signed = (value) => (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(1);
  if (low === high) return `${digits(low, 2)} (${signed(row.value - low)})`;
  return `${digits(low, 2)} to ${digits(high, 2)} (${signed(row.value - high)} to ${signed(row.value - low)})`;
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function distinct(values) {
  return [...new Set(values)].sort((a, b) => String(a).localeCompare(String(b), "en", { numeric: true }));
}

function select(title, key, values, all, change) {
  const options = values.map((value) => element("option", { value: String(value) }, String(value)));
  if (all) options.unshift(element("option", { value: "" }, "all"));
  return element("label", {}, title, element("select", { name: key, onchange: (event) => change(event.target.value) }, ...options));
}

function makeFilters() {
  const form = document.getElementById("filters");
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const [key, title] of FILTERS) {
    const values = distinct(ROWS.filter((row) => !row.reference).map((row) => row[key]));
    if (values.length < 2) continue;
    form.append(select(title, key, values, true, (value) => { state.filters[key] = value; refresh(); }));
  }
  const search = element("input", { type: "search", name: "search", oninput: (event) => { state.text = event.target.value.toLowerCase(); refresh(); } });
  form.append(element("label", {}, "search", search));
}

function makeHead() {
  const cells = COLUMNS.map((column) => {
    const content = column.show === null ? column.title
      : element("button", { type: "button", onclick: () => sortBy(column) }, column.title);
    return element("th", { scope: "col", "data-key": column.key, class: column.number ? "number" : "" }, content);
  });
  document.querySelector("#rows thead").replaceChildren(element("tr", {}, ...cells));
}

function sortBy(column) {
  state.down = state.sort === column.key ? !state.down : Boolean(column.number) && column.key !== "rank";
  state.sort = column.key;
  refresh();
}

function kept() {
  return ROWS.filter((row) => {
    for (const [key, wanted] of Object.entries(state.filters)) {
      if (!wanted) continue;
      if (row.reference && ["method", "family", "images"].includes(key)) continue;
      if (String(row[key]) !== wanted) return false;
    }
    const words = `${row.label} ${row.name}`.toLowerCase();
    return state.text.split(/\s+/).every((word) => words.includes(word));
  });
}

function ordered(rows) {
  const sign = state.down ? -1 : 1;
  return [...rows].sort((a, b) => {
    const [x, y] = [a[state.sort], b[state.sort]];
    if (x === null || y === null) return (x === null) - (y === null);
    const order = typeof x === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
    return sign * order || a.label.localeCompare(b.label, "en");
  });
}

function runButtons(row) {
  const [first, ...more] = row.runs;
  const open = (run) => element("button", { type: "button", onclick: () => showRecord(run) }, run.slice(0, 8));
  if (!more.length) return [open(first)];
  return [open(first), element("details", {}, element("summary", {}, `+${more.length}`), ...more.map(open))];
}

function tableRow(row) {
  const cells = COLUMNS.map((column) => {
    if (column.show === null) return element("td", {}, ...runButtons(row));
    return element(column.key === "label" ? "th" : "td", column.key === "label" ? { scope: "row" } : { class: column.number ? "number" : "" }, column.show(row));
  });
  return element("tr", {}, ...cells);
}

function refresh() {
  const rows = kept();
  for (const cell of document.querySelectorAll("#rows thead th")) {
    const own = cell.dataset.key === state.sort;
    if (own) cell.setAttribute("aria-sort", state.down ? "descending" : "ascending");
    else cell.removeAttribute("aria-sort");
  }
  document.querySelector("#rows tbody").replaceChildren(...ordered(rows).map(tableRow));
  document.getElementById("count").textContent = `${rows.length} of ${ROWS.length} rows`;
  draw(rows);
}

// A record as it is in its file, with what it shares with others put back.
function wholeRecord(run) {
  const record = DATA.records[run];
  const whole = { ...record, spec: { ...record.spec } };
  for (const key of DATA.folded.spec) whole.spec[key] = DATA.shared[record.spec[key]];
  for (const key of DATA.folded.record) whole[key] = DATA.shared[record[key]];
  return whole;
}

function showRecord(run) {
  const record = wholeRecord(run);
  const { spec, environment } = record;
  const row = ROWS.find((one) => one.runs.includes(run));
  const facts = [
    ["run id", run], ["method", `${row.label}, version ${spec.method.version} (${record.fidelity})`],
    ["model", `${spec.model.name} ${spec.model.weights ?? ""}`], ["bits", `${spec.bits}, protocol ${spec.protocol}`],
    ...(row.classes.length ? [["does not compare", row.classes.join(", ")]] : []),
    ["status", record.status], ["convention", row.convention],
    ["figure", figure(row)], ["seed", String(spec.seed)],
    ["commit", row.commit || "not recorded"], ["version", environment?.vit_ptq_bench ?? "not recorded"],
    ["processor", `${environment?.device_name ?? "?"}, ${environment?.threads ?? "?"} threads, torch ${environment?.torch ?? "?"}`],
  ];
  const list = element("dl", {}, ...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
  document.getElementById("record-title").textContent = `${row.label} on ${row.name}`;
  document.getElementById("record-body").replaceChildren(
    list, ...published(row), element("p", {}, "Run it again, with this folder as FOLDER:"),
    element("pre", {}, `bench repeat ${run} --results FOLDER`),
    element("details", {}, element("summary", {}, "the whole record"), element("pre", {}, JSON.stringify(record, null, 2))));
  document.getElementById("record").showModal();
}

function published(row) {
  if (!row.published.length) return [];
  const items = row.published.map((one) => element("li", {},
    `${one.value.toFixed(2)} as ${one.written}${one.classes.length ? ` (does not compare: ${one.classes.join(", ")})` : ""}, ${one.source}`));
  return [element("p", {}, "Published on the same model, data and bits:"), element("ul", {}, ...items)];
}

const views = {};
const shown = { model: null, cell: null, method: null, factorial: null };

// Methods that stand in one cell under several labels.
const FAMILIES = distinct(ROWS.filter((row) => row.value !== null && !row.reference).map(variantsName)
  .filter((name, index, all) => all.indexOf(name) !== index));
const FACTORIALS = distinct(DATA.effects.map((one) => one.name));

function variantsName(row) {
  return `${row.method} on ${row.name}`;
}

function makeAblations() {
  const form = document.getElementById("ablation-choice");
  form.addEventListener("submit", (event) => event.preventDefault());
  const kinds = [["variants", "forms of", "method", FAMILIES], ["effects", "parts of", "factorial", FACTORIALS]];
  for (const [chart, title, key, values] of kinds) {
    if (!values.length) continue;
    shown[key] = values[0];
    form.append(select(title, key, values, false, (value) => { shown[key] = value; refresh(); }));
    for (const id of ["ablations", "to-ablations", `figure-${chart}`]) document.getElementById(id).hidden = false;
  }
}

function makeChartChoice() {
  const form = document.getElementById("chart-choice");
  form.addEventListener("submit", (event) => event.preventDefault());
  const groups = distinct(ROWS.map(group));
  const cells = DATA.cells.map((cell) => cell.name);
  shown.model = groups[0];
  shown.cell = cells[Math.max(0, DATA.cells.findIndex((cell) => cell.bits === "W4A4"))];
  form.append(select("over bits", "group", groups, false, (value) => { shown.model = value; refresh(); }));
  const choice = select("over cost", "cell", cells, false, (value) => { shown.cell = value; refresh(); });
  choice.querySelector("select").value = shown.cell;
  form.append(choice);
}

function group(row) {
  return `${row.model}, ${row.task}, ${row.protocol}${row.scope === "whole model" ? "" : `, ${row.scope}`}`;
}

function theme() {
  const style = getComputedStyle(document.documentElement);
  const [text, line] = ["--text", "--line"].map((name) => style.getPropertyValue(name).trim());
  return { background: "transparent", view: { stroke: line },
    axis: { labelColor: text, titleColor: text, gridColor: line, domainColor: line, tickColor: line, labelFontSize: 12, titleFontSize: 12 } };
}

async function makeCharts() {
  const rows = chartRows(kept());
  for (const [name, specification] of Object.entries(CHARTS)) {
    if (document.getElementById(`figure-${name}`)?.hidden) continue;
    // With rows from the start: axes of nothing would have no room for their labels.
    const whole = { ...specification, datasets: { rows: rows[name] }, config: theme() };
    const made = await vegaEmbed(`#chart-${name}`, whole, { actions: false, renderer: "svg" });
    views[name] = made.view;
  }
}

function chartRows(rows) {
  const measured = rows.filter((row) => row.value !== null && !row.reference);
  const of = { bits: measured.filter((row) => group(row) === shown.model),
    seconds: measured.filter((row) => row.name === shown.cell && row.seconds !== null),
    size: measured.filter((row) => row.name === shown.cell && row.size !== null),
    variants: ROWS.filter((row) => row.value !== null && variantsName(row) === shown.method),
    effects: DATA.effects.filter((one) => one.name === shown.factorial) };
  return structuredClone(of);
}

function draw(rows) {
  const own = chartRows(rows);
  for (const [name, view] of Object.entries(views)) view.data("rows", own[name]).resize().run();
}

document.getElementById("close").addEventListener("click", () => document.getElementById("record").close());

if (ROWS.length) {
  makeFilters();
  makeHead();
  makeChartChoice();
  makeAblations();
  refresh();
  makeCharts();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", makeCharts);
}
