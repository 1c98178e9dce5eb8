// The controls: what is shown, coloured, found and selected.

const { panes, picked } = { panes: [], picked: { pane: null, key: null } };
const $ = (id) => document.getElementById(id);
const order = ["before", "after"].filter((name) => data.sides[name]);
const narrow = matchMedia("(max-width: 720px)");
let shown = narrow.matches || order.length < 2 ? "after" : "both";

const known = (name) => Object.values(data.sides).some((s) => s.nodes.some((n) => COLOURS[name].of(n) !== null));
const choices = Object.keys(COLOURS).filter((c) => c !== "change" || order.length > 1);

const legend = (name) => {
  const how = COLOURS[name], box = $("legend"), swatch = (colour, text, css = "") => {
    const i = el("i", { class: css });
    i.style.background = colour ?? "var(--plain)";
    return el("span", {}, i, text);
  };
  box.replaceChildren();
  if (how.ramp) {
    const [stops, low, high, note] = how.ramp;
    box.append(el("span", {}, low), swatch(`linear-gradient(90deg, ${stops.join(",")})`, high ?? `≥ ${how.text(longest)}`, "ramp"), el("span", { class: "soft" }, note));
  } else {
    const found = new Set(panes.filter((p) => !p.element.hidden).flatMap((p) => p.tree.nodes.map(how.of)).filter((v) => v !== null));
    const all = name === "kernel" ? Object.keys(KINDS).filter((k) => found.has(k) || (k === "mixed" && found.size > 1)) : [...found].sort((a, b) => a - b || String(a).localeCompare(b));
    box.append(...all.map((v) => swatch(how.colour(v), how.text(v))));
    if (name === "bits") box.append(el("span", { class: "soft" }, "lowest of a module"));
  }
  if (name !== "change") box.append(swatch(null, "no figure"));
};

const show = async () => {
  $("panes").classList.toggle("both", shown === "both");
  for (const pane of panes) pane.element.hidden = shown !== "both" && shown !== pane.name;
  for (const button of $("sides").children) button.classList.toggle("on", button.value === shown);
  for (const pane of panes.filter((p) => !p.element.hidden && !p.ready)) {
    await pane.draw();
    pane.ready = true;
    pane.fit();
  }
  legend($("colour").value);
};

const details = (pane, key) => {
  const aside = $("details"), close = el("button", { class: "close", title: "Close (Esc)", "aria-label": "Close" }, "×");
  close.addEventListener("click", () => pick(null, null));
  aside.hidden = key === null;
  if (key === null) return;
  const twins = key[0] === "#" ? counterparts(pane, +key.slice(1)) : [];
  aside.replaceChildren(close, ...(key[0] === "#" ? operator(pane, +key.slice(1), twins) : module(pane, key)));
  aside.scrollTop = 0;
};

const counterparts = (pane, i) => {
  const twin = panes.find((p) => p !== pane), node = pane.tree.nodes[i];
  if (!twin) return [];
  const word = pane.name === "after" ? "Before" : "After";
  if (!node.twins.length) return list(word, [pane.name === "after" ? "was not there" : "is no longer there"]);
  return list(word, node.twins.map((j) => {
    const go = el("button", { class: "go" }, `${twin.tree.nodes[j].op}: ${twin.tree.nodes[j].name}`);
    go.addEventListener("click", async () => {
      if (shown !== "both") shown = twin.name;
      await show();
      await twin.select(j);
    });
    const was = twin.tree.nodes[j].scheme;
    return el("span", {}, go, was ? ` ${was}` : "");
  }));
};

// `#a/b` is a module, `#12` a node; the other model shows its counterparts.
const pick = async (pane, key) => {
  Object.assign(picked, { pane, key });
  details(pane, key);
  const twins = pane && key !== null && key[0] === "#" ? (pane.tree.nodes[+key.slice(1)].twins ?? []) : [];
  for (const p of panes) {
    if (!p.ready) continue;
    if (p !== pane && twins.length && !p.element.hidden) await p.reveal(twins[0]);
    p.mark(p === pane ? key : null, p === pane ? [] : twins);
  }
};

// A module that is opened in one model is opened in the other.
const selected = async (pane, key) => {
  for (const p of panes) {
    if (p === pane || key[0] === "#" || !p.tree.group(key) || p.open.has(key) === pane.open.has(key)) continue;
    p.set(key, pane.open.has(key));
    if (p.ready) await p.draw();
  }
  await pick(pane, key);
};

