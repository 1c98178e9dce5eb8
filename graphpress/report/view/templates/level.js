// A module drawn by Netron: a graph laid out by dagre, with open modules as graphs within nodes. It is laid out without
// the page, by what the texts measure; its elements are made once it comes into sight.

const PAD = 10;
const PORTS = 4; // more of what a module reads or gives share one
const short = (text, most = 30) => (text.length > most ? `${text.slice(0, most / 2 - 1)}…${text.slice(1 - most / 2)}` : text);

// Modules of one shape, as the layers of a network are, are laid out once: boxes of the same sizes, edges at the same ones.
const layouts = new Map();
const worker = {
  request: async (m) => {
    const at = new Map(m.nodes.map((n, i) => [n.v, i]));
    const shape = JSON.stringify([m.nodes.map((n) => [n.width, n.height]), m.edges.map((e) => [at.get(e.v), at.get(e.w)]), m.layout]);
    const known = layouts.get(shape);
    if (!known) {
      dagre.layout(m.nodes, m.edges, m.layout, m.state);
      layouts.set(shape, { nodes: m.nodes, edges: m.edges });
      return m;
    }
    m.nodes.forEach((n, i) => Object.assign(n, known.nodes[i], { v: n.v }));
    m.edges.forEach((e, i) => Object.assign(e, known.edges[i], { v: e.v, w: e.w }));
    return m;
  },
};

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
    this.room = drawn("rect", { class: "room" });
    parent.prepend(this.room);
  }

  remove() {
    this.room?.remove();
    this.level.element?.remove();
  }

  async measure() {
    await this.level.arrange();
    this.width = this.level.width + 2 * PAD;
    this.height = this.level.height + 2 * PAD;
  }

  layout() {}

  // From the corner of the node to the origin of the graph within.
  get shift() { return [(this.width - this.level.width) / 2 - this.level.originX, this.y + PAD - this.level.originY]; }

  update() {
    for (const [k, v] of Object.entries({ x: 0, y: this.y, width: this.width, height: this.height })) this.room.setAttribute(k, v);
    this.level.element?.setAttribute("transform", `translate(${this.shift})`);
  }

  show(shown) {
    const { element } = this.level;
    if (element) element.style.display = shown ? "" : "none";
    if (!shown || element?.parentNode === this.room.parentNode) return;
    this.room.after(this.level.show());
    this.update();
  }
}

class Level extends grapher.Graph {
  constructor(pane, key) {
    super(false);
    this.options = { direction: "vertical" };
    this.pane = pane;
    this.key = key;
    this.parts = new Map(); // "#i" or a module's key -> its node
    this.fresh = this.moved = true; // to be laid out; the elements are elsewhere
    const { tree } = pane, group = tree.group(key), { flows, entering, leaving } = tree.level(key);
    const children = [...[...group.groups].map((k) => [k, tree.group(k).all[0]]), ...group.leaves.map((i) => [`#${i}`, i])];
    for (const [k] of children.sort((a, b) => a[1] - b[1])) this.add(k, k[0] === "#" ? pane.leaf(+k.slice(1)) : pane.module(k));
    this.ports(entering, "from", (port, child) => [port, child]);
    this.ports(leaving, "to", (port, child) => [child, port]);
    for (const [from, to, count] of flows) this.connect(from, to, count);
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
    this.fresh = false;
    this.moved = true;
  }

  // The elements, made where there are none yet, at their places.
  show() {
    if (!this.element) {
      this.element = drawn("g", {});
      this.build(document, this.element);
      this.pane.dress(this);
    }
    if (this.moved) this.update();
    this.moved = false;
    return this.element;
  }
}
