// What a click shows of an operator or a module. Text goes in as text: names come from files of others.

const el = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [k, v] of Object.entries(attributes)) made.setAttribute(k, v);
  made.append(...children.filter((c) => c !== null && c !== undefined));
  return made;
};
const drawn = (tag, attributes) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [k, v] of Object.entries(attributes)) made.setAttribute(k, v);
  return made;
};
const figure = (v) => (v === 0 ? "0" : Math.abs(v) >= 1e5 || Math.abs(v) < 1e-3 ? v.toExponential(2) : `${+v.toPrecision(4)}`);
const rows = (pairs) => el("dl", {}, ...pairs.filter(([, v]) => v !== null && v !== undefined && v !== "").flatMap(([k, v]) => [el("dt", {}, k), el("dd", {}, v)]));
const list = (title, items) => (items?.length ? [el("h4", {}, title), el("ul", {}, ...items.map((i) => el("li", {}, i)))] : []);

const bars = (title, { counts, low, high, every }, marks = []) => {
  const most = Math.sqrt(Math.max(...counts)) || 1, svg = drawn("svg", { viewBox: `0 0 ${counts.length} 100`, preserveAspectRatio: "none", role: "img", "aria-label": title });
  counts.forEach((c, i) => c && svg.append(drawn("rect", { x: i, y: 100 - (100 * Math.sqrt(c)) / most, width: 0.92, height: (100 * Math.sqrt(c)) / most })));
  for (const m of marks) {
    const x = (counts.length * (m - low)) / (high - low || 1);
    if (x >= 0 && x <= counts.length) svg.append(drawn("line", { x1: x, x2: x, y1: 0, y2: 100 }));
  }
  const note = every > 1 ? `heights: √count, every ${every}th element` : "heights: √count";
  return [el("h4", {}, title), svg, el("div", { class: "axis" }, el("span", {}, figure(low)), el("span", {}, note), el("span", {}, figure(high)))];
};

const seen = (h) => {
  const high = h.start + h.width * h.counts.length;
  return [...bars(`Values seen: ${h.edge}`, { counts: h.counts, low: h.start, high, every: 1 }, [h.lo, h.hi]),
    el("p", {}, `seen ${figure(h.min)} to ${figure(h.max)}, kept ${figure(h.lo)} to ${figure(h.hi)}`)];
};

const links = (title, pane, pairs) => {
  const names = new Map(pairs.map(([i, value]) => [i, value]));
  return list(title, [...names].slice(0, 40).map(([i, value]) => {
    const go = el("button", { class: "go", title: `value ${value}` }, `${pane.tree.nodes[i].op}: ${pane.tree.nodes[i].name}`);
    go.addEventListener("click", () => pane.select(i));
    return go;
  }));
};

// Of the weights as they are, and as they were before.
const weights = (n) => {
  const twin = n.twins?.length ? other(n).nodes[n.twins[0]] : null, was = twin?.name === n.name ? twin.histograms ?? [] : [];
  const named = (word) => (h) => bars(`Weights${word}, input ${h.slot}`, h);
  return [...(n.histograms ?? []).flatMap(named("")), ...was.flatMap(named(n.side === "after" ? " before" : " after"))];
};

const operator = (pane, i, twins) => {
  const n = pane.tree.nodes[i], time = n.microseconds ? `${COLOURS.time.text(n.microseconds)}${n.share ? ` (${(100 * n.share).toFixed(1)} %)` : ""}` : "";
  const runs = n.verdict ? `${n.verdict}${n.kernel ? `, kernel ${n.kernel}` : ""}` : "";
  const told = [
    ["module", n.path.join(" / ")],
    ["scheme", n.scheme || (n.verdict || n.skip || n.histograms ? "float" : "")],
    ["bits", n.bits === undefined ? "" : `${n.bits}`],
    [n.side === "before" && n.twins ? "runs after as" : "runs as", runs],
    ["why", [n.reason, n.skip].filter((v, k, all) => v && all.indexOf(v) === k).join("; ")],
    ["SQNR", n.sqnr !== undefined ? `${n.sqnr.toFixed(1)} dB` : n.unmeasured ? `not measured: ${n.unmeasured}` : ""],
    ["time", time],
    ["weights", n.weights ? n.weights.toLocaleString("en") : ""],
    ["multiply-adds", n.macs ? n.macs.toLocaleString("en") : ""],
    ["made by", n.by], ["made for", n.origin && n.origin !== n.name ? n.origin : ""],
  ];
  return [
    el("h3", {}, n.name), el("div", { class: "soft" }, n.op), rows(told),
    ...twins,
    ...list("Ranges", n.ranges), ...list("Constants", n.constants),
    ...weights(n),
    ...(n.seen ?? []).flatMap(seen),
    ...list("Gives", n.gives), ...links("Reads from", pane, pane.tree.into[i]), ...links("Read by", pane, pane.tree.outof[i]),
  ];
};

const module = (pane, key) => {
  const group = pane.tree.group(key), nodes = group.all.map((i) => pane.tree.nodes[i]);
  const count = (values) => {
    const counts = new Map();
    for (const v of values) counts.set(v, (counts.get(v) ?? 0) + 1);
    return [...counts].sort((a, b) => b[1] - a[1]);
  };
  const table = (title, found) => (found.length ? [el("h4", {}, title), el("table", {}, ...found.map(([k, n]) => el("tr", {}, el("td", {}, `${k}`), el("td", {}, `${n}`))))] : []);
  const time = sum(nodes.map((n) => n.microseconds ?? 0)), worst = nodes.filter((n) => n.sqnr !== undefined).sort((a, b) => a.sqnr - b.sqnr)[0];
  const held = sum(nodes.map((n) => n.weights ?? 0));
  const open = el("button", {}, pane.open.has(key) ? "Close" : "Open");
  open.addEventListener("click", () => pane.toggle(key));
  return [
    el("h3", {}, group.name), el("div", { class: "soft" }, `module of ${nodes.length} operators`),
    rows([["time", time ? COLOURS.time.text(time) : ""], ["weights", held ? held.toLocaleString("en") : ""], ["worst SQNR", worst ? `${worst.sqnr.toFixed(1)} dB at ${worst.name}` : ""]]),
    open,
    ...table("Kernels of sites", count(nodes.filter((n) => n.verdict).map((n) => n.verdict))),
    ...table("Schemes", count(nodes.filter((n) => n.scheme).map((n) => n.scheme))),
    ...table("Operators", count(nodes.map((n) => n.op))),
  ];
};
