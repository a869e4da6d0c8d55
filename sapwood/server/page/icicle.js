// The tree drawn from left to right: a text runs along, texts with the same beginning share their boxes.

import { neighbour, pathTo } from "./forest.js";

const AXIS = 20; // height of the scale above
const LETTERS = 13; // least height of a box with words in it
const HINT = 10; // width of what stands for pages that are left out

/** Between two colours, both as #rrggbb: `share` of the first. */
function mix(one, other, share) {
  const part = (colour, at) => parseInt(colour.slice(at, at + 2), 16);
  return `rgb(${[1, 3, 5].map((at) => Math.round(part(one, at) * share + part(other, at) * (1 - share))).join(" ")})`;
}

/** A label for a narrow box: without the template's marks, if there is anything else. */
function plain(label) {
  const words = (text) => text.replace(/\s+/g, " ").trim();
  return words(label.replace(/<\|[^|<>]*\|>/g, " ")) || words(label) || "␣";
}

export class Icicle {
  /** `chosen` is called with a node that is pointed at or gone to, or null. */
  constructor(canvas, { chosen }) {
    Object.assign(this, { canvas, chosen, tree: null, focus: null, node: null, lit: null, by: "use", colours: {} });
    this.pen = canvas.getContext("2d");
    this.view = { left: 0, right: 1, top: 0, bottom: 1 };
    new ResizeObserver(() => this.draw()).observe(canvas);
    const recolour = () => ((this.colours = this.palette()), this.draw());
    document.addEventListener("theme", recolour);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
    this.colours = this.palette();
    canvas.addEventListener("pointermove", (event) => this.point(this.under(event)));
    canvas.addEventListener("pointerleave", () => this.point(null));
    canvas.addEventListener("click", (event) => this.zoom(this.under(event)));
    canvas.addEventListener("keydown", (event) => this.press(event));
  }

  palette() {
    const style = getComputedStyle(this.canvas);
    const names = ["shared", "used", "idle", "going", "line", "ink", "quiet", "surface", "leaf", "wood"];
    return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  }

  /** Draw another picture of the tree; what one looks at stays in view. */
  show(tree) {
    const same = (node) => node && tree.nodes.find(({ page, start }) => page === node.page && start === node.start);
    this.tree = tree;
    this.focus = same(this.focus) ?? null;
    this.node = same(this.node) ?? null;
    this.look();
  }

  /** Light a path: `{path, cached, end}`, of which the first `cached` tokens were found; null for none. */
  light(lit) {
    this.lit = lit;
    this.draw();
  }

  colourBy(what) {
    this.by = what;
    this.draw();
  }

  zoom(node) {
    this.focus = node && node !== this.focus ? node : (this.focus?.parent ?? null);
    this.look();
  }

  /** Have the node that one has zoomed into fill the picture. */
  look() {
    const { focus, tree } = this;
    const from = this.view;
    const to = focus
      ? { left: focus.start, right: focus.reach, top: focus.row, bottom: focus.row + focus.rows }
      : { left: 0, right: tree.reach, top: 0, bottom: tree.rows };
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches || this.zoomed === focus;
    this.zoomed = focus;
    const began = performance.now();
    const move = (now) => {
      const share = still ? 1 : Math.min(1, Math.max(0, now - began) / 220);
      const eased = 1 - (1 - share) ** 3;
      this.view = Object.fromEntries(Object.keys(to).map((side) => [side, from[side] + (to[side] - from[side]) * eased]));
      this.draw();
      if (share < 1 && this.zoomed === focus) requestAnimationFrame(move);
    };
    move(began);
  }

  // -- where things are -----------------------------------------------------------------------------------------------

  box(node) {
    const { left, right, top, bottom } = this.view;
    const wide = (this.width - HINT) / Math.max(1, right - left);
    const high = (this.height - AXIS) / (bottom - top);
    return { x: (node.start - left) * wide, y: AXIS + (node.row - top) * high, w: node.tokens * wide, h: node.rows * high };
  }

  under({ offsetX, offsetY }) {
    const inside = (node) => {
      const { x, y, w, h } = this.box(node);
      return offsetX >= x && offsetX < x + w && offsetY >= y && offsetY < y + h;
    };
    return this.tree?.nodes.find(inside) ?? null;
  }

  point(node) {
    if (node === this.node) return;
    this.node = node;
    this.chosen(node);
    this.draw();
  }

  press(event) {
    const { key } = event;
    if (key.startsWith("Arrow") || key === "Home") this.point(neighbour(this.tree, key === "Home" ? null : this.node, key));
    else if (key === "Enter" || key === " ") this.zoom(this.node);
    else if (key === "Escape" || key === "Backspace") this.zoom(null);
    else return;
    event.preventDefault();
  }

