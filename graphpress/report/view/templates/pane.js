// One model drawn by Netron: a graph a module, laid out by dagre, with open modules as graphs within nodes.

const worker = { request: async (m) => { dagre.layout(m.nodes, m.edges, m.layout, m.state); return m; } };
const PAD = 10;
const PORTS = 4; // more of what a module reads or gives share one
const short = (text, most = 30) => (text.length > most ? `${text.slice(0, most / 2 - 1)}…${text.slice(1 - most / 2)}` : text);

// Netron asks the browser for the box of every text, which lays out all of the page each time: a canvas knows it too.
const FONTS = { op: "600 11px system-ui, sans-serif", size: "11px system-ui, sans-serif", name: "10px system-ui, sans-serif" };
const ruler = document.createElement("canvas").getContext("2d"), widths = new Map();
const wide = (text, font) => {
  const key = `${font}|${text}`;
  if (!widths.has(key)) {
    ruler.font = font;
    widths.set(key, ruler.measureText(text).width);
  }
  return widths.get(key);
};
const written = (header, kind, text, onclick) => {
  const entry = header.add(null, [kind]);
  Object.assign(entry, {
    content: text, tx: 7, ty: 15,
    measure: () => Object.assign(entry, { width: wide(entry.content, FONTS[kind]) + 15, height: 21 }),
  });
  if (onclick) entry.on("click", onclick);
  return entry;
};

// A block of a node that holds the graph of an open module.
class Inner {
  constructor(level) { this.level = level; }

  build(document, parent) {
    this.room = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    this.room.setAttribute("class", "room");
    this.level.build(document);
    parent.prepend(this.room, this.level.element);
  }

  remove() {
    this.room.remove();
    this.level.element.remove();
  }

  async measure() {
    await this.level.arrange();
    this.width = this.level.width + 2 * PAD;
    this.height = this.level.height + 2 * PAD;
  }

  layout() {}

  update() {
    const x = (this.width - this.level.width) / 2 - this.level.originX, y = this.y + PAD - this.level.originY;
    this.level.element.setAttribute("transform", `translate(${x},${y})`);
    for (const [k, v] of Object.entries({ x: 0, y: this.y, width: this.width, height: this.height })) this.room.setAttribute(k, v);
    this.level.settle();
  }
}

class Level extends grapher.Graph {
  constructor(pane, key) {
    super(false);
    this.options = { direction: "vertical" };
    this.pane = pane;
    this.key = key;
    this.parts = new Map(); // "#i" or a module's key -> its node
    this.fresh = true;
  }

  build(document) {
    if (this.element) return;
    this.element = document.createElementNS("http://www.w3.org/2000/svg", "g");
    const { tree } = this.pane, group = tree.group(this.key), { flows, entering, leaving } = tree.level(this.key);
    const children = [...[...group.groups].map((key) => [key, tree.group(key).all[0]]), ...group.leaves.map((i) => [`#${i}`, i])];
    for (const [key] of children.sort((a, b) => a[1] - b[1])) this.add(key, key[0] === "#" ? this.pane.leaf(+key.slice(1)) : this.pane.module(key));
    this.ports(entering, "from", (port, child) => [port, child]);
    this.ports(leaving, "to", (port, child) => [child, port]);
    for (const [from, to, count] of flows) this.connect(from, to, count);
    super.build(document, this.element);
  }

  add(key, node) {
    node.name = key;
    this.parts.set(key, node);
    this.setNode(node);
    return node;
  }

  ports(places, word, order) {
    const shared = places.size > PORTS ? `>${word}` : null, { tree } = this.pane;
    if (shared) this.add(shared, this.pane.port(`${word} ${places.size} others`, null));
    for (const [i, children] of places) {
      const key = shared ?? `>${word} ${i}`;
      if (!shared) this.add(key, this.pane.port(`${word} ${short(tree.nodes[i].name, 26)}`, i));
      for (const child of children) this.connect(...order(key, child), 1);
    }
  }

  connect(from, to, count) {
    if (this.edge(from, to)) return;
    const edge = new grapher.Edge(this.parts.get(from), this.parts.get(to));
    Object.assign(edge, { v: from, w: to, class: count > 1 ? "many" : "" });
    this.setEdge(edge);
  }

  async arrange() {
    if (!this.fresh) return;
    await this.measure();
    await this.layout(worker);
  }

  settle() {
    if (this.fresh) this.update();
    this.fresh = false;
  }
}

