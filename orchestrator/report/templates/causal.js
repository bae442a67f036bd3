// Token maps, causal checks, trials.

function tokenSection() {
  const s = new Section("tokens", "maps");
  const ids = unique(DATA.points.flatMap((p) => p.maps.map((m) => m.id)));
  s.select("image", "Image", ids.map((id) => [id, id]));
  s.select("what", "Show", [["energy", "share of energy (1 = equal share)"], ["norm", "norm over the mean norm"]]);
  s.select("scale", "Colours", [["sheet", "same scale on all layers"], ["layer", "each layer its own"]]);
  s.select("over", "Image under the map", [["1", "hidden"], ["0.6", "shown"]]);
  s.points = () => shownPoints().filter((p) => p.maps.length);
  s.render = () => {
    const { image, what, scale, over } = s.values;
    const sheets = s.points().flatMap((p) => p.maps.filter((m) => m.id === image || !p.maps.some((q) => q.id === image) && m === p.maps[0])
      .map((m) => tokenSheet(p, m, what, scale, +over)));
    s.legendOf([]);
    s.show(sheets, `Per-token ${what === "energy" ? "share of the layer's energy, times the number of tokens" : "norm over the layer's mean norm"}; viridis, dark = low.`);
  };
  return s;
}

function tokenSheet(p, m, what, scale, opacity) {
  const view = m.views[what];
  const values = decodeSteps(view.data, 0, view.high);
  const [rows, columns] = m.shape;
  const size = rows * columns;
  const highest = (list) => Math.max(1e-9, ...list.filter(known));
  const slices = m.layers.map((_, i) => Array.from(values.slice(i * size, (i + 1) * size)));
  const sheetHigh = highest(slices.flat());
  const figures = m.layers.map((layer, i) => {
    const high = scale === "sheet" ? sheetHigh : highest(slices[i]);
    const top = slices[i].reduce((best, v, k) => (v > (slices[i][best] ?? -1) ? k : best), 0);
    const words = `Layer ${layer}: highest ${formatNumber(slices[i][top])} at row ${Math.floor(top / columns)}, column ${top % columns}`;
    const root = svg("svg", { viewBox: `0 0 ${columns} ${rows}`, class: "map", preserveAspectRatio: "none", role: "img", "aria-label": words });
    root.style.aspectRatio = `${m.width} / ${m.height}`;
    if (opacity < 1) root.append(svg("image", { href: m.image, width: columns, height: rows, preserveAspectRatio: "none" }));
    slices[i].forEach((v, k) => {
      if (known(v)) root.append(svg("rect", { x: k % columns, y: Math.floor(k / columns), width: 1, height: 1, "shape-rendering": "crispEdges", fill: toCss(mix(STYLE.viridis, v / high)), opacity }));
    });
    root.addEventListener("pointermove", (event) => {
      const [x, y] = inSvg(root, event).map(Math.floor);
      const v = slices[i][y * columns + x];
      if (known(v)) showTip([{ text: `Layer ${layer}, row ${y}, column ${x}` }, { text: formatNumber(v) }], event.clientX, event.clientY);
    });
    root.addEventListener("pointerleave", hideTip);
    return make("figure", {}, root, make("figcaption", {}, `layer ${layer}`));
  });
  const picture = make("img", { src: m.image, alt: `image ${m.id}`, class: "map" });
  const scaleWords = scale === "sheet" ? ramp("", "0", formatNumber(sheetHigh)) : ramp("", "0", "the layer's highest");
  const host = make("div", { class: "sheet" }, make("div", { class: "panel-title" }, `${p.label}: ${m.id} `, scaleWords),
    make("div", { class: "tiles" }, make("figure", {}, picture, make("figcaption", {}, m.view)), ...figures));
  host.numbers = () => [["Layer", "highest", "at row", "at column", "tokens"], m.layers.map((layer, i) => {
    const top = slices[i].reduce((best, v, k) => (v > (slices[i][best] ?? -1) ? k : best), 0);
    return [layer, formatNumber(slices[i][top]), Math.floor(top / columns), top % columns, slices[i].filter(known).length];
  })];
  return host;
}