  // -- drawing --------------------------------------------------------------------------------------------------------

  draw() {
    const { canvas, pen, tree } = this;
    const scale = devicePixelRatio || 1;
    this.width = canvas.clientWidth;
    this.height = canvas.clientHeight;
    canvas.width = Math.round(this.width * scale);
    canvas.height = Math.round(this.height * scale);
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.font = "11.5px ui-sans-serif, system-ui, sans-serif";
    pen.textBaseline = "middle";
    if (!tree || !this.width) return;
    const path = new Set(this.lit?.path ?? (this.node ? pathTo(this.node) : []));
    this.furthest = Math.max(1, ...tree.nodes.map(({ ahead }) => ahead));
    this.hottest = Math.max(1, ...tree.nodes.map(({ hits }) => hits));
    for (const node of tree.nodes) this.drawNode(node, path.size > 0 && !path.has(node) && !this.hangs(node));
    if (this.lit) this.underline(this.lit);
    this.scale();
  }

  /** Whether it hangs from the node that is pointed at. */
  hangs({ start, row }) {
    const from = this.lit ? null : this.node;
    return from !== null && start >= from.end && row >= from.row && row < from.row + from.rows;
  }

  drawNode(node, dim) {
    const { pen, colours } = this;
    const { x, y, w, h } = this.box(node);
    if (x > this.width || x + w < 0 || y > this.height || y + h < AXIS) return;
    const gap = h > 5 ? 1 : 0;
    const [left, right] = [Math.max(x, -4), Math.min(x + w, this.width + 4)];
    pen.globalAlpha = dim ? 0.42 : 1;
    pen.fillStyle = this.colour(node);
    pen.beginPath();
    pen.roundRect(left, y, Math.max(1, right - left - gap), Math.max(0.5, h - gap), h > 8 && w > 8 ? 3 : 0);
    pen.fill();
    if (node === this.node) {
      pen.strokeStyle = colours.ink;
      pen.lineWidth = 1.5;
      pen.stroke();
    }
    if (node.more && h > 4) this.hint(right, y, h - gap);
    if (h >= LETTERS && right - left > 44) this.words(node, Math.max(left, 0), y, right, h);
    pen.globalAlpha = 1;
  }

  colour(node) {
    const { colours } = this;
    if (this.by === "hits") return mix(colours.wood, colours.surface, 0.12 + 0.88 * (Math.log1p(node.hits) / Math.log1p(this.hottest)));
    if (node.users > 1) return colours.shared;
    if (node.users || node.ahead < 0) return colours.used;
    return mix(colours.idle, colours.going, node.ahead / this.furthest);
  }

  /** Pages hang from it that are not told one by one. */
  hint(x, y, height) {
    const { pen } = this;
    pen.fillStyle = this.colours.idle;
    for (let step = 0; step < 3; step += 1) pen.fillRect(x + 1 + 3 * step, y, 1.5, height);
  }

  words(node, left, y, right, height) {
    const { pen } = this;
    const text = node.label === null ? `${node.tokens} tokens` : plain(node.label);
    pen.save();
    pen.beginPath();
    pen.rect(left, y, right - left - 4, height);
    pen.clip();
    pen.fillStyle = this.colours.ink;
    pen.fillText(text, left + 6, y + Math.min(height / 2, 60));
    pen.restore();
  }

  /** A line under the lit path: what was found, then what had to be computed. */
  underline({ path, cached, end }) {
    const { pen, colours } = this;
    const part = (node, from, to, colour) => {
      const [low, high] = [Math.max(node.start, from), Math.min(node.end, to)];
      if (high <= low) return;
      const { x, y, w, h } = this.box(node);
      const wide = w / node.tokens;
      pen.fillStyle = colour;
      pen.fillRect(x + (low - node.start) * wide, y + Math.max(0, h - 4), (high - low) * wide - 1, Math.min(h, 4));
    };
    for (const node of path) {
      part(node, 0, cached, colours.leaf);
      part(node, cached, end, colours.wood);
    }
  }

  scale() {
    const { pen, colours } = this;
    const { left, right } = this.view;
    const wanted = ((right - left) * 90) / Math.max(90, this.width);
    const power = 10 ** Math.floor(Math.log10(Math.max(1, wanted)));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= wanted) ?? power;
    pen.fillStyle = colours.surface;
    pen.fillRect(0, 0, this.width, AXIS - 2);
    pen.fillStyle = colours.quiet;
    for (let at = Math.ceil(left / step) * step; at < right; at += step) {
      const x = ((at - left) * (this.width - HINT)) / Math.max(1, right - left);
      pen.fillRect(x, AXIS - 6, 1, 4);
      if (x < this.width - 30) pen.fillText(at.toLocaleString("en"), x + 3, 8);
    }
  }
}