const find = () => {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean), box = $("found"), hits = [];
  box.replaceChildren();
  for (const pane of words.length ? panes.filter((p) => !p.element.hidden) : []) {
    pane.tree.nodes.forEach((n, i) => {
      const text = `${n.name} ${n.op} ${n.path.join("/")} ${n.scheme ?? ""} ${n.verdict ?? ""} ${n.kernel ?? ""}`.toLowerCase();
      if (words.every((w) => text.includes(w))) hits.push([pane, i]);
    });
  }
  const fits = ([pane, i]) => pane.tree.nodes[i].name.toLowerCase().endsWith(words.at(-1)) ? 0 : 1; // the site before what was made for it
  hits.sort((a, b) => fits(a) - fits(b));
  for (const [pane, i] of hits.slice(0, 60)) {
    const n = pane.tree.nodes[i], item = el("li", { class: "hit" }, el("b", {}, n.op), ` ${n.name} `, el("span", { class: "soft" }, `${n.path.join(" / ")}${order.length > 1 ? ` (${pane.name})` : ""}`));
    item.addEventListener("click", () => { box.hidden = true; pane.select(i); });
    box.append(item);
  }
  if (words.length && (hits.length > 60 || !hits.length)) box.append(el("li", { class: "soft" }, hits.length ? `and ${hits.length - 60} more` : "nothing of that name"));
  box.hidden = !words.length;
  box.querySelector(".hit")?.classList.add("on");
};

const searching = (e) => {
  const box = $("found"), items = [...box.querySelectorAll(".hit")], at = items.findIndex((i) => i.classList.contains("on"));
  if (e.key === "Enter") items[at]?.click();
  const step = { ArrowDown: 1, ArrowUp: -1 }[e.key];
  if (!step || !items.length) return;
  e.preventDefault();
  items[at]?.classList.remove("on");
  const next = items[(at + step + items.length) % items.length];
  next.classList.add("on");
  next.scrollIntoView({ block: "nearest" });
};

const each = async (act) => { for (const pane of panes.filter((p) => p.ready && !p.element.hidden)) await act(pane); };
const middle = (factor) => each((p) => p.zoom(factor, p.element.clientWidth / 2, p.element.clientHeight / 2));
const every = async (opened) => {
  document.body.classList.add("busy");
  await new Promise((done) => setTimeout(done, 30)); // the page says first that it is busy
  await each((p) => p.all(opened));
  if (picked.key !== null) await pick(picked.pane, picked.key);
  document.body.classList.remove("busy");
};
const KEYS = { "+": () => middle(1.25), "=": () => middle(1.25), "-": () => middle(0.8), 0: () => each((p) => p.fit()), "/": () => $("search").focus() };

const begin = async () => {
  $("about").textContent = data.about;
  $("notes").textContent = data.notes.join(" ");
  for (const name of choices) {
    const option = el("option", { value: name }, known(name) ? name : `${name} (not known)`);
    option.disabled = !known(name);
    $("colour").append(option);
  }
  $("colour").value = choices.find(known) ?? choices[0];
  for (const name of order) {
    data.sides[name].nodes.forEach((n) => { n.side = name; });
    const pane = new Pane(data.sides[name], name, $("panes"), selected);
    pane.colour = $("colour").value;
    pane.start();
    panes.push(pane);
  }
  for (const name of order.length > 1 ? [...order, "both"] : []) {
    const button = el("button", { value: name }, name);
    button.addEventListener("click", async () => { shown = name; await show(); await each((p) => p.fit()); });
    $("sides").append(button);
  }
  $("colour").addEventListener("change", () => { panes.forEach((p) => p.paint($("colour").value)); legend($("colour").value); });
  $("search").addEventListener("input", find);
  $("search").addEventListener("keydown", searching);
  for (const [id, act] of Object.entries({ expand: () => every(true), collapse: () => every(false), fit: KEYS[0], in: KEYS["+"], out: KEYS["-"] })) $(id).addEventListener("click", act);
  document.addEventListener("keydown", (e) => {
    if (e.key === "Escape") { $("found").hidden = true; pick(null, null); }
    else if (!/INPUT|SELECT/.test(e.target.tagName) && KEYS[e.key] && !e.ctrlKey) { e.preventDefault(); KEYS[e.key](); }
  });
  await show();
  document.body.dataset.ready = "yes";
};

await begin();
