"use strict";
// Decoding of tables, colours, numbers and small DOM helpers. Nothing here knows what is drawn.

const DATA = JSON.parse(document.getElementById("data").textContent);
const STYLE = DATA.style;
const state = { printing: false };

function bytes(text) {
  const raw = atob(text);
  const out = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
  return out.buffer;
}

function decodeSteps(text, low, high) {
  const codes = new Uint16Array(bytes(text));
  return Float64Array.from(codes, (c) => (c === 65535 ? NaN : low + ((high - low) * c) / 65534));
}

function decodeColumn(column) {
  if (column.words) {
    const codes = column.bits === 8 ? new Uint8Array(bytes(column.data)) : new Uint16Array(bytes(column.data));
    return Array.from(codes, (c) => column.words[c]);
  }
  if (column.low !== undefined) return decodeSteps(column.data, column.low, column.high);
  return new Float32Array(bytes(column.data));
}

// An encoded table -> array of row objects.
function decodeTable(table) {
  if (!table) return null;
  const names = Object.keys(table.columns);
  const columns = names.map((n) => decodeColumn(table.columns[n]));
  const rows = new Array(table.n);
  for (let i = 0; i < table.n; i++) {
    const row = {};
    for (let k = 0; k < names.length; k++) row[names[k]] = columns[k][i];
    rows[i] = row;
  }
  return rows;
}

const decoded = new Map();
function tableOf(point, name) {
  const key = point.label + "\n" + name;
  if (!decoded.has(key)) decoded.set(key, decodeTable(point[name]));
  return decoded.get(key);
}

const unique = (values) => [...new Set(values)];
const ascending = (values) => unique(values).sort((a, b) => a - b);
const known = (v) => v !== null && v !== undefined && Number.isFinite(v);
const nameOf = (key) => STYLE.names[key] || String(key).replaceAll("_", " ");
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const slug = (text) => text.toLowerCase().replace(/[^a-z0-9]+/g, "-");

function formatNumber(value, digits = 3) {
  if (!known(value)) return "n/a";
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 1e5)) return value.toExponential(1).replaceAll("-", "−");
  const small = size !== 0 && size < 0.1;
  const text = size >= 100 ? value.toFixed(0) : size >= 10 ? value.toFixed(1) : small ? value.toPrecision(digits - 1) : value.toFixed(digits - 1);
  return text.replace("-", "−");
}
const formatPercent = (value) => (known(value) ? (100 * value).toFixed(0).replace("-", "−") + " %" : "n/a");
const formatQ = (q) => (!known(q) ? "n/a" : q < 0.0005 ? "< 0.0005" : q.toFixed(3));
const formatInterval = (low, high, format = formatNumber) =>
  known(low) && known(high) ? ` [${format(low)}, ${format(high)}]` : "";

// ---- colours

const isDark = () =>
  !state.printing && getComputedStyle(document.documentElement).getPropertyValue("--dark").trim() === "1";

function mix(stops, share) {
  const x = Math.min(1, Math.max(0, share)) * (stops.length - 1);
  const i = Math.min(stops.length - 2, Math.floor(x));
  const part = (hex, k) => parseInt(hex.slice(1 + 2 * k, 3 + 2 * k), 16);
  const rgb = [0, 1, 2].map((k) => Math.round(part(stops[i], k) + (x - i) * (part(stops[i + 1], k) - part(stops[i], k))));
  return rgb;
}
const toCss = (rgb) => `rgb(${rgb.join(",")})`;
const inkOn = (rgb) => (0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 128 ? "#111" : "#fff");
const divergingStops = () => (isDark() ? STYLE.divergingDark : STYLE.diverging);

// The CSS variable that holds the one colour of a thing; the n-th series colour for a thing without its own.
function colourOf(thing, index = 0) {
  if (thing === "vision" || thing === "text") return `var(--${thing})`;
  if (STYLE.families.includes(thing)) return `var(--family-${thing})`;
  return `var(--series-${index % 8})`;
}

// ---- DOM

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.filter((c) => c !== null && c !== undefined));
  return node;
}

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

function numbersTable(head, rows, caption) {
  const cell = (tag, text, extra = {}) => make(tag, extra, String(text));
  return make(
    "div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    make("table", {},
      make("caption", {}, caption),
      make("thead", {}, make("tr", {}, ...head.map((h) => cell("th", h, { scope: "col" })))),
      make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((v, i) =>
        i ? cell("td", v) : cell("th", v, { scope: "row" }))))),
    ),
  );
}

const tip = document.getElementById("tip");
const live = document.getElementById("live");

function showTip(lines, x, y, spoken) {
  tip.replaceChildren(...lines.map((line, i) => {
    const row = make("div", { class: i ? "" : "tip-head" });
    if (line.colour) {
      const dot = make("span", { class: "dot" });
      dot.style.background = line.colour;
      row.append(dot);
    }
    row.append(line.text ?? line);
    return row;
  }));
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(x + 14, window.innerWidth - box.width - 8)) + "px";
  tip.style.top = Math.max(4, y + 16 + box.height > window.innerHeight ? y - box.height - 10 : y + 16) + "px";
  if (spoken) live.textContent = lines.map((line) => line.text ?? line).join(". ");
}
const hideTip = () => { tip.hidden = true; };

// Where the pointer or keyboard cursor is, in page pixels, for a point of an SVG's own coordinates.
function onScreen(root, x, y) {
  const box = root.getBoundingClientRect();
  const view = root.viewBox.baseVal;
  return [box.left + ((x - view.x) / view.width) * box.width, box.top + ((y - view.y) / view.height) * box.height];
}
function inSvg(root, event) {
  const box = root.getBoundingClientRect();
  const view = root.viewBox.baseVal;
  return [view.x + ((event.clientX - box.left) / box.width) * view.width, view.y + ((event.clientY - box.top) / box.height) * view.height];
}

function niceTicks(low, high, count = 5, whole = false) {
  if (!(high > low)) return [low];
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough);
  if (whole) step = Math.max(1, Math.ceil(step));
  const ticks = [];
  for (let t = Math.ceil(low / step - 1e-9) * step; t <= high + step * 1e-9; t += step) ticks.push(+t.toPrecision(10));
  return ticks;
}