class Pane {
  constructor(side, name, parent, onselect) {
    Object.assign(this, { side, name, onselect, open: new Set(), levels: new Map(), x: 0, y: 0, scale: 1 });
    this.tree = new Tree(side);
    this.element = parent.appendChild(el("section", { class: "pane" }, el("h2", {}, `${name}: ${side.name}, ${side.nodes.length} operators`)));
    this.stage = this.element.appendChild(el("div", { class: "stage" }));
    this.svg = this.stage.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "svg"));
    this.gestures();
  }

  // Modules are opened, the outer ones first, as long as few boxes result.
  start(most = 45) {
    let shown = this.tree.group(ROOT).groups.size + this.tree.group(ROOT).leaves.length;
    for (const queue = [...this.tree.group(ROOT).groups]; queue.length; ) {
      const group = this.tree.group(queue.shift()), more = group.groups.size + group.leaves.length;
      if (shown + more > most) continue;
      this.open.add(group.key);
      shown += more;
      queue.push(...group.groups);
    }
  }

  leaf(i) {
    const node = new grapher.Node(), said = this.tree.nodes[i], pick = () => this.select(i);
    const head = written(node.header(), "op", said.op, pick);
    head.tooltip = said.name;
    if (said.scheme || said.sqnr !== undefined || said.op === "input" || said.op === "output" || said.histograms) written(node.header(), "name", short(said.name), pick);
    return Object.assign(node, { head });
  }

  module(key) {
    const node = new grapher.Node(), group = this.tree.group(key), header = node.header(), toggle = () => this.toggle(key);
    const head = written(header, "op", this.label(key), toggle);
    written(header, "size", `${group.all.length}`, toggle);
    head.tooltip = key;
    if (this.open.has(key)) node.blocks.push(new Inner(this.level(key)));
    return Object.assign(node, { head, class: "group" });
  }

  label(key) { return `${this.open.has(key) ? "▾" : "▸"} ${short(this.tree.group(key).name, 34)}`; }

  port(text, i) {
    const node = new grapher.Node();
    written(node.header(), "name", text, i === null ? null : () => this.select(i));
    return Object.assign(node, { class: "port" });
  }

  level(key) {
    if (!this.levels.has(key)) this.levels.set(key, new Level(this, key));
    return this.levels.get(key);
  }

  async draw() {
    const root = this.level(ROOT);
    if (this.root !== root) {
      root.build(document);
      this.svg.replaceChildren(root.element);
      this.root = root;
    }
    await root.arrange();
    root.settle();
    root.element.setAttribute("transform", `translate(${PAD - root.originX},${PAD - root.originY})`);
    this.width = root.width + 2 * PAD;
    this.height = root.height + 2 * PAD;
    this.svg.setAttribute("width", this.width);
    this.svg.setAttribute("height", this.height);
    this.paint();
    this.cull();
  }

  async toggle(key, opened = !this.open.has(key)) {
    const before = this.at(key);
    this.set(key, opened);
    await this.draw();
    const now = this.at(key);
    if (before && now) this.move(before.left - now.left, before.top - now.top);
    this.onselect(this, key);
  }

  // Open or close a module: where it is drawn, within its node; those around it are to be laid out anew.
  set(key, opened) {
    if (this.open.has(key) === opened) return;
    if (opened) this.open.add(key);
    else this.open.delete(key);
    for (const k of this.tree.chain(this.tree.group(key).above)) if (this.levels.has(k)) this.levels.get(k).fresh = true;
    const node = this.part(key);
    if (!node?.element) return;
    if (opened) {
      node.blocks.push(new Inner(this.level(key)));
      node.blocks[1].build(document, node.element);
    } else node.blocks.pop().remove();
    node.head.content = this.label(key);
    node.head.text.textContent = node.head.content;
  }

  async all(opened) {
    this.open = new Set(opened ? [...this.tree.groups.keys()].filter((k) => k !== ROOT) : []);
    this.levels.clear();
    await this.draw();
    this.fit();
  }

  part(key) { // the node that is drawn for "#i" or a module, if it is
    const home = key[0] === "#" ? this.tree.home[+key.slice(1)] : this.tree.group(key)?.above;
    return this.levels.get(home)?.parts.get(key) ?? null;
  }

  at(key) { // where it is on the screen, or would be
    const home = key[0] === "#" ? this.tree.home[+key.slice(1)] : key, outer = this.tree.chain(home).at(-2) ?? key;
    const around = this.levels.get(ROOT)?.parts.get(outer);
    if (around?.away) {
      around.element.style.display = "";
      around.away = false;
    }
    return this.part(key)?.head.element?.getBoundingClientRect() ?? null;
  }

  async reveal(i) {
    for (const key of this.tree.chain(this.tree.home[i]).reverse()) if (key !== ROOT) this.set(key, true);
    await this.draw();
    this.centre(`#${i}`);
  }

  centre(key) {
    const box = this.at(key), frame = this.element.getBoundingClientRect();
    if (!box) return;
    if (this.scale < 0.6) this.zoom(0.9 / this.scale, frame.width / 2, frame.height / 2);
    const now = this.at(key);
    this.move(frame.left + frame.width / 2 - (now.left + now.right) / 2, frame.top + frame.height / 2 - (now.top + now.bottom) / 2);
  }

  async select(i) {
    await this.reveal(i);
    await this.onselect(this, `#${i}`);
    this.centre(`#${i}`); // the details have taken their room by now
  }

  // Mark what is picked, what flows from and to it, and its counterparts.
  mark(key, twins) {
    for (const old of this.svg.querySelectorAll(".select, .twin, .near")) old.classList.remove("select", "twin", "near");
    for (const i of twins) this.part(`#${i}`)?.element.classList.add("twin");
    const part = key === null ? null : this.part(key);
    if (!part) return;
    part.element.classList.add("select");
    const home = key[0] === "#" ? this.tree.home[+key.slice(1)] : this.tree.group(key).above;
    for (const { label } of this.levels.get(home).edges.values()) if (label.v === key || label.w === key) label.element.classList.add("near");
  }

  paint(name = this.colour) {
    this.colour = name;
    for (const level of this.levels.values()) {
      for (const [key, part] of level.parts) {
        if (!part.head?.element) continue;
        const known = value(this.tree, key, COLOURS[name]), fill = known === null ? null : COLOURS[name].colour(known);
        part.head.element.style.setProperty("--fill", fill ?? "");
        part.head.element.style.setProperty("--text", fill === null ? "" : dark(fill) ? "#fff" : "#15191d");
      }
    }
  }

  place() {
    this.stage.style.transform = `translate(${this.x}px,${this.y}px) scale(${this.scale})`;
    this.stage.classList.toggle("far", this.scale < 0.3); // nobody can read it, and it takes most of the time
    this.frame ??= requestAnimationFrame(() => this.cull());
  }

  // Of the outermost level, what is a screen or more away is not drawn.
  cull() {
    this.frame = null;
    const level = this.levels.get(ROOT), { clientWidth: w, clientHeight: h } = this.element;
    for (const { label: n } of level.nodes.values()) {
      const x = this.x + (n.x - level.originX + PAD) * this.scale, y = this.y + (n.y - level.originY + PAD) * this.scale;
      const away = Math.abs(x - w / 2) - (n.width * this.scale) / 2 > 1.5 * w || Math.abs(y - h / 2) - (n.height * this.scale) / 2 > 1.5 * h;
      if (away !== (n.away ?? false)) n.element.style.display = away ? "none" : "";
      n.away = away;
    }
  }

  move(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.place();
  }

  zoom(factor, x, y) {
    const scale = Math.max(0.02, Math.min(4, this.scale * factor)), f = scale / this.scale;
    this.x = x - (x - this.x) * f;
    this.y = y - (y - this.y) * f;
    this.scale = scale;
    this.place();
  }

  fit() {
    const { width, height } = this.element.getBoundingClientRect(), top = 30;
    const whole = Math.min(width / this.width, (height - top) / this.height, 1.3);
    this.scale = whole > 0.45 ? whole : Math.max(whole, Math.min(1, width / this.width, 0.8));
    this.x = (width - this.width * this.scale) / 2;
    this.y = top;
    this.place();
  }

  gestures() {
    const points = new Map(), pane = this.element;
    let moved = false, quiet = 0;
    const moving = () => {
      this.stage.classList.add("moving");
      clearTimeout(quiet);
      quiet = setTimeout(() => this.stage.classList.remove("moving"), 200);
    };
    pane.addEventListener("pointerdown", (e) => {
      points.set(e.pointerId, [e.clientX, e.clientY]);
      moved = moved && points.size > 1;
    });
    pane.addEventListener("pointermove", (e) => {
      const last = points.get(e.pointerId);
      if (!last || (!moved && Math.hypot(e.clientX - last[0], e.clientY - last[1]) < 5)) return;
      if (!moved) pane.setPointerCapture(e.pointerId);
      moved = true;
      pane.classList.add("drag");
      moving();
      const rest = [...points].find(([id]) => id !== e.pointerId)?.[1];
      points.set(e.pointerId, [e.clientX, e.clientY]);
      if (!rest) return this.move(e.clientX - last[0], e.clientY - last[1]);
      const frame = pane.getBoundingClientRect(), far = Math.hypot(last[0] - rest[0], last[1] - rest[1]) || 1;
      this.zoom(Math.hypot(e.clientX - rest[0], e.clientY - rest[1]) / far, (e.clientX + rest[0]) / 2 - frame.left, (e.clientY + rest[1]) / 2 - frame.top);
    });
    for (const name of ["pointerup", "pointercancel"]) {
      pane.addEventListener(name, (e) => {
        points.delete(e.pointerId);
        if (!points.size) pane.classList.remove("drag");
      });
    }
    pane.addEventListener("click", (e) => { // what ends a drag is no click
      if (moved) e.stopPropagation();
      moved = false;
    }, true);
    pane.addEventListener("wheel", (e) => {
      e.preventDefault();
      moving();
      const frame = pane.getBoundingClientRect();
      if (e.ctrlKey || e.metaKey) this.zoom(Math.exp(-e.deltaY / 200), e.clientX - frame.left, e.clientY - frame.top);
      else this.move(-e.deltaX, -e.deltaY);
    }, { passive: false });
  }
}
