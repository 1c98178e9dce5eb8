// One model on the page: which modules are open, what is in sight, coloured and marked.

const SMALL = 24; // pixels: the inside of what is lower is not drawn

class Pane {
  constructor(side, name, parent, onselect) {
    Object.assign(this, { side, name, onselect, open: new Set(), levels: new Map(), marked: { key: null, twins: [] }, x: 0, y: 0, scale: 1 });
    this.tree = new Tree(side);
    this.element = parent.appendChild(el("section", { class: "pane" }, el("h2", {}, `${name}: ${side.name}, ${side.nodes.length} operators`)));
    this.stage = this.element.appendChild(el("div", { class: "stage" }));
    this.svg = this.stage.appendChild(drawn("svg", {}));
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
    if (this.open.has(key)) node.blocks.push(node.inner = new Inner(this.level(key)));
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
    await root.arrange();
    if (root.show().parentNode !== this.svg) this.svg.replaceChildren(root.element);
    root.element.setAttribute("transform", `translate(${this.origin(ROOT)})`);
    this.width = root.width + 2 * PAD;
    this.height = root.height + 2 * PAD;
    this.svg.setAttribute("width", this.width);
    this.svg.setAttribute("height", this.height);
    this.seen = null;
    this.place();
  }

  async toggle(key, opened = !this.open.has(key)) {
    const before = this.corner(key);
    this.set(key, opened);
    await this.draw();
    const now = this.corner(key);
    if (before && now) this.move((before[0] - now[0]) * this.scale, (before[1] - now[1]) * this.scale);
    this.onselect(this, key);
  }

  // Open or close a module: where it is drawn, within its node; those around it are to be laid out anew.
  set(key, opened) {
    if (this.open.has(key) === opened) return;
    if (opened) this.open.add(key);
    else this.open.delete(key);
    for (const k of this.tree.chain(this.tree.group(key).above)) if (this.levels.has(k)) this.levels.get(k).fresh = true;
    const node = this.part(key);
    if (!node) return;
    if (opened) {
      node.blocks.push(node.inner = new Inner(this.level(key)));
      if (node.element) node.inner.build(document, node.element);
    } else {
      node.blocks.pop().remove();
      node.inner = null;
    }
    node.head.content = this.label(key);
    if (node.element) node.head.text.textContent = node.head.content;
  }

  async all(opened) {
    for (const key of this.tree.groups.keys()) if (key !== ROOT) this.set(key, opened);
    await this.draw();
    this.fit();
  }

  part(key) { // the node that is drawn for "#i" or a module, if it is
    const home = key[0] === "#" ? this.tree.home[+key.slice(1)] : this.tree.group(key)?.above;
    return this.levels.get(home)?.parts.get(key) ?? null;
  }

  corner(key) { // of such a node on the stage; null where something around it is closed
    const home = key[0] === "#" ? this.tree.home[+key.slice(1)] : this.tree.group(key).above, part = this.part(key), at = part && this.origin(home);
    return at && [at[0] + part.x - part.width / 2, at[1] + part.y - part.height / 2];
  }

  origin(key) { // of the graph of a module
    const level = this.levels.get(key);
    if (key === ROOT) return [PAD - level.originX, PAD - level.originY];
    const inner = this.part(key)?.inner, at = inner && this.corner(key);
    return at && [at[0] + inner.shift[0], at[1] + inner.shift[1]];
  }

  async reveal(i) {
    for (const key of this.tree.chain(this.tree.home[i]).reverse()) if (key !== ROOT) this.set(key, true);
    await this.draw();
    this.centre(`#${i}`);
  }

  centre(key) {
    const { width, height } = this.element.getBoundingClientRect();
    if (this.scale < 0.6) this.zoom(0.9 / this.scale, width / 2, height / 2);
    const [x, y] = this.corner(key), part = this.part(key);
    this.move(width / 2 - this.x - (x + part.width / 2) * this.scale, height / 2 - this.y - (y + part.blocks[0].height / 2) * this.scale);
  }

  async select(i) {
    await this.reveal(i);
    await this.onselect(this, `#${i}`);
    this.centre(`#${i}`); // the details have taken their room by now
  }

  // Mark what is picked, what flows from and to it, and its counterparts.
  mark(key, twins) {
    this.marked = { key, twins };
    this.cull(); // what has come into sight has its elements
    for (const old of this.svg.querySelectorAll(".select, .twin, .near")) old.classList.remove("select", "twin", "near");
    for (const level of this.built()) this.point(level);
  }

  point(level) {
    const { key, twins } = this.marked, part = level.parts.get(key);
    for (const i of twins) level.parts.get(`#${i}`)?.element.classList.add("twin");
    if (!part) return;
    part.element.classList.add("select");
    for (const { label } of level.edges.values()) if (label.v === key || label.w === key) label.element.classList.add("near");
  }

  built() { return [...this.levels.values()].filter((level) => level.element); }

  paint(name) {
    this.colour = name;
    for (const level of this.built()) this.fill(level);
  }

  fill(level) {
    for (const [key, { head }] of level.parts) {
      if (!head) continue;
      const known = value(this.tree, key, COLOURS[this.colour]), colour = known === null ? null : COLOURS[this.colour].colour(known);
      head.element.style.setProperty("--fill", colour ?? "");
      head.element.style.setProperty("--text", colour === null ? "" : dark(colour) ? "#fff" : "#15191d");
    }
  }

  dress(level) { // whose elements are new
    this.fill(level);
    this.point(level);
  }

  place() {
    this.stage.style.transform = `translate(${this.x}px,${this.y}px) scale(${this.scale})`;
    this.stage.classList.toggle("far", this.scale < 0.3); // nobody can read it, and it takes most of the time
    const { x, y, scale, w, h } = this.seen ?? {}; // a screen around it is drawn as well
    if (scale !== this.scale || Math.abs(this.x - x) > w / 2 || Math.abs(this.y - y) > h / 2) this.frame ??= requestAnimationFrame(() => this.cull());
  }

  // What is a screen or more away is not drawn, nor the inside of what is small; what comes into sight is made.
  cull() {
    cancelAnimationFrame(this.frame);
    this.frame = null;
    const { clientWidth: w, clientHeight: h } = this.element;
    this.seen = { x: this.x, y: this.y, scale: this.scale, w, h };
    this.look(this.levels.get(ROOT), this.origin(ROOT), w, h);
  }

  look(level, [x, y], w, h) {
    level.show();
    const far = (at, size, room) => Math.abs(at - room / 2) - (size * this.scale) / 2 > 1.5 * room;
    for (const { label: n } of level.nodes.values()) {
      const away = far(this.x + (x + n.x) * this.scale, n.width, w) || far(this.y + (y + n.y) * this.scale, n.height, h);
      if (away !== (n.away ?? false)) n.element.style.display = away ? "none" : "";
      n.away = away;
      if (away || !n.inner) continue;
      const large = n.inner.height * this.scale > SMALL, [dx, dy] = n.inner.shift;
      n.inner.show(large);
      if (large) this.look(n.inner.level, [x + n.x - n.width / 2 + dx, y + n.y - n.height / 2 + dy], w, h);
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
