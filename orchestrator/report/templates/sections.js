// The page's sections: controls, which rows they choose, and the charts that draw them.

const sections = [];
const shownPoints = () => DATA.points.filter((p) => !hiddenPoints.has(p.label));
const hiddenPoints = new Set();

function saveFile(name, type, text) {
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// A chart as a file of its own: what style sheet and variables say is written into its elements.
function standalone(chart) {
  const copy = chart.cloneNode(true);
  const from = [chart, ...chart.querySelectorAll("*")], to = [copy, ...copy.querySelectorAll("*")];
  const kept = ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-size", "font-family", "font-weight", "visibility"];
  from.forEach((node, i) => { const look = getComputedStyle(node); for (const name of kept) to[i].style.setProperty(name, look.getPropertyValue(name)); });
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  copy.style.background = getComputedStyle(document.documentElement).getPropertyValue("--panel");
  return new XMLSerializer().serializeToString(copy);
}

// A section of the page that is drawn again whenever one of its controls, the points or the theme change.
class Section {
  constructor(id, needs) {
    this.host = document.getElementById(id);
    this.id = id;
    this.needs = needs;
    this.values = {};
    this.controls = make("div", { class: "controls" });
    this.legend = make("div", { class: "legend" });
    this.state = make("p", { class: "state" });
    this.panels = make("div", { class: "panels" });
    this.extra = make("div", { class: "extra" });
    this.table = make("details", { class: "numbers" }, make("summary", {}, "Numbers of these charts"), make("div"));
    this.table.addEventListener("toggle", () => this.fillTable());
    this.save = make("div", { class: "save" },
      make("button", { type: "button", onclick: () => this.saveData() }, "Download data (CSV)"),
      make("button", { type: "button", onclick: () => this.saveFigures() }, "Download figures (SVG)"));
    this.host.querySelector(".body").append(this.controls, this.legend, this.panels, this.state, this.extra, this.save, this.table);
    sections.push(this);
  }

  select(key, label, options, start) {
    const id = `${this.id}-${key}`;
    const entries = options.map((o) => (Array.isArray(o) ? o : [o, nameOf(o)]));
    this.values[key] = start ?? entries[0]?.[0];
    const option = ([value, text]) => make("option", { value, selected: value === this.values[key] }, text);
    const groups = unique(entries.map((e) => e[2] || ""));
    const field = make("select", { id, onchange: (event) => { this.values[key] = event.target.value; this.draw(); } },
      ...(groups.length < 2 ? entries.map(option) : groups.flatMap((g) => {
        const mine = entries.filter((e) => (e[2] || "") === g).map(option);
        return g ? [make("optgroup", { label: g }, ...mine)] : mine;
      })));
    this.controls.append(make("div", { class: "control", hidden: entries.length < 2 }, make("label", { for: id }, label), field));
    return this;
  }

  range(key, label, max, start) {
    const id = `${this.id}-${key}`;
    this.values[key] = start;
    const out = make("output", { for: id }, String(start));
    const field = make("input", { id, type: "range", min: 0, max, step: 1, value: start, oninput: (event) => {
      this.values[key] = +event.target.value; out.textContent = event.target.value; this.draw(); } });
    this.controls.append(make("div", { class: "control" }, make("label", { for: id }, label), field, out));
    return this;
  }

  set(key, value) {
    this.values[key] = value;
    const field = document.getElementById(`${this.id}-${key}`);
    if (field) field.value = value;
    this.draw();
  }

  points() { return shownPoints().filter((p) => p[this.needs]); }

  legendOf(items) {
    this.legend.replaceChildren(...items.map(({ name, colour, dash, hollow }) => {
      const line = svg("svg", { width: 26, height: 10, "aria-hidden": "true" },
        svg("line", { x1: 0, x2: 26, y1: 5, y2: 5, stroke: colour, "stroke-width": 2.2, "stroke-dasharray": dash || "" }),
        svg("circle", { cx: 13, cy: 5, r: 3, stroke: colour, "stroke-width": 1.4, fill: hollow ? "var(--panel)" : colour }));
      return make("span", { class: "key" }, line, name);
    }));
  }

  // `rows`: charts, or lists of charts that belong side by side.
  show(rows, words) {
    const charts = rows.flat();
    this.charts = charts;
    const nested = rows.some(Array.isArray);
    this.panels.classList.toggle("stack", nested);
    this.panels.replaceChildren(...(nested ? rows.map((r) => make("div", { class: "panels" }, ...r)) : charts));
    this.state.textContent = words;
    if (!charts.length) this.panels.append(make("p", { class: "empty" }, "No values for this choice."));
    this.fillTable();
  }

  fillTable() {
    if (!this.table.open || !this.charts) return;
    this.table.lastChild.replaceChildren(...this.charts.filter((c) => c.numbers).map((c) =>
      numbersTable(...c.numbers(), c.querySelector(".panel-title")?.textContent || "values")));
  }

  saveData() {
    const quote = (v) => (/[",\n]/.test(v) ? `"${v.replaceAll('"', '""')}"` : v);
    const parts = this.charts.filter((c) => c.numbers).map((c) => {
      const [head, rows] = c.numbers();
      return [[c.getAttribute("aria-label")?.split(":")[0] || ""], head, ...rows].map((row) => row.map((v) => quote(String(v).replaceAll("−", "-"))).join(",")).join("\n");
    });
    saveFile(`${slug(document.title.split(" ·")[0])}-${this.id}.csv`, "text/csv", parts.join("\n\n"));
  }

  saveFigures() {
    this.charts.filter((c) => c.tagName === "svg").forEach((chart, i) => saveFile(`${slug(document.title.split(" ·")[0])}-${this.id}-${i + 1}.svg`, "image/svg+xml", standalone(chart)));
  }

  draw() {
    hideTip();
    this.extra.replaceChildren();
    this.render();
  }
}

const rhoScale = (statistic) => statistic === "epsilon_squared"
  ? { label: "ε²", low: 0, high: 1, colour: (v) => mix(STYLE.viridis, v) }
  : { label: "ρ", low: -1, high: 1, colour: (v) => mix(divergingStops(), (v + 1) / 2) };
const STATISTICS = [["spearman", "Spearman ρ"], ["conditional_spearman", "conditional ρ, covariates held fixed"], ["epsilon_squared", "ε², categories"]];
const METRIC_FAMILIES = unique(Object.values(STYLE.metrics).map((m) => m.family));
const metricOptions = (there) => Object.keys(STYLE.metrics).filter((m) => there.has(m)).map((m) => [m, STYLE.metrics[m].title, STYLE.metrics[m].family])
  .sort((a, b) => METRIC_FAMILIES.indexOf(a[2]) - METRIC_FAMILIES.indexOf(b[2]));
const isFlipped = (metric) => STYLE.metrics[metric]?.direction < 0;
const upward = (direction) => ({ 1: "up = more compressed", "-1": "up = more compressed (axis turned)" }[direction] || "");
const arrowOf = (metric) => ({ 1: "↑ more compressed", "-1": "↓ more compressed" }[STYLE.metrics[metric]?.direction] || "");
const layerName = (tap) => (tap === "decoder" ? "decoder layer (0 = input)" : tap === "encoder" ? "vision encoder layer" : "layer");
const namesIn = (needs, column) => new Set(DATA.points.filter((p) => p[needs]).flatMap((p) => p[needs].columns[column].words));
const tapOptions = (needs) => Object.entries(STYLE.taps).filter(([t]) => namesIn(needs, "tap").has(t));
const firstOf = (set, ...wanted) => wanted.find((w) => set.has(w)) ?? [...set][0];

function aboutMetric(name) {
  const m = STYLE.metrics[name];
  if (!m || !m.formula) return null;
  const row = (term, text) => [make("dt", {}, term), make("dd", {}, text)];
  return make("details", { class: "about" }, make("summary", {}, `What ${m.title.toLowerCase()} measures`),
    make("dl", {}, ...row("Formula", m.formula), ...row("Range", m.range), ...row("High", m.high), ...row("Low", m.low),
      ...row("Direction", m.direction > 0 ? "larger = more compressed" : "larger = less compressed"), ...row("Misleads", m.misleads)));
}

// The tap of a point that stands for a group: the chosen one where it has rows, else decoder, else the one with most layers.
function tapFor(rows, chosen, group) {
  const mine = rows.filter((r) => r.group === group);
  const taps = unique(mine.map((r) => r.tap));
  if (chosen !== "main") return chosen;
  if (taps.includes("decoder")) return "decoder";
  const layers = (tap) => unique(mine.filter((r) => r.tap === tap).map((r) => r.layer)).length;
  return taps.sort((a, b) => layers(b) - layers(a))[0];
}

// Curves of one metric of one point: a series a token group.
function groupCurves(p, metric, tap, share) {
  const rows = tableOf(p, "curves").filter((r) => r.metric === metric);
  return ["vision", "text"].map((group) => {
    const at = tapFor(rows, tap, group);
    const mine = rows.filter((r) => r.group === group && r.tap === at);
    const last = Math.max(1, ...mine.map((r) => r.layer));
    return { group, name: `${group} tokens${at && at !== "decoder" ? ` (${STYLE.taps[at] || at})` : ""}`, colour: colourOf(group),
      points: mine.map((r) => ({ x: share ? r.layer / last : r.layer, y: r.mean, low: r.ci_low, high: r.ci_high })) };
  }).filter((x) => x.points.length);
}

function compressionSection() {
  const s = new Section("compression", "curves");
  const metrics = namesIn("curves", "metric");
  s.select("metric", "Metric", [["overview", "overview of the main metrics"], ...metricOptions(metrics)], "overview");
  s.select("tap", "Read at", [["main", "main tap of each group"], ...tapOptions("curves")]);
  const several = DATA.points.filter((p) => p.curves).length > 1;
  s.select("depth", "Depth", [["layer", "layer"], ["share", "share of depth"]], several ? "share" : "layer");
  s.select("lay", "Points", several ? [["over", "overlaid"], ["beside", "side by side"]] : [["beside", "side by side"]]);
  s.select("group", "Tokens overlaid", several ? [["vision", "vision"], ["text", "text"]] : [["vision", "vision"]]);
  s.render = () => {
    const { metric, tap } = s.values;
    const share = s.values.depth === "share", overview = metric === "overview", over = s.values.lay === "over";
    const field = document.getElementById("compression-group");
    if (field) field.disabled = !over;
    const chosen = overview ? STYLE.headline.filter((m) => metrics.has(m)) : [metric];
    const drawn = (m) => {
      const found = s.points().map((p) => [p, groupCurves(p, m, tap, share)]).filter(([, series]) => series.length);
      const domain = extent(found.flatMap(([, series]) => series.flatMap((x) => x.points.flatMap((q) => [q.low, q.high, q.y]))));
      const { short, unit } = STYLE.metrics[m];
      if (over) {
        const series = found.flatMap(([p, all]) => all.filter((x) => x.group === s.values.group).map((x) => ({ ...x, name: p.label, colour: colourOf("", DATA.points.indexOf(p)) })));
        return series.length ? [lineChart({ title: short, hint: upward(STYLE.metrics[m].direction), series, x: share ? { label: "share of depth (0 = input, 1 = last)", name: "depth", format: (v) => formatNumber(v, 3) } : { label: layerName(tap === "main" ? "decoder" : tap), name: "layer", whole: true },
          y: { label: unit, domain, flip: isFlipped(m) }, size: overview ? { width: 330, height: 240 } : { width: 560, height: 340 } })] : [];
      }
      return found.map(([p, series]) => lineChart({ title: overview ? short : p.label, hint: overview && s.points().length > 1 ? p.label : upward(STYLE.metrics[m].direction), series,
        x: share ? { label: "share of depth (0 = input, 1 = last)", name: "depth" } : { label: layerName(tap === "main" ? "decoder" : tap), name: "layer", whole: true },
        y: { label: overview ? unit : `${short}${unit ? `, ${unit}` : ""}`, domain, flip: isFlipped(m) }, size: overview ? { width: 330, height: 240 } : undefined }));
    };
    s.legendOf(over ? s.points().map((p) => ({ name: p.label, colour: colourOf("", DATA.points.indexOf(p)) })) : [{ name: "vision tokens", colour: colourOf("vision") }, { name: "text tokens", colour: colourOf("text") }]);
    s.panels.classList.toggle("small", overview);
    s.show(chosen.flatMap(drawn), `${overview ? "Main metrics" : STYLE.metrics[metric].title}: mean over images, band = 95 % bootstrap interval of the mean. `
      + `${s.points().map((p) => `${p.label}: n = ${p.nImages}`).join("; ")}. Up is always more compressed: axes of metrics whose small values mean that are turned.`);
    const card = aboutMetric(metric);
    if (card) s.extra.append(card);
  };
  return s;
}

// Attributes of some rows in the order of their source, others last.
function inOrder(p, rows) {
  const there = unique(rows.map((r) => r.attribute)), order = Object.keys(p.kinds);
  return [...order.filter((a) => there.includes(a)), ...there.filter((a) => !order.includes(a))];
}

function correlationSection() {
  const s = new Section("correlation", "rho");
  const metrics = namesIn("rho", "metric"), statistics = namesIn("rho", "statistic");
  s.select("metric", "Metric", metricOptions(metrics), firstOf(metrics, "stable_rank_centred", "gini"));
  s.select("group", "Tokens", [["vision", "vision"], ["text", "text"]].filter(([g]) => namesIn("rho", "group").has(g)));
  s.select("statistic", "Statistic", STATISTICS.filter(([k]) => statistics.has(k)));
  s.select("tap", "Read at", [["main", "main tap"], ...tapOptions("rho")]);
  s.values.attribute = "n_objects";
  s.render = () => {
    const { metric, group, statistic, tap } = s.values;
    const maps = [], lines = [];
    for (const p of s.points()) {
      const mine = tableOf(p, "rho").filter((r) => r.metric === metric && r.group === group && r.statistic === statistic);
      const at = tapFor(mine, tap, group);
      const rows = mine.filter((r) => r.tap === at);
      if (!rows.length) continue;
      const columns = inOrder(p, rows);
      const cells = new Map(rows.map((r) => [`${r.layer}|${r.attribute}`, r]));
      const chosen = columns.includes(s.values.attribute) ? s.values.attribute : columns[0];
      maps.push(heatMap({ title: p.label, hint: statistic === "epsilon_squared" ? "" : arrowOf(metric), rows: ascending(rows.map((r) => r.layer)), columns,
        rowLabel: at === "decoder" ? "decoder layer" : STYLE.taps[at] || "layer", scale: rhoScale(statistic), selected: chosen,
        onSelect: (attribute) => s.set("attribute", attribute),
        cell: (layer, attribute) => {
          const r = cells.get(`${layer}|${attribute}`);
          return r && { value: r.rho, marked: !(r.q < 0.05), lines: [`${rhoScale(statistic).label} = ${formatNumber(r.rho)}${formatInterval(r.ci_low, r.ci_high)}`, `q = ${formatQ(r.q)}, n = ${r.n}`] };
        } }));
      const curve = rows.filter((r) => r.attribute === chosen);
      lines.push(lineChart({ title: nameOf(chosen), of: p.label, x: { label: layerName(at), name: "layer", whole: true },
        y: { label: rhoScale(statistic).label, domain: statistic === "epsilon_squared" ? [0, 1] : [-1, 1] }, hint: statistic === "epsilon_squared" ? "" : arrowOf(metric),
        rules: [{ name: "none", y: 0, colour: "var(--control)" }],
        series: [{ name: `${group} tokens`, colour: colourOf(group), points: curve.map((r) => ({ x: r.layer, y: r.rho, low: r.ci_low, high: r.ci_high })) }] }));
    }
    s.legendOf([]);
    s.show(maps.map((map, i) => [map, lines[i]]), `${STYLE.metrics[metric].title} of ${group} tokens. × marks cells with Benjamini-Hochberg q ≥ 0.05. `
      + "Choose a column (click, or arrow keys and Enter) to see its curve with 95 % bootstrap intervals.");
  };
  return s;
}

const POSITIONS = ["vision_mean", "vision_single", "vision_object", "vision_background", "text_mean", "text_single", "last", "before"];
const ENCODER = "vision encoder (mean, last block)";
const POSITION_LOOK = { vision_mean: ["vision", "", false], vision_single: ["vision", "5 3", true], vision_object: ["vision", "2 2", false],
  vision_background: ["vision", "8 3 2 3", true], text_mean: ["text", "", false],
  text_single: ["text", "5 3", true], last: ["text", "2 3", true], before: ["text", "1 4", true] };

function probeRows(p, solver) {
  const rows = tableOf(p, "probes");
  return rows.filter((r) => (solver === "mlp") === (r.solver === "mlp"));
}

function averaged(rows, key) {
  const groups = new Map();
  for (const r of rows) groups.set(key(r), [...(groups.get(key(r)) || []), r]);
  const mean = (list, field) => list.reduce((sum, r) => sum + r[field], 0) / list.length;
  return [...groups.values()].map((list) => {
    const out = { ...list[0], places: list.length };
    for (const f of ["score", "ci_low", "ci_high", "skill", "skill_low", "skill_control", "control", "baseline"]) out[f] = mean(list, f);
    return out;
  });
}

function probeSection() {
  const s = new Section("probes", "probes");
  const kinds = namesIn("probes", "position_kind");
  const solvers = namesIn("probes", "solver");
  const linear = solvers.has("ridge") || solvers.has("logistic");
  s.select("kind", "Tokens", POSITIONS.filter((k) => kinds.has(k)));
  s.select("solver", "Probe", [["linear", "linear"], ["mlp", "MLP, two hidden layers"]].filter(([k]) => (k === "linear" ? linear : solvers.has("mlp"))));
  const attributes = namesIn("probes", "attribute");
  s.select("attribute", "Attribute of the curves", [...attributes], firstOf(attributes, "n_objects"));
  const deepest = Math.max(...DATA.points.map((p) => p.nLayers));
  const placed = (p) => p.grid && p.probes && p.probes.columns.position.words.some((w) => p.places[w]);
  if (DATA.points.some(placed)) s.range("layer", "Layer of the place map", deepest, deepest);
  s.render = () => {
    const { kind, solver, attribute, layer } = s.values;
    const all = [], used = new Set();
    for (const p of s.points()) {
      const charts = [];
      all.push(charts);
      const rows = probeRows(p, solver);
      const mean = averaged(rows, (r) => `${r.tap}|${r.layer}|${r.position_kind}|${r.attribute}`);
      const tap = probeTap(mean, kind);
      const deep = mean.filter((r) => r.position_kind === kind && r.tap === tap);
      const columns = inOrder(p, deep);
      if (columns.length) charts.push(heatMap({ title: p.label, hint: tap === "decoder" ? nameOf(kind) : `${nameOf(kind)}, ${STYLE.taps[tap]}`, rows: ascending(deep.map((r) => r.layer)), columns, rowLabel: "layer", selected: attribute,
        onSelect: (a) => s.set("attribute", a), scale: { label: "skill", low: 0, high: 1, colour: (v) => mix(STYLE.viridis, v) },
        cell: (at, a) => {
          const r = deep.find((q) => q.layer === at && q.attribute === a);
          return r && { value: Math.max(0, r.skill), marked: !(r.skill_low > Math.max(0, r.skill_control || 0)), lines: [
            `${r.kind === "classification" ? "accuracy" : "R²"} ${formatNumber(r.score)}${formatInterval(r.ci_low, r.ci_high)}`,
            `baseline ${formatNumber(r.baseline)}, shuffled labels ${formatNumber(r.control)}`, `${r.n_test} held-out images, ${r.places} place(s)`] };
        } }));
      const mine = mean.filter((r) => r.attribute === attribute);
      const curves = POSITIONS.map((k) => {
        const [group, dash, hollow] = POSITION_LOOK[k];
        const at = probeTap(mine, k);
        const points = mine.filter((r) => r.position_kind === k && r.tap === at).sort((a, b) => a.layer - b.layer);
        if (points.length) used.add(k);
        return { name: nameOf(k), colour: colourOf(group), dash, hollow, points: points.map((r) => ({ x: r.layer, y: r.score, low: r.ci_low, high: r.ci_high })) };
      }).filter((c) => c.points.length);
      if (!curves.length) continue;
      const controls = mine.filter((r) => r.position_kind === "text_mean" || r.position_kind === kind);
      const average = (f) => controls.reduce((sum, r) => sum + r[f], 0) / (controls.length || 1);
      const pixels = mine.find((r) => r.position_kind === "pixels");
      const encoder = mine.filter((r) => r.tap === "encoder" && r.position_kind === "vision_mean").sort((a, b) => b.layer - a.layer)[0];
      charts.push(lineChart({ title: nameOf(attribute), hint: p.label, series: curves, x: { label: "layer", whole: true },
        y: { label: mine[0].kind === "classification" ? "accuracy" : "R²", domain: [Math.min(0, ...curves.flatMap((c) => c.points.map((q) => Math.max(-0.3, q.y)))) - 0.03, 1.03] },
        rules: [{ name: "majority or mean", y: average("baseline"), colour: "var(--control)" }, { name: "shuffled labels", y: average("control"), colour: "var(--control)", dash: "2 3" },
          { name: "pixels", y: pixels?.score, colour: "var(--ink)", dash: "7 3 2 3" }, { name: ENCODER, y: encoder?.score, colour: "var(--ink)", dash: "1 3" }] }));
      const places = placeMap(p, rows, attribute, layer);
      if (places) charts.push(places);
    }
    s.legendOf([...POSITIONS.filter((k) => used.has(k)).map((k) => ({ name: nameOf(k), colour: colourOf(POSITION_LOOK[k][0]), dash: POSITION_LOOK[k][1], hollow: POSITION_LOOK[k][2] })),
      { name: "majority or mean", colour: "var(--control)" }, { name: "shuffled labels", colour: "var(--control)", dash: "2 3" }, { name: "pixels", colour: "var(--ink)", dash: "7 3 2 3" },
      ...(namesIn("probes", "tap").has("encoder") ? [{ name: ENCODER, colour: "var(--ink)", dash: "1 3" }] : [])]);
    s.show(all.filter((c) => c.length), "Skill is (score − baseline) / (1 − baseline): 0 is the majority class or the mean, 1 is perfect. × marks cells whose 95 % interval reaches "
      + "the baseline or the shuffled-label control. Single tokens: mean over places. Choose a column to see its curves.");
  };
  return s;
}

// The tap that stands for a kind of position over the decoder's depth; vision tokens of `cross_kv` models are in the values.
function probeTap(rows, kind) {
  const mine = rows.filter((r) => r.position_kind === kind);
  const taps = unique(mine.map((r) => r.tap));
  return ["decoder", "cross_v", "cross_k"].find((tap) => taps.includes(tap)) || taps[0];
}

function placeMap(p, rows, attribute, wanted) {
  if (!p.grid || !Object.keys(p.places).length) return null;
  const tap = probeTap(rows, "vision_single");
  const placed = rows.filter((r) => r.attribute === attribute && r.tap === tap && p.places[r.position]);
  if (!placed.length) return null;
  const layers = ascending(placed.map((r) => r.layer));  // not every layer holds cross-attention
  const layer = layers.filter((l) => l <= (wanted ?? p.nLayers)).pop() ?? layers[0];
  const mine = placed.filter((r) => r.layer === layer);
  const at = new Map(mine.map((r) => [p.places[r.position].join("|"), r]));
  const [n, m] = p.grid;
  return heatMap({ title: `${nameOf(attribute)} by place, layer ${layer}`, hint: p.label, rows: [...Array(n).keys()].reverse(), columns: [...Array(m).keys()], rowLabel: "row of the image grid", rowName: "row",
    scale: { label: "skill", low: 0, high: 1, colour: (v) => mix(STYLE.viridis, v) },
    cell: (row, column) => {
      const r = at.get(`${row}|${column}`);
      return r && { value: Math.max(0, r.skill), marked: false, lines: [`${r.position}: score ${formatNumber(r.score)}${formatInterval(r.ci_low, r.ci_high)}`] };
    } });
}
