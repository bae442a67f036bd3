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
    const words = `Layer ${layer}: highest of ${slices[i].filter(known).length} tokens ${formatNumber(slices[i][top])} at row ${Math.floor(top / columns)}, column ${top % columns}`;
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

function rivalsSection() {
  const s = new Section("rivals", "rivals");
  s.select("family", "Questions", [...namesIn("rivals", "family")], "all");
  s.select("tier", "Tier", [...namesIn("rivals", "tier")].map((t) => [t, `${t} tier`]));
  s.select("difficulty", "Difficulty", [["all", "all questions"], ["hard", "not answered by a smaller image"], ["easy", "answered by a smaller image too"]]);
  s.render = () => {
    const { family, tier, difficulty } = s.values;
    const all = [];
    const names = [...namesIn("rivals", "method")].filter((m) => m !== "all tokens");
    const charts = s.points().map((p) => {
      const mine = tableOf(p, "rivals").filter((r) => r.family === family && r.tier === tier);
      const rows = mine.filter((r) => r.difficulty === difficulty);
      const series = unique(rows.map((r) => r.method)).filter((m) => m !== "all tokens").map((how) => ({ name: nameOf(how), colour: colourOf(how, names.indexOf(how)),
        dash: how === "random" || how === "downsample" ? "6 3" : "",
        points: rows.filter((r) => r.method === how).map((r) => ({ x: r.budget, y: r.accuracy, low: r.ci_low, high: r.ci_high })).sort((a, b) => a.x - b.x) }));
      all.push(...series);
      const full = mine.find((r) => r.method === "all tokens" && r.difficulty === "all");
      const rules = full && difficulty === "all" ? [{ name: "all tokens", y: full.accuracy, colour: "#777", dash: "2 3" }] : [];
      return series.length ? lineChart({ title: p.label, series, rules, x: { label: "visual tokens, mean over layers that read them", name: "tokens", format: formatPercent, domain: [0, 1.02] },
        y: { label: "accuracy", format: formatPercent, domain: [0, 1.02] }, size: { width: 560, height: 340 } }) : null;
    }).filter(Boolean);
    legendOfSeries(s, all);
    s.show(charts, "Accuracy by average share of visual tokens, on the same questions; dashed: controls; dotted: all tokens; band = 95 % interval.");
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
      const rows = mine("knockout"), plain = mine("plain");
      const series = questionSeries(rows, "centre");
      all.push(...series.map((one) => ({ ...one, dash: "" })));
      const wide = Math.max(...rows.map((r) => r.last_layer - r.first_layer)), narrow = Math.min(...rows.map((r) => r.last_layer - r.first_layer));
      const group = (name, some) => ({ name, values: series.map((one) => {
        const r = some.find((q) => questionName(q.family, q.tier) === one.name);
        const whole = plain.find((q) => questionName(q.family, q.tier) === one.name);
        return { name: one.name, colour: one.colour, hollow: one.hollow, y: r?.accuracy, low: r?.ci_low, high: r?.ci_high, rule: whole?.accuracy };
      }) });
      const title = (r) => (r.first_layer === r.last_layer ? String(r.first_layer) : `${r.first_layer}–${r.last_layer}`);
      const places = unique(rows.filter((r) => r.last_layer - r.first_layer === narrow).sort((a, b) => a.first_layer - b.first_layer).map(title));
      const bars = places.map((name) => group(name, rows.filter((r) => r.last_layer - r.first_layer === narrow && title(r) === name)));
      const y = { label: "accuracy", format: formatPercent, domain: [0, 1.02] };
      const charts = series.length ? [barChart({ title: p.label, hint: "windows of layers", bars, x: { label: "decoder layers in which text cannot attend to vision", name: "layers" }, y, ruleName: "nothing blocked", size: { width: 600, height: 320 } })] : [];
      if (wide > narrow) charts.push(barChart({ title: p.label, hint: "the whole model", bars: [group("all", rows.filter((r) => r.last_layer - r.first_layer === wide))], x: { label: "all layers", name: "layers" }, y, ruleName: "nothing blocked", size: { width: 300, height: 320 } }));
      return charts;
    }).filter((c) => c.length);
    legendOfSeries(s, all);
    s.show(charts, "Accuracy when text cannot attend to vision within a window of layers, and in the whole model apart. Dashed line across a bar: nothing blocked; whisker = 95 % interval; pale: high tier.");
  };
  return s;
}

