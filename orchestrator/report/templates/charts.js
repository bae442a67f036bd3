// Three charts in SVG: lines with intervals, heat map, scatter. Each can be read by pointer, by arrow keys and as a table.

const MARGIN = { left: 74, right: 14, top: 38, bottom: 44 };

// A chart is never drawn wider than the page shows it: letters keep their size on a phone.
const roomFor = (width) => Math.max(280, Math.min(width, document.documentElement.clientWidth - 56));

function chartRoot(width, height, label) {
  return svg("svg", {
    viewBox: `0 0 ${width} ${height}`, class: "chart", tabindex: "0", role: "group",
    "aria-roledescription": "chart", "aria-label": `${label}. Arrow keys read the values.`,
  });
}

function axisText(root, x, y, text, extra = {}) {
  root.append(svg("text", { x, y, class: "tick", "text-anchor": "middle", ...extra }, text));
}

function frame(root, spec, size, scaleX, scaleY, xTicks, yTicks) {
  const { width, height } = size;
  const bottom = height - MARGIN.bottom;
  const ticksOf = (axis, ticks) => (axis.format === formatPercent ? percentTicks(ticks)
    : axis.format && axis.format !== formatNumber ? axis.format : tickFormat(ticks));
  const formatX = ticksOf(spec.x, xTicks), formatY = ticksOf(spec.y, yTicks);
  for (const t of yTicks) {
    root.append(svg("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: scaleY(t), y2: scaleY(t), class: "grid" }));
    axisText(root, MARGIN.left - 6, scaleY(t) + 3.5, formatY(t), { "text-anchor": "end" });
  }
  for (const t of xTicks) {
    root.append(svg("line", { x1: scaleX(t), x2: scaleX(t), y1: bottom, y2: bottom + 4, class: "axis" }));
    axisText(root, scaleX(t), bottom + 16, formatX(t));
  }
  root.append(svg("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: bottom, y2: bottom, class: "axis" }));
  const below = wrapped(spec.x.label, width - 8, LABEL_FONT);
  const halfway = Math.min((MARGIN.left + width - MARGIN.right) / 2, width - 4 - Math.max(...below.map((line) => textWidth(line, LABEL_FONT))) / 2);
  below.forEach((line, i) => axisText(root, halfway, height - 8 + 13 * i, line, { class: "label" }));
  grow(root, 0, 13 * (below.length - 1));
  const middle = (MARGIN.top + bottom) / 2;
  const room = bottom - MARGIN.top + 10, upright = wrapped(spec.y.label, room, LABEL_FONT);
  upright.forEach((line, i) => root.append(svg("text", { class: "label", "text-anchor": "middle", transform: `translate(${13 - 2 * (upright.length - 1) + 11 * i} ${middle}) rotate(-90)` }, line)));
  heading(root, MARGIN.left, spec, width);
}

const TITLE_FONT = "650 12.5px", LABEL_FONT = "11px";
const pen = document.createElement("canvas").getContext("2d");

function textWidth(text, font) {
  pen.font = `${font} ${getComputedStyle(document.body).fontFamily}`;
  return 1.04 * pen.measureText(text).width; // a drawn letter may be wider than a measured one
}

// A text as lines no wider than `room`, broken between words.
function wrapped(text, room, font) {
  const lines = [];
  for (const word of String(text).split(" ")) {
    const longer = lines.length ? `${lines.at(-1)} ${word}` : word;
    if (lines.length && textWidth(longer, font) <= room) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines;
}

// More room above and below the drawing; its coordinates stay.
function grow(root, above, below) {
  const view = root.viewBox.baseVal;
  root.setAttribute("viewBox", `${view.x} ${view.y - above} ${view.width} ${view.height + above + below}`);
}

// Title and hint over the drawing, from `x` on, or from the edge and in several lines where the chart is too narrow.
function heading(root, x, spec, width) {
  const widest = Math.max(textWidth(spec.title || "", TITLE_FONT), textWidth(spec.hint || "", LABEL_FONT));
  const left = widest <= width - x - 4 ? x : 4;
  const title = wrapped(spec.title || "", width - left - 4, TITLE_FONT), hint = spec.hint ? wrapped(spec.hint, width - left - 4, LABEL_FONT) : [];
  const above = 15 * Math.max(0, title.length + hint.length - 2);
  [...title, ...hint].forEach((line, i) => root.append(svg("text", { x: left, y: 14 + 15 * i - above, class: i < title.length ? "panel-title" : "hint" }, line)));
  grow(root, above, 0);
}

// As many decimals as the steps between ticks need.
function tickFormat(ticks) {
  const step = ticks.length > 1 ? ticks[1] - ticks[0] : 1;
  const places = Math.max(0, [0, 1, 2, 3, 4, 5].find((n) => Math.abs(step * 10 ** n - Math.round(step * 10 ** n)) < 1e-6) ?? 3);
  return (v) => (Math.abs(v) < 1e-12 ? 0 : v).toFixed(places).replace("-", "−");
}

function percentTicks(ticks) {
  const format = tickFormat(ticks.map((t) => 100 * t));
  return (v) => format(100 * v) + " %";
}

function extent(values, padding = 0.06, least = 0) {
  const there = values.filter(known);
  if (!there.length) return [0, 1];
  const low = Math.min(...there), high = Math.max(...there);
  const pad = Math.max((high - low || Math.abs(high) || 1) * padding, (least - (high - low)) / 2);
  return [low - pad, high + pad];
}

// A value's place on an axis. `flip` turns the axis round: of a metric whose small values mean more compressed, up and right are more compressed too.
const alongAxis = (axis, low, high, from, to) => (v) => {
  const share = (v - low) / (high - low || 1);
  return from + (axis.flip ? 1 - share : share) * (to - from);
};

// A chart's spoken name: two charts of a page never share one. `of` is what is not written on the chart itself.
const spokenTitle = (spec) => [spec.title, spec.hint, spec.of].filter(Boolean).join(", ");

// spec: {title, hint, of, x: {label, domain, whole, format, flip}, y: {label, domain, format, flip}, size,
//        series: [{name, colour, dash, hollow, points: [{x, y, low, high}]}], rules: [{name, y, colour, dash}]}
function lineChart(spec) {
  const width = roomFor(spec.size?.width || 440), height = spec.size?.height || 290;
  const root = chartRoot(width, height, `${spokenTitle(spec)}: ${spec.y.label} by ${spec.x.label}`);
  const all = spec.series.flatMap((s) => s.points), dots = (spec.dots || []).filter((p) => known(p.x) && known(p.y));
  const [x0, x1] = spec.x.domain || extent([...all, ...dots].map((p) => p.x), 0.02);
  const [y0, y1] = spec.y.domain || extent([...all.flatMap((p) => [p.y, p.low, p.high]), ...dots.map((p) => p.y), ...(spec.rules || []).map((r) => r.y)], 0.06, spec.y.format === formatPercent ? 0.1 : 0);
  const scaleX = alongAxis(spec.x, x0, x1, MARGIN.left, width - MARGIN.right);
  const scaleY = alongAxis(spec.y, y0, y1, height - MARGIN.bottom, MARGIN.top);
  frame(root, spec, { width, height }, scaleX, scaleY, niceTicks(x0, x1, 7, spec.x.whole), niceTicks(y0, y1, 5));
  const clip = `clip-${Math.random().toString(36).slice(2)}`;
  root.append(svg("clipPath", { id: clip }, svg("rect", {
    x: MARGIN.left - 5, y: MARGIN.top - 6, width: width - MARGIN.left - MARGIN.right + 10, height: height - MARGIN.top - MARGIN.bottom + 12 })));
  const marks = svg("g", { "clip-path": `url(#${clip})` });
  root.append(marks);
  for (const rule of (spec.rules || []).filter((r) => known(r.y))) {
    marks.append(svg("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: scaleY(rule.y), y2: scaleY(rule.y),
      stroke: rule.colour, "stroke-width": 1.2, "stroke-dasharray": rule.dash || "" }));
  }
  for (const p of dots) marks.append(svg("circle", { cx: scaleX(p.x), cy: scaleY(p.y), r: 2.6, fill: p.colour, class: "dot" }));
  for (const series of spec.series) {
    const points = series.points.filter((p) => known(p.y));
    const banded = points.filter((p) => known(p.low) && known(p.high));
    if (banded.length > 1 && !spec.bars) {
      const edge = [...banded.map((p) => [p.x, p.high]), ...banded.slice().reverse().map((p) => [p.x, p.low])];
      marks.append(svg("polygon", { points: edge.map(([x, y]) => `${scaleX(x)},${scaleY(y)}`).join(" "), fill: series.colour, class: "band" }));
    } else for (const p of banded) {
      marks.append(svg("line", { x1: scaleX(p.x), x2: scaleX(p.x), y1: scaleY(p.low), y2: scaleY(p.high), stroke: series.colour, "stroke-width": 1.6 }));
    }
    if (points.length > 1) marks.append(svg("polyline", { points: points.map((p) => `${scaleX(p.x)},${scaleY(p.y)}`).join(" "), fill: "none",
      stroke: series.colour, "stroke-width": series.thin ? 1.2 : 2.2, "stroke-dasharray": series.dash || "", "stroke-linejoin": "round" }));
    if (!series.thin) for (const p of points) marks.append(svg("circle", { cx: scaleX(p.x), cy: scaleY(p.y), r: 2.8, stroke: series.colour,
      "stroke-width": 1.4, fill: series.hollow ? "var(--panel)" : series.colour }));
  }
  const guide = svg("line", { y1: MARGIN.top, y2: height - MARGIN.bottom, class: "guide", visibility: "hidden" });
  root.append(guide);
  const stops = ascending(all.filter((p) => known(p.y)).map((p) => p.x));
  const format = spec.y.format || formatNumber, formatX = spec.x.format || formatNumber;
  let at = -1;
  const read = (index, spoken) => {
    at = Math.max(0, Math.min(stops.length - 1, index));
    const x = stops[at];
    if (x === undefined) return;
    guide.setAttribute("x1", scaleX(x));
    guide.setAttribute("x2", scaleX(x));
    guide.setAttribute("visibility", "visible");
    const lines = [{ text: `${spec.x.name || spec.x.label} ${spec.x.whole ? Math.round(x * 100) / 100 : formatX(x)}` }];
    for (const series of spec.series) {
      const p = series.points.find((q) => q.x === x && known(q.y));
      if (p) lines.push({ colour: series.colour, text: `${series.name}: ${format(p.y)}${formatInterval(p.low, p.high, format)}` });
    }
    for (const rule of spec.rules || []) if (known(rule.y)) lines.push({ colour: rule.colour, text: `${rule.name}: ${format(rule.y)}` });
    const [left, top] = onScreen(root, scaleX(x), MARGIN.top + 20);
    showTip(lines, left, top, spoken);
  };
  readable(root, {
    point: (x) => read(stops.reduce((best, s, i) => (Math.abs(scaleX(s) - x) < Math.abs(scaleX(stops[best]) - x) ? i : best), 0), false),
    key: (key) => ({ ArrowRight: 1, ArrowLeft: -1 }[key] ? (read(at + { ArrowRight: 1, ArrowLeft: -1 }[key], true), true) : false),
    leave: () => guide.setAttribute("visibility", "hidden"),
  });
  const head = [capital(spec.x.name || spec.x.label), ...spec.series.flatMap((s) => [s.name, "interval"])];
  root.numbers = () => [head, stops.map((x) => [formatX(x), ...spec.series.flatMap((s) => {
    const p = s.points.find((q) => q.x === x);
    return p ? [format(p.y), formatInterval(p.low, p.high, format).trim()] : ["", ""];
  })])];
  return root;
}

// spec: {title, hint, of, x: {label}, y: {label, format, domain}, bars: [{name, values: [{name, colour, y, low, high, rule}]}]}: groups of bars side by side;
// `rule` draws a short line across a bar: what it is held against.
function barChart(spec) {
  const least = 60 + 30 + spec.bars.reduce((sum, group) => sum + group.values.length * 9 + 12, 0);
  const width = Math.max(roomFor(spec.size?.width || 560), least), height = spec.size?.height || 320;
  const root = chartRoot(width, height, `${spokenTitle(spec)}: ${spec.y.label} by ${spec.x.label}`);
  root.style.setProperty("--least", `${0.9 * least}px`);
  const [y0, y1] = spec.y.domain;
  const scaleY = (v) => height - MARGIN.bottom - ((v - y0) / (y1 - y0)) * (height - MARGIN.bottom - MARGIN.top);
  frame(root, spec, { width, height }, () => -99, scaleY, [], niceTicks(y0, y1, 5));
  const slot = (width - MARGIN.left - MARGIN.right) / spec.bars.length;
  const format = spec.y.format || formatNumber;
  const places = [];
  spec.bars.forEach((group, g) => {
    const thick = Math.min(26, (slot - 8) / group.values.length), left = MARGIN.left + g * slot + (slot - thick * group.values.length) / 2;
    group.values.forEach((v, i) => {
      if (!known(v.y)) return;
      const x = left + i * thick, middle = x + thick / 2;
      root.append(svg("rect", { x: x + 0.5, width: Math.max(1, thick - 1.5), y: scaleY(Math.max(v.y, 0)), height: Math.max(0.5, Math.abs(scaleY(0) - scaleY(v.y))), fill: v.colour, class: "bar", opacity: v.hollow ? 0.55 : 1 }));
      if (known(v.low) && known(v.high)) root.append(svg("line", { x1: middle, x2: middle, y1: scaleY(v.low), y2: scaleY(v.high), stroke: "var(--ink)", "stroke-width": 1.2 }));
      if (known(v.rule)) root.append(svg("line", { x1: x, x2: x + thick - 1, y1: scaleY(v.rule), y2: scaleY(v.rule), stroke: "var(--ink)", "stroke-width": 1.8, "stroke-dasharray": "3 2" }));
      places.push({ x: middle, y: v.y, lines: [{ text: `${spec.x.name || spec.x.label} ${group.name}` }, { colour: v.colour, text: `${v.name}: ${format(v.y)}${formatInterval(v.low, v.high, format)}` },
        ...(known(v.rule) ? [{ text: `${spec.ruleName}: ${format(v.rule)}` }] : [])] });
    });
    axisText(root, MARGIN.left + (g + 0.5) * slot, height - MARGIN.bottom + 16, group.name);
  });
  let at = -1;
  const read = (index, spoken) => {
    at = Math.max(0, Math.min(places.length - 1, index));
    if (places[at]) showTip(places[at].lines, ...onScreen(root, places[at].x, scaleY(places[at].y)), spoken);
  };
  readable(root, {
    point: (px) => places.length && read(places.reduce((best, p, i) => (Math.abs(p.x - px) < Math.abs(places[best].x - px) ? i : best), 0), false),
    key: (key) => ({ ArrowRight: 1, ArrowLeft: -1 }[key] ? (read(at + { ArrowRight: 1, ArrowLeft: -1 }[key], true), true) : false),
    leave: () => {},
  });
  const names = unique(spec.bars.flatMap((group) => group.values.map((v) => v.name)));
  root.numbers = () => [[capital(spec.x.name || spec.x.label), ...names.flatMap((n) => [n, "interval"])], spec.bars.map((group) => [group.name, ...names.flatMap((n) => {
    const v = group.values.find((one) => one.name === n);
    return v && known(v.y) ? [format(v.y), formatInterval(v.low, v.high, format).trim()] : ["", ""];
  })])];
  return root;
}

// Pointer and keyboard reading, the same for every chart.
function readable(root, act) {
  root.addEventListener("pointermove", (event) => act.point(...inSvg(root, event)));
  root.addEventListener("pointerleave", () => { hideTip(); act.leave(); });
  root.addEventListener("blur", () => { hideTip(); act.leave(); });
  root.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { hideTip(); act.leave(); } else if (act.key(event.key)) event.preventDefault();
  });
  if (act.click) root.addEventListener("click", (event) => act.click(...inSvg(root, event)));
}

// spec: {title, hint, rows, columns (keys), cell(row, column) -> {value, marked, lines} | null, scale, selected, onSelect, rowLabel}
function heatMap(spec) {
  const step = Math.max(22, Math.min(44, 470 / spec.columns.length));
  const tall = Math.max(11, Math.min(24, 420 / spec.rows.length));
  const names = spec.columns.map((c) => (typeof c === "number" ? String(c) : nameOf(c)));
  const longest = Math.max(...names.map((n, i) => n.length * 7.8 - (i * step + step / 2) / 0.79));
  const slanted = names.some((n) => n.length * 6.2 > step);
  const left = Math.max(46, slanted ? longest * 0.79 + 8 : 0), top = 38;
  const foot = slanted ? 22 + Math.max(...names.map((n) => n.length)) * 4.6 : 24;
  // Of few columns the heading is the widest part.
  const width = Math.max(340, left + step * spec.columns.length + 62), height = top + tall * spec.rows.length + foot;
  const root = chartRoot(width, height, `${spokenTitle(spec)}: heat map of ${spec.scale.label}, ${spec.rowLabel} by attribute`);
  root.classList.add("heat");
  root.style.maxWidth = Math.max(340, width * 1.25) + "px";
  root.style.setProperty("--least", `${0.9 * width}px`);
  const cells = spec.rows.map((r) => spec.columns.map((c) => spec.cell(r, c)));
  const x = (c) => left + c * step, y = (r) => top + (spec.rows.length - 1 - r) * tall;
  heading(root, left, spec, width);
  cells.forEach((line, r) => line.forEach((cell, c) => {
    const value = cell && cell.value;
    if (!known(value)) {
      root.append(svg("rect", { x: x(c), y: y(r), width: step - 1, height: tall - 1, class: "missing" }));
      return;
    }
    const rgb = spec.scale.colour(value);
    root.append(svg("rect", { x: x(c), y: y(r), width: step - 1, height: tall - 1, fill: toCss(rgb) }));
    const text = cell.marked ? "×" : tall >= 15 ? value.toFixed(2).replace(/^(-?)0\./, "$1.").replace("-", "−") : "";
    root.append(svg("text", { x: x(c) + (step - 1) / 2, y: y(r) + tall / 2 + 3.2, class: "cell", fill: inkOn(rgb), opacity: cell.marked ? 0.75 : 1 }, text));
  }));
  const every = Math.ceil(spec.rows.length / 18);
  spec.rows.forEach((r, i) => { if (i % every === 0) axisText(root, left - 6, y(i) + tall / 2 + 3.5, r, { "text-anchor": "end" }); });
  spec.columns.forEach((c, i) => {
    const at = [x(i) + step / 2 + (slanted ? 3 : 0), height - foot + 14];
    root.append(svg("text", { class: c === spec.selected ? "tick chosen" : "tick", "text-anchor": slanted ? "end" : "middle",
      transform: `translate(${at})${slanted ? " rotate(-38)" : ""}` }, names[i]));
  });
  root.append(svg("text", { class: "label", "text-anchor": "middle", transform: `translate(${left - 34} ${top + (tall * spec.rows.length) / 2}) rotate(-90)` }, spec.rowLabel));
  colourBar(root, spec.scale, width - 50, top, Math.min(150, tall * spec.rows.length));
  const cursor = svg("rect", { width: step - 1, height: tall - 1, class: "cursor", visibility: "hidden" });
  root.append(cursor);
  let at = [-1, 0];
  const read = (r, c, spoken) => {
    at = [Math.max(0, Math.min(spec.rows.length - 1, r)), Math.max(0, Math.min(spec.columns.length - 1, c))];
    cursor.setAttribute("x", x(at[1]));
    cursor.setAttribute("y", y(at[0]));
    cursor.setAttribute("visibility", "visible");
    const cell = cells[at[0]][at[1]];
    const lines = [{ text: `${capital(nameOf(spec.columns[at[1]]))}, ${spec.rowName || "layer"} ${spec.rows[at[0]]}` }];
    for (const line of cell ? cell.lines : ["no value"]) lines.push({ text: line });
    const [sx, sy] = onScreen(root, x(at[1]) + step / 2, y(at[0]) + tall / 2);
    showTip(lines, sx, sy, spoken);
  };
  const moves = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowUp: [1, 0], ArrowDown: [-1, 0] };
  const under = (px, py) => [spec.rows.length - 1 - Math.floor((py - top) / tall), Math.floor((px - left) / step)];
  const inside = ([r, c]) => r >= 0 && c >= 0 && r < spec.rows.length && c < spec.columns.length;
  readable(root, {
    point: (px, py) => { const p = under(px, py); if (inside(p)) read(...p, false); else { hideTip(); cursor.setAttribute("visibility", "hidden"); } },
    key: (key) => {
      if (moves[key]) return read(at[0] + moves[key][0], at[1] + moves[key][1], true), true;
      if ((key === "Enter" || key === " ") && spec.onSelect && at[0] >= 0) return spec.onSelect(spec.columns[at[1]]), true;
      return false;
    },
    leave: () => cursor.setAttribute("visibility", "hidden"),
    click: (px, py) => { const p = under(px, py); if (spec.onSelect && p[1] >= 0 && p[1] < spec.columns.length) spec.onSelect(spec.columns[p[1]]); },
  });
  root.numbers = () => [[capital(spec.rowName || "layer"), ...spec.columns.map(nameOf)],
    spec.rows.map((r, i) => [r, ...cells[i].map((c) => (c && known(c.value) ? formatNumber(c.value) + (c.marked ? " ×" : "") : ""))])];
  return root;
}

function colourBar(root, scale, x, top, height) {
  const n = 40;
  for (let i = 0; i < n; i++) {
    const value = scale.low + ((scale.high - scale.low) * (i + 0.5)) / n;
    root.append(svg("rect", { x, y: top + height - ((i + 1) * height) / n, width: 10, height: height / n + 0.6, fill: toCss(scale.colour(value)) }));
  }
  for (const v of [scale.low, (scale.low + scale.high) / 2, scale.high]) {
    axisText(root, x + 14, top + height - ((v - scale.low) / (scale.high - scale.low)) * height + 3.5, formatNumber(v, 2), { "text-anchor": "start" });
  }
}

// A horizontal viridis ramp with its ends, for legends.
function ramp(label, low, high) {
  const strip = make("span", { class: "ramp", "aria-hidden": "true" });
  strip.style.background = `linear-gradient(to right, ${STYLE.viridis.join(",")})`;
  return make("span", { class: "key" }, `${label} ${low}`, strip, high);
}

// spec: {title, x: {label, format}, y: {label, format}, points: [{x, y, colour, lines}], front: [indices], size}
function scatterChart(spec) {
  const width = roomFor(spec.size?.width || 520), height = spec.size?.height || 340;
  const root = chartRoot(width, height, `${spokenTitle(spec)}: ${spec.y.label} against ${spec.x.label}`);
  const points = spec.points.filter((p) => known(p.x) && known(p.y));
  const [x0, x1] = extent(points.map((p) => p.x)), [y0, y1] = extent(points.map((p) => p.y), 0.06, spec.y.format === formatPercent ? 0.1 : 0);
  const scaleX = alongAxis(spec.x, x0, x1, MARGIN.left, width - MARGIN.right);
  const scaleY = alongAxis(spec.y, y0, y1, height - MARGIN.bottom, MARGIN.top);
  frame(root, spec, { width, height }, scaleX, scaleY, niceTicks(x0, x1, 6), niceTicks(y0, y1, 5));
  if (spec.front) root.append(svg("polyline", { points: spec.front.map((p) => `${scaleX(p.x)},${scaleY(p.y)}`).join(" "), class: "front" }));
  for (const p of points) root.append(svg("circle", { cx: scaleX(p.x), cy: scaleY(p.y), r: 6, fill: p.colour, class: "point" }));
  const ring = svg("circle", { r: 10, class: "ring", visibility: "hidden" });
  root.append(ring);
  const order = points.slice().sort((a, b) => a.x - b.x);
  const format = spec.y.format || formatNumber;
  let at = -1;
  const read = (index, spoken) => {
    at = Math.max(0, Math.min(order.length - 1, index));
    const p = order[at];
    if (!p) return;
    ring.setAttribute("cx", scaleX(p.x));
    ring.setAttribute("cy", scaleY(p.y));
    ring.setAttribute("visibility", "visible");
    showTip([...p.lines.map((text) => ({ text })), { text: `${spec.x.label}: ${formatNumber(p.x)}` }, { text: `${spec.y.label}: ${format(p.y)}` }],
      ...onScreen(root, scaleX(p.x), scaleY(p.y)), spoken);
  };
  readable(root, {
    point: (px, py) => {
      if (!order.length) return;
      const gap = (p) => (scaleX(p.x) - px) ** 2 + (scaleY(p.y) - py) ** 2;
      read(order.reduce((best, p, i) => (gap(p) < gap(order[best]) ? i : best), 0), false);
    },
    key: (key) => ({ ArrowRight: 1, ArrowLeft: -1 }[key] ? (read(at + { ArrowRight: 1, ArrowLeft: -1 }[key], true), true) : false),
    leave: () => ring.setAttribute("visibility", "hidden"),
  });
  root.numbers = () => [["Trial", spec.x.label, spec.y.label], order.map((p) => [p.lines[0], formatNumber(p.x), format(p.y)])];
  return root;
}
