// Colours by kernel, bits, SQNR, time or change; a module shows what its operators have in common, its worst or its sum.

const GREY = null;
const KINDS = { integer: "#1b7f5c", "weight-only": "#2f6fb0", float: "#d98e04", fallback: "#c0392b", mixed: "#8a79ad" };
const WIDTHS = { 1: "#0b3c5d", 2: "#11557f", 3: "#17699a", 4: "#1f7fb8", 6: "#3c9bcb", 8: "#2a9d8f", 16: "#e9b44c", 32: "#d1495b" };
const CHANGES = { same: GREY, changed: "#2f6fb0", "new": "#1b7f5c", gone: "#c0392b" };
const DECIBELS = [10, 45];

const mix = (stops, share) => {
  const at = Math.max(0, Math.min(1, share)) * (stops.length - 1), low = Math.min(Math.floor(at), stops.length - 2);
  const [a, b] = [stops[low], stops[low + 1]].map((c) => [1, 3, 5].map((i) => parseInt(c.slice(i, i + 2), 16)));
  return "#" + a.map((v, i) => Math.round(v + (b[i] - v) * (at - low)).toString(16).padStart(2, "0")).join("");
};
const dark = (colour) => {
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
  return 0.299 * r + 0.587 * g + 0.114 * b < 150;
};
const HEAT = ["#f7f0d0", "#f3a75b", "#c93f5f", "#5b1a72"], QUALITY = ["#a4193d", "#e8a13a", "#f1e9a6", "#4fa36b", "#14614a"];

const changed = (node) => {
  if (!node.twins) return "same";
  if (!node.twins.length) return node.side === "after" ? "new" : "gone";
  if (node.side === "after" && node.name !== other(node).nodes[node.twins[0]].name) return "new";
  const twin = other(node).nodes[node.twins[0]];
  return twin.op === node.op && (twin.scheme ?? "") === (node.scheme ?? "") && (twin.bits ?? 0) === (node.bits ?? 0) ? "same" : "changed";
};
const other = (node) => data.sides[node.side === "after" ? "before" : "after"];

const COLOURS = {
  kernel: {
    of: (n) => n.verdict || null,
    join: (all) => (new Set(all).size === 1 ? all[0] : "mixed"),
    colour: (v) => KINDS[v] ?? GREY,
    text: (v) => v,
  },
  bits: {
    of: (n) => n.bits ?? null,
    join: (all) => Math.min(...all),
    colour: (v) => WIDTHS[v] ?? mix(Object.values(WIDTHS), v / 32),
    text: (v) => `${v} bits`,
  },
  SQNR: {
    of: (n) => n.sqnr ?? null,
    join: (all) => Math.min(...all),
    colour: (v) => mix(QUALITY, (v - DECIBELS[0]) / (DECIBELS[1] - DECIBELS[0])),
    text: (v) => `${v.toFixed(1)} dB`,
    ramp: [QUALITY, `≤ ${DECIBELS[0]} dB`, `≥ ${DECIBELS[1]} dB`, "worst of a module"],
  },
  time: {
    of: (n) => n.microseconds || null,
    join: (all) => all.reduce((a, b) => a + b, 0),
    colour: (v) => mix(HEAT, Math.sqrt(v / longest)),
    text: (v) => (v < 1000 ? `${v.toFixed(0)} µs` : `${(v / 1000).toFixed(2)} ms`),
    ramp: [HEAT, "0", null, "sum of a module; shade by square root"],
  },
  change: {
    of: (n) => changed(n),
    join: (all) => (new Set(all).size === 1 ? all[0] : "changed"),
    colour: (v) => CHANGES[v],
    text: (v) => v,
  },
};
const sum = (values) => values.reduce((a, b) => a + b, 0);
const longest = Math.max(1, ...Object.values(data.sides).map((s) => sum(s.nodes.map((n) => n.microseconds ?? 0)) / 4));

const value = (tree, key, how) => {
  if (key.startsWith("#")) return how.of(tree.nodes[+key.slice(1)]);
  const known = tree.group(key).all.map((i) => how.of(tree.nodes[i])).filter((v) => v !== null);
  return known.length ? how.join(known) : null;
};