function patchingSection() {
  const s = new Section("patching", "patching");
  s.select("place", "States of", [...namesIn("patching", "place")].map((one) => [one, STYLE.places[one]]), "image");
  s.select("checkpoint", "Model", checkpointOptions("patching"), "base");
  s.render = () => {
    const all = [];
    const charts = s.points().map((p) => {
      const rows = tableOf(p, "patching").filter((r) => r.checkpoint === s.values.checkpoint && r.place === s.values.place);
      const series = unique(rows.map((r) => r.attribute)).map((a, i) => ({ name: nameOf(a), colour: colourOf(a, i),
        points: rows.filter((r) => r.attribute === a).map((r) => ({ x: r.layer, y: r.flip_share, low: r.ci_low, high: r.ci_high })) }));
      all.push(...series);
      return lineChart({ title: p.label, series, x: { label: "decoder layer whose states are replaced", name: "layer", whole: true },
        y: { label: "answers that flip", format: formatPercent, domain: [0, 1.02] }, size: { width: 520, height: 300 } });
    });
    legendOfSeries(s, all);
    s.show(charts, `Share of answers that become the donor's when states of ${STYLE.places[s.values.place]} are replaced at a layer; band = 95 % interval.`);
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

// Charts of columns of the trials against the ratio: a list of columns a chart, with seeds, base model and blind level.
function ratioCharts(model, groups, size) {
  const t = DATA.trials[model], rows = (t.decoded ||= decodeTable(t.rows));
  return groups.map((group) => group.filter((c) => t.effects[c])).filter((group) => group.length).map((group) => {
    const series = [], dots = [], rules = [];
    for (const column of group) {
      const accuracy = column.startsWith("accuracy/"), tier = column.split("/")[1];
      const colour = accuracy ? `var(--series-${tier === "low" ? 0 : 1})` : colourOf(tier === "text" ? "text" : "vision");
      series.push({ name: group.length > 1 ? `${tier} tier` : "mean over seeds", colour, points: t.effects[column].map((r) => ({ x: r.complexity_ratio, y: r.mean, low: r.ci_low, high: r.ci_high })) });
      dots.push(...rows.map((r) => ({ x: r.complexity_ratio, y: r[column], colour })));
      const level = (kind) => rows.map((r) => r[column.replace("accuracy/", kind)]).find(known);
      if (accuracy) rules.push({ name: `base model${group.length > 1 ? `, ${tier}` : ""}`, y: level("accuracy_base/"), colour, dash: "5 3" }, { name: `without the image${group.length > 1 ? `, ${tier}` : ""}`, y: level("blind/"), colour, dash: "1 3" });
      else if (column.startsWith("delta/")) rules.push({ name: "base model", y: 0, colour: "var(--control)", dash: "5 3" });
    }
    const accuracy = group[0].startsWith("accuracy/");
    return lineChart({ title: group.length > 1 ? "Accuracy by tier" : t.words[group[0]], hint: group.length > 1 ? "dashed: base model, dotted: without the image" : [upward(t.directions[group[0]]), t.verdicts[group[0]]].filter(Boolean).join(", "), of: model, bars: true, rules, dots, series, size,
      x: { label: "complexity ratio (share of high-tier examples)", name: "ratio", format: (v) => formatNumber(v, 3).replace(/0$/, "") },
      y: { label: accuracy ? "accuracy" : t.words[group[0]], format: accuracy ? formatPercent : formatNumber, flip: t.directions[group[0]] < 0 } });
  });
}

// The figure above everything else: what became of compression and accuracy, or compression against the number of objects.
function answerSection() {
  const s = new Section("answer", "curves");
  s.render = () => {
    const sets = DATA.headline.map((h) => {
      if (h.kind === "ratio") {
        const t = DATA.trials[h.model];
        const tiers = ["accuracy/low", "accuracy/high"].filter((c) => t.effects[c]);
        return ratioCharts(h.model, [[t.start.x], tiers.length ? tiers : [t.start.y]], { width: 520, height: 310 });
      }
      const colour = colourOf("vision"), order = ascending(h.x);
      const cuts = [...Array(9).keys()].map((i) => order[Math.min(order.length - 1, Math.floor((i * order.length) / 8))]);
      const bins = cuts.slice(0, -1).map((low, i) => {
        const mine = h.x.map((x, k) => [x, h.y[k]]).filter(([x]) => x >= low && (x < cuts[i + 1] || (i === 7 && x <= cuts[8])));
        const mean = (k) => mine.reduce((sum, q) => sum + q[k], 0) / mine.length;
        return mine.length ? { x: mean(0), y: mean(1) } : null;
      }).filter(Boolean);
      return [lineChart({ title: h.label, hint: upward(h.direction), x: { label: "number of objects", name: "objects" }, y: { label: h.metric, flip: h.direction < 0 }, size: { width: 640, height: 340 },
        dots: h.x.map((x, i) => ({ x, y: h.y[i], colour })), series: [{ name: "mean of an eighth of the images", colour, points: bins }] })];
    }).filter((charts) => charts.length);
    const ratio = DATA.headline.some((h) => h.kind === "ratio");
    const tiers = ratio && sets.some((charts) => charts.length > 1);
    s.legendOf(tiers ? [{ name: "low tier (simple scenes)", colour: "var(--series-0)" }, { name: "high tier (crowded scenes)", colour: "var(--series-1)" }] : []);
    s.show(sets, ratio ? "Large dots: mean over seeds with 95 % interval; small dots: seeds. Dashed: base model; dotted: best answers without the image."
      : sets.length ? "A dot an image; large dots: mean of an eighth of the images." : "");
    s.save.hidden = s.table.hidden = !sets.length;
    if (!sets.length) s.panels.replaceChildren();
  };
  return s;
}

function trialSection() {
  const s = new Section("trials", "trials");
  const models = Object.keys(DATA.trials);
  const words = Object.assign({}, ...models.map((m) => DATA.trials[m].words));
  const start = DATA.trials[models[0]].start;
  const primary = unique(models.flatMap((m) => DATA.trials[m].primary));
  const groupOf = (c) => (primary.includes(c) ? "primary outcomes" : `${c.split("/")[1]} tokens, ${c.split("/")[3]} layers`);
  const compressions = unique(models.flatMap((m) => DATA.trials[m].compressions)).map((c) => [c, words[c], groupOf(c)]);
  const rank = (c) => (c[2] === "primary outcomes" ? 0 : c[0].includes("/vision/") ? 1 : 2);
  s.select("x", "Compression", compressions.sort((a, b) => rank(a) - rank(b) || (a[2] < b[2] ? -1 : a[2] > b[2] ? 1 : 0)), start.x);
  s.select("y", "Accuracy", unique(models.flatMap((m) => DATA.trials[m].outcomes)).map((c) => [c, words[c], c.split("/").length > 2 ? `${c.split("/")[1]} tier by family` : "whole tiers"]), start.y);
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
        const chart = scatterChart({ title: model, hint: t.directions[x] ? `right = more compressed${t.directions[x] < 0 ? " (axis turned)" : ""}` : "", points, front: paretoFront(points, t.directions[x] || 1), x: { label: words[x], flip: t.directions[x] < 0 }, y: { label: words[y], format: formatPercent } });
        charts.push(chart);
      }
      charts.push(...ratioCharts(model, [[y], [x]]));
      tables.push(trialTable(model, rows, x, y));
    }
    s.legend.replaceChildren(ramp("complexity ratio", "0", "1"));
    const chosen = x === start.x && start.chosen ? ` ${capital(words[x])}: ${start.chosen}.` : "";
    s.show(sets, `A point a trial, the ratio as colour; the line is the Pareto front of accuracy and compression.${chosen} Small dots: seeds. Bars: 95 % interval, of a tier's accuracy over questions and seeds where all trials answer the same questions, else over three or more seeds, or the trial's own; dashed: base model; dotted: best answers without the image.`);
    s.extra.append(...tables);
  };
  return s;
}