const TIER_LOOK = { low: ["", false], high: ["6 3", true] };
const questionName = (family, tier) => `${nameOf(family)}, ${tier} tier`;

function questionSeries(rows, x, y = "accuracy") {
  const keys = unique(rows.map((r) => `${r.family}|${r.tier}`)).sort((a, b) => a.split("|")[1] < b.split("|")[1] ? 1 : -1);
  return keys.map((key) => {
    const [family, tier] = key.split("|");
    const [dash, hollow] = TIER_LOOK[tier] || ["", false];
    return { name: questionName(family, tier), colour: colourOf(family), dash, hollow,
      points: rows.filter((r) => r.family === family && r.tier === tier).map((r) => ({ x: r[x], y: r[y], low: r.ci_low, high: r.ci_high })).sort((a, b) => a.x - b.x) };
  });
}

function legendOfSeries(section, series) {
  const seen = new Map(series.map((one) => [one.name, one]));
  section.legendOf([...seen.values()]);
}

const tierOptions = (needs) => [["", "both tiers"], ...[...namesIn(needs, "tier")].map((t) => [t, `${t} tier`])];
const checkpointOptions = (needs) => [...namesIn(needs, "checkpoint")].map((c) => [c, c === "base" ? "base model" : `trial ${c.slice(0, 8)}`]);

function deletionSection() {
  const s = new Section("deletion", "deletion");
  s.select("view", "Show", [["families", "question families"], ["methods", "methods of one family"]]);
  s.select("method", "Tokens deleted", [...namesIn("deletion", "method")], firstOf(namesIn("deletion", "method"), "random"));
  s.select("family", "Family", [...namesIn("deletion", "family")], firstOf(namesIn("deletion", "family"), "count"));
  s.select("tier", "Tier", tierOptions("deletion"));
  const layers = ascending(DATA.points.filter((p) => p.deletion).flatMap((p) => tableOf(p, "deletion").map((r) => r.layer)));
  s.select("layer", "Deleted after", layers.map((k) => [String(k), k ? `decoder layer ${k}` : "the projector"]), "0");
  s.select("checkpoint", "Model", checkpointOptions("deletion"), "base");
  s.render = () => {
    const { view, method, family, tier, layer, checkpoint } = s.values;
    for (const [key, wanted] of [["method", "families"], ["family", "methods"]]) document.getElementById(`deletion-${key}`).disabled = view !== wanted;
    const all = [];
    const charts = s.points().map((p) => {
      const rows = tableOf(p, "deletion").filter((r) => r.layer === +layer && r.checkpoint === checkpoint && (!tier || r.tier === tier));
      let series;
      if (view === "families") series = questionSeries(rows.filter((r) => r.method === method), "deleted_share");
      else {
        const mine = rows.filter((r) => r.family === family);
        series = unique(mine.map((r) => `${r.method}|${r.tier}`)).map((key) => {
          const [how, level] = key.split("|");
          return { name: `${nameOf(how)}, ${level} tier`, colour: colourOf(how, [...namesIn("deletion", "method")].indexOf(how)), dash: TIER_LOOK[level]?.[0], hollow: TIER_LOOK[level]?.[1],
            points: mine.filter((r) => r.method === how && r.tier === level).map((r) => ({ x: r.deleted_share, y: r.accuracy, low: r.ci_low, high: r.ci_high })).sort((a, b) => a.x - b.x) };
        });
      }
      all.push(...series);
      return series.length ? lineChart({ title: p.label, series, x: { label: "share of visual tokens deleted", name: "deleted", format: formatPercent, domain: [-0.02, 1.02] },
        y: { label: "accuracy", format: formatPercent, domain: [0, 1.02] }, size: { width: 560, height: 340 } }) : null;
    }).filter(Boolean);
    legendOfSeries(s, all);
    s.show(charts, `Accuracy by share of visual tokens deleted, ${view === "families" ? nameOf(method) : nameOf(family)}; band = 95 % interval (hull over seeds of random deletion).`);
  };
  return s;
}

