// The modules of one model as a tree, and what flows between the children of a module.

const ROOT = "";
const MANY = 150; // boxes at one level without modules: more are cut into stretches
const STRETCH = 40;

class Tree {
  constructor(side) {
    this.nodes = side.nodes;
    this.edges = side.edges;
    this.groups = new Map([[ROOT, { key: ROOT, name: "", above: null, groups: new Set(), leaves: [], all: [] }]]);
    const shared = this.shared();
    this.nodes.forEach((node, i) => this.place(i, node.path.slice(shared)));
    this.dissolve(this.group(ROOT));
    for (const group of [...this.groups.values()]) if (group.leaves.length > MANY) this.cut(group);
    this.home = new Array(this.nodes.length);
    for (const group of this.groups.values()) for (const i of group.leaves) this.home[i] = group.key;
    this.into = this.nodes.map(() => []);
    this.outof = this.nodes.map(() => []);
    for (const [from, to, value] of this.edges) {
      this.into[to].push([from, value]);
      this.outof[from].push([to, value]);
    }
  }

  // How many outer modules all operators have in common: they say nothing.
  shared() {
    const paths = this.nodes.map((n) => n.path).filter((p) => p.length);
    if (paths.length < 2) return 0;
    let count = 0;
    while (paths.every((p) => p.length > count && p[count] === paths[0][count])) count++;
    return count;
  }

  group(key) { return this.groups.get(key); }

  place(i, path) {
    let group = this.group(ROOT);
    group.all.push(i);
    for (const name of path) {
      const key = group.key ? `${group.key}/${name}` : name;
      if (!this.groups.has(key)) {
        this.groups.set(key, { key, name, above: group.key, groups: new Set(), leaves: [], all: [] });
        group.groups.add(key);
      }
      group = this.group(key);
      group.all.push(i);
    }
    group.leaves.push(i);
  }

  // A module of one operator is that operator.
  dissolve(group) {
    for (const key of [...group.groups]) {
      const inner = this.group(key);
      this.dissolve(inner);
      if (inner.all.length > 1) continue;
      group.leaves.push(...inner.all);
      group.groups.delete(key);
      this.groups.delete(key);
    }
    group.leaves.sort((a, b) => a - b);
  }

  // A long level without modules becomes stretches in the order of the graph.
  cut(group) {
    const leaves = group.leaves;
    group.leaves = [];
    for (let at = 0; at < leaves.length; at += STRETCH) {
      const part = leaves.slice(at, at + STRETCH);
      const name = `${this.nodes[part[0]].name} … ${this.nodes[part.at(-1)].name}`;
      const key = `${group.key}/ ${at}`; // a blank begins no module's name
      this.groups.set(key, { key, name, above: group.key, groups: new Set(), leaves: part, all: part });
      group.groups.add(key);
    }
  }

  chain(key) { // the module and those around it, the innermost first
    const found = [];
    for (let k = key; k !== null; k = this.group(k).above) found.push(k);
    return found;
  }

  // The child of module `key` that node i lies in: "#i" for itself, a module's key, or null where it is elsewhere.
  child(key, i) {
    if (this.home[i] === key) return `#${i}`;
    let below = this.home[i];
    for (let k = this.group(below).above; k !== null; k = this.group(k).above) {
      if (k === key) return below;
      below = k;
    }
    return null;
  }

  // What the level of module `key` draws: [from, to, count], ports {in: i -> children, out: i -> children}.
  level(key) {
    const flows = new Map(), entering = new Map(), leaving = new Map();
    const note = (map, name, item) => (map.get(name) ?? map.set(name, new Set()).get(name)).add(item);
    for (const i of this.group(key).all) {
      const to = this.child(key, i);
      for (const [source] of this.into[i]) {
        const from = this.child(key, source);
        if (from === null) note(entering, source, to);
        else if (from !== to) flows.set(`${from}\n${to}`, [from, to, (flows.get(`${from}\n${to}`)?.[2] ?? 0) + 1]);
      }
      for (const [target] of this.outof[i]) if (this.child(key, target) === null) note(leaving, target, to);
    }
    return { flows: [...flows.values()], entering, leaving };
  }
}
