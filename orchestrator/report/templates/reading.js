// Routes blocked, states replaced, lenses, attention.

const routeName = (r) => `${r.source} to ${r.target}`;
const tierDash = (tier) => TIER_LOOK[tier] || ["", false];
const bySeries = (rows, key, make) => unique(rows.map(key)).map((name, i) => make(name, rows.filter((r) => key(r) === name), i));

function routesSection() {
  const s = new Section("routes", "routes");
  s.select("what", "Show", [["change", "change of the right answer's probability"], ["flip_share", "right answers that flip"]]);
  s.select("family", "Questions", [...namesIn("routes", "family")], "all");
  s.select("tier", "Tier", [...namesIn("routes", "tier")].map((t) => [t, `${t} tier`]));
  s.select("checkpoint", "Model", checkpointOptions("routes"), "base");
  s.render = () => {
    const { what, family, tier, checkpoint } = s.values;
    const [low, high] = what === "change" ? ["change_low", "change_high"] : ["ci_low", "ci_high"];
    const all = [];
    const charts = s.points().map((p) => {
      const rows = tableOf(p, "routes").filter((r) => r.family === family && r.tier === tier && r.checkpoint === checkpoint);
      const width = (r) => r.last_layer - r.first_layer, narrow = Math.min(...rows.map(width));
      const series = bySeries(rows.filter((r) => width(r) === narrow), routeName, (name, own, i) => ({ name, colour: colourOf("", i),
        points: own.map((r) => ({ x: r.centre, y: r[what], low: r[low], high: r[high] })).sort((a, b) => a.x - b.x) }));
      const whole = rows.filter((r) => width(r) > narrow);
      const bars = whole.length ? [{ name: "all layers", values: series.map((one) => {
        const r = whole.find((q) => routeName(q) === one.name);
        return { name: one.name, colour: one.colour, y: r?.[what], low: r?.[low], high: r?.[high] };
      }) }] : [];
      all.push(...series);
      const y = { label: what === "change" ? "change of probability" : "answers that flip", format: what === "change" ? formatNumber : formatPercent, ...(what === "change" ? {} : { domain: [0, 1.02] }) };
      const lines = series.length ? [lineChart({ title: p.label, series, rules: [{ y: 0, colour: "#777", name: "nothing blocked" }], x: { label: "decoder layers blocked (centre of the window)", name: "layer", whole: true }, y, size: { width: 520, height: 320 } })] : [];
      if (bars.length && what !== "change") lines.push(barChart({ title: p.label, hint: "the whole model", bars, x: { label: "all layers", name: "layers" }, y, ruleName: "", size: { width: 300, height: 320 } }));
      return lines;
    }).filter((c) => c.length);
    legendOfSeries(s, all);
    s.show(charts, "What is read, to what reads it, blocked in a window of layers; a token written later counts as the last one. 95 % interval.");
  };
  return s;
}

function replacingSection() {
  const s = new Section("replacing", "replacing");
  s.select("place", "States of", [...namesIn("replacing", "place")].map((one) => [one, STYLE.places[one]]), "image");
  s.select("tier", "Tier", [...namesIn("replacing", "tier")].map((t) => [t, `${t} tier`]));
  s.render = () => {
    const { place, tier } = s.values;
    const all = [];
    const charts = s.points().map((p) => {
      const rows = tableOf(p, "replacing").filter((r) => r.place === place && r.tier === tier && r.checkpoint === "base");
      const series = bySeries(rows, (r) => r.kind, (kind, own, i) => ({ name: `by ${kind}`, colour: colourOf("", i),
        points: own.map((r) => ({ x: r.layer, y: r.accuracy })).sort((a, b) => a.x - b.x) }));
      all.push(...series);
      return series.length ? lineChart({ title: p.label, series, x: { label: "layer at whose input states are replaced", name: "layer", whole: true },
        y: { label: "accuracy", format: formatPercent, domain: [0, 1.02] }, size: { width: 520, height: 300 } }) : null;
    }).filter(Boolean);
    legendOfSeries(s, all);
    s.show(charts, "Accuracy with visual states replaced by what says nothing of the image; mean over families and seeds.");
  };
  return s;
}