function knockoutSection() {
  const s = new Section("knockout", "knockout");
  s.select("tier", "Tier", tierOptions("knockout"));
  s.select("checkpoint", "Model", checkpointOptions("knockout"), "base");
  s.render = () => {
    const { tier, checkpoint } = s.values;
    const all = [];
    const charts = s.points().map((p) => {
      const mine = (name) => (tableOf(p, name) || []).filter((r) => r.checkpoint === checkpoint && (!tier || r.tier === tier));
      const series = questionSeries(mine("knockout"), "centre");
      all.push(...series);
      const rules = mine("plain").map((r) => ({ name: `${questionName(r.family, r.tier)}, nothing blocked`, y: r.accuracy, colour: colourOf(r.family), dash: "2 3" }));
      return series.length ? lineChart({ title: p.label, series, rules, x: { label: "centre of the blocked window, decoder layer", name: "window around layer", format: (v) => formatNumber(v, 2) },
        y: { label: "accuracy", format: formatPercent, domain: [0, 1.02] }, size: { width: 560, height: 340 } }) : null;
    }).filter(Boolean);
    legendOfSeries(s, all);
    s.show(charts, "Accuracy when text cannot attend to vision within a window of layers; dotted: nothing blocked; band = 95 % interval.");
  };
  return s;
}

function patchingSection() {
  const s = new Section("patching", "patching");
  s.select("checkpoint", "Model", checkpointOptions("patching"), "base");
  s.render = () => {
    const all = [];
    const charts = s.points().map((p) => {
      const rows = tableOf(p, "patching").filter((r) => r.checkpoint === s.values.checkpoint);
      const series = unique(rows.map((r) => r.attribute)).map((a, i) => ({ name: nameOf(a), colour: colourOf(a, i),
        points: rows.filter((r) => r.attribute === a).map((r) => ({ x: r.layer, y: r.flip_share, low: r.ci_low, high: r.ci_high })) }));
      all.push(...series);
      return lineChart({ title: p.label, series, x: { label: "decoder layer whose vision states are replaced", name: "layer", whole: true },
        y: { label: "answers that flip", format: formatPercent, domain: [0, 1.02] }, size: { width: 520, height: 300 } });
    });
    legendOfSeries(s, all);
    s.show(charts, "Share of answers that become the donor's when vision-token states are replaced at a layer; band = 95 % interval.");
  };
  return s;
}

function paretoFront(points, sign) {
  const order = points.slice().sort((a, b) => sign * (b.x - a.x) || b.y - a.y);
  const front = [];
  let best = -Infinity;
  for (const p of order) if (p.y > best) { front.push(p); best = p.y; }
  return front;
}

// What is not known (a failed trial) comes last, whichever way is sorted.
function inOrderOf(a, b, sign) {
  const missing = (v) => (typeof v !== "string" && !known(v) ? 1 : 0);
  return missing(a) - missing(b) || (missing(a) ? 0 : sign * (a > b ? 1 : a < b ? -1 : 0));
}

// The trial table; a heading sorts by its column.
function trialTable(model, rows, x, y) {
  const words = DATA.trials[model].words;
  const both = ["accuracy/low", "accuracy/high"].filter((c) => c !== y && rows.some((r) => known(r[c])));
  const columns = [["trial", (r) => r.trial.slice(0, 8)], ["ratio", (r) => r.complexity_ratio], ["seed", (r) => r.seed], [words[y], (r) => r[y], formatPercent],
    ...both.map((c) => [words[c], (r) => r[c], formatPercent]), [words[x], (r) => r[x]], ["LoRA rank", (r) => r.lora_rank], ["steps", (r) => r.n_steps, String],
    ["loss", (r) => r.final_loss], ["seconds", (r) => r.train_seconds]].filter(([, get]) => rows.some((r) => get(r) !== undefined && (typeof get(r) === "string" || known(get(r)))));
  const host = make("div", { class: "trial-table" });
  const fill = (by, sign) => {
    const sorted = by === null ? rows : rows.slice().sort((a, b) => inOrderOf(columns[by][1](a), columns[by][1](b), sign));
    const table = numbersTable(columns.map(([name]) => name), sorted.map((r) => columns.map(([, get, format]) => {
      const v = get(r);
      return typeof v === "string" ? v : format ? format(v) : Number.isInteger(v) ? v : formatNumber(v, 3);
    })), `${model}: trials (a heading sorts)`);
    table.querySelectorAll("thead th").forEach((th, i) => {
      const down = by === i && sign < 0;
      th.setAttribute("aria-sort", by === i ? (down ? "descending" : "ascending") : "none");
      th.replaceChildren(make("button", { type: "button", class: "sort", onclick: () => { fill(i, by === i ? -sign : 1); host.querySelectorAll("button.sort")[i].focus(); } },
        th.textContent + (by === i ? (down ? " ↓" : " ↑") : "")));
    });
    host.replaceChildren(table);
  };
  fill(null, 1);
  return host;
}

function trialSection() {
  const s = new Section("trials", "trials");
  const models = Object.keys(DATA.trials);
  const words = Object.assign({}, ...models.map((m) => DATA.trials[m].words));
  const start = DATA.trials[models[0]].start;
  s.select("x", "Compression", unique(models.flatMap((m) => DATA.trials[m].compressions)).map((c) => [c, words[c]]), start.x);
  s.select("y", "Accuracy", unique(models.flatMap((m) => DATA.trials[m].outcomes)).map((c) => [c, words[c]]), start.y);
  s.render = () => {
    const { x, y } = s.values;
    const sets = [], tables = [];
    for (const model of models) {
      const t = DATA.trials[model];
      const charts = [];
      sets.push(charts);
      const rows = (t.decoded ||= decodeTable(t.rows));
      const points = rows.map((r) => ({ x: r[x], y: r[y], colour: toCss(mix(STYLE.viridis, r.complexity_ratio)),
        lines: [`ratio ${formatNumber(r.complexity_ratio, 3)}, seed ${r.seed}`] })).filter((p) => known(p.x) && known(p.y));
      if (points.length) {
        const chart = scatterChart({ title: model, hint: t.arrows[x], points, front: paretoFront(points, t.directions[x] || 1), x: { label: words[x] }, y: { label: words[y], format: formatPercent } });
        charts.push(chart);
      }
      for (const [column, colour, format] of [[y, "var(--series-1)", formatPercent], [x, colourOf(x.split("/")[1] || "vision"), formatNumber]]) {
        const effect = t.effects[column];
        if (!effect) continue;
        const base = column === y ? rows[0]?.[y.replace("accuracy/", "accuracy_base/")] : 0;
        charts.push(lineChart({ title: `${model}: effect of the ratio`, hint: t.arrows[column] || "", bars: true, rules: [{ name: "base model", y: base, colour: "var(--control)", dash: "4 3" }],
          x: { label: "complexity ratio (share of high-tier examples)", name: "ratio", format: (v) => formatNumber(v, 3).replace(/0$/, "") }, y: { label: words[column], format },
          series: [{ name: "mean over seeds", colour, points: effect.map((r) => ({ x: r.complexity_ratio, y: r.mean, low: r.ci_low, high: r.ci_high })) }] }));
      }
      tables.push(trialTable(model, rows, x, y));
    }
    s.legend.replaceChildren(ramp("complexity ratio", "0", "1"));
    s.show(sets, "A point a trial, the ratio as colour; the line is the Pareto front of accuracy and compression. Bars: 95 % interval, of a tier's accuracy over questions and seeds where all trials answer the same questions, else over three or more seeds, or the trial's own; dashed: base model.");
    s.extra.append(...tables);
  };
  return s;
}