function lensSection() {
  const s = new Section("lens", "lens");
  s.select("place", "Read from", [...namesIn("lens", "place")].map((one) => [one, STYLE.places[one]]), "last");
  s.select("what", "Show", [["above", "right answer above its rivals"], ["settled", "and so from there on"], ["probability", "probability of the right answer"]]);
  s.select("family", "Questions", [...namesIn("lens", "family")], "all");
  s.select("checkpoint", "Model", checkpointOptions("lens"), "base");
  s.render = () => {
    const { place, what, family, checkpoint } = s.values;
    const all = [];
    const charts = s.points().map((p) => {
      const rows = tableOf(p, "lens").filter((r) => r.place === place && r.family === family && r.checkpoint === checkpoint);
      const series = bySeries(rows, (r) => `${r.lens} lens, ${r.tier} tier`, (name, own) => ({ name, colour: colourOf("", own[0].lens === "tuned" ? 0 : 1), dash: tierDash(own[0].tier)[0], hollow: tierDash(own[0].tier)[1],
        points: own.map((r) => ({ x: r.layer, y: r[what], ...(what === "above" ? { low: r.ci_low, high: r.ci_high } : {}) })).sort((a, b) => a.x - b.x) }));
      all.push(...series);
      return series.length ? lineChart({ title: p.label, series, x: { label: "point of the residual stream (0 = input)", name: "layer", whole: true },
        y: { label: what === "probability" ? "probability" : "share", format: formatPercent, domain: [0, 1.02] }, size: { width: 520, height: 320 } }) : null;
    }).filter(Boolean);
    legendOfSeries(s, all);
    s.show(charts, "States read through the final norm and the output embeddings: as they are (logit lens), and after an affine map fitted on other images (tuned lens).");
  };
  return s;
}

function attentionSection() {
  const s = new Section("attention", "attention");
  s.select("what", "Show", [["to_image", "share that goes to the image"], ["on_objects", "of it, share on objects"], ["over_share", "on objects, beyond their share of tokens"]]);
  s.select("family", "Questions", [...namesIn("attention", "family")], "all");
  s.select("target", "Picture from", [...namesIn("attention", "target")].map((one) => [one, STYLE.places[one]]), "question");
  s.render = () => {
    const { what, family, target } = s.values;
    const all = [];
    const charts = s.points().map((p) => {
      const rows = tableOf(p, "attention").filter((r) => r.family === family && r.checkpoint === "base");
      const series = bySeries(rows, (r) => `${STYLE.places[r.target]}, ${r.tier} tier`, (name, own) => ({ name, colour: colourOf("", own[0].target === "question" ? 0 : 1), dash: tierDash(own[0].tier)[0], hollow: tierDash(own[0].tier)[1],
        points: own.map((r) => ({ x: r.layer, y: r[what], low: r[`${what}_low`], high: r[`${what}_high`] })).sort((a, b) => a.x - b.x) }));
      all.push(...series);
      const y = { label: "share of attention", format: what === "over_share" ? formatNumber : formatPercent, ...(what === "over_share" ? {} : { domain: [0, 1.02] }) };
      const chart = series.length ? [lineChart({ title: p.label, series, x: { label: "decoder layer", name: "layer", whole: true }, y, size: { width: 520, height: 300 } })] : [];
      return [...chart, ...p.attended.filter((m) => m.target === target).map((m) => tokenSheet(p, m, "share", "sheet", 0.6))];
    }).filter((c) => c.length);
    legendOfSeries(s, all);
    s.show(charts.flat(), "Attention, mean over heads and images, with its 95 % interval; below, laid on pictures (1 = equal share of the attention to the image; viridis, dark = low).");
  };
  return s;
}
