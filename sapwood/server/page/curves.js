// Curves of the last minutes, and the figures they are made of.

import { h, s, seconds } from "./dom.js";

export const LENGTH = 150; // samples that are kept, one a second
const FEWEST = 40; // that the width stands for
const WIDTH = 150;
const HEIGHT = 44;

/** One figure with its curves. `series` are `{name, of}`: what a sample holds, NaN where nothing was measured. */
export class Tile {
  constructor(title, series, { format, most = 0, note = () => "" }) {
    Object.assign(this, { title, series, format, most, note, samples: [], at: -1 });
    this.figure = h("strong", { class: "figure" }, "–");
    this.small = h("span", { class: "small" });
    this.paths = series.map(({ name }) => s("path", { class: `curve ${name}`, "vector-effect": "non-scaling-stroke" }));
    this.mark = s("line", { class: "mark-line", y1: 0, y2: HEIGHT, x1: -9, x2: -9, "vector-effect": "non-scaling-stroke" });
    const picture = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" }, this.paths, this.mark);
    picture.addEventListener("pointermove", (event) => this.look(event.offsetX / picture.clientWidth));
    picture.addEventListener("pointerleave", () => this.look(NaN));
    this.element = h("div", { class: "tile", role: "group", "aria-label": title }, h("h3", {}, title), h("div", { class: "figures" }, this.figure, this.small), picture);
  }

  show(samples) {
    this.samples = samples;
    const values = this.series.map(({ of }) => samples.map(of));
    const top = Math.max(this.most, ...values.flat().filter(Number.isFinite)) || 1;
    for (const [index, path] of this.paths.entries()) path.setAttribute("d", line(values[index], top));
    this.tell();
  }

  look(share) {
    const room = roomOf(this.samples);
    const at = Math.round(share * (room - 1)) - (room - this.samples.length);
    this.at = at >= 0 && at < this.samples.length ? at : -1;
    const x = this.at < 0 ? -9 : place(at, this.samples);
    this.mark.setAttribute("x1", x);
    this.mark.setAttribute("x2", x);
    this.tell();
  }

  /** The figures: those under the pointer, else the latest that were measured. */
  tell() {
    const { samples } = this;
    const sample = samples[this.at] ?? samples.at(-1);
    if (!sample) return;
    const latest = ({ of }) => (this.at >= 0 ? of(sample) : (samples.map(of).findLast(Number.isFinite) ?? NaN));
    const [first, ...others] = this.series.map((one) => ({ ...one, text: this.format(latest(one)) }));
    this.figure.textContent = first.text;
    const rest = others.map(({ label, text }) => `${label} ${text}`);
    const when = this.at >= 0 ? `${Math.round(samples.at(-1).time - sample.time)} s ago` : this.note(sample);
    this.small.textContent = [...rest, when].filter(Boolean).join(" · ");
  }
}

/** How many samples the width stands for. */
const roomOf = (samples) => Math.max(FEWEST, samples.length);

/** Where a sample stands: the last one on the right. */
const place = (at, samples) => ((at + roomOf(samples) - samples.length) / (roomOf(samples) - 1)) * WIDTH;

function line(values, top) {
  let path = "";
  let pen = "M";
  for (const [at, value] of values.entries()) {
    if (!Number.isFinite(value)) {
      pen = "M";
      continue;
    }
    const x = place(at, values);
    const y = HEIGHT - 2 - (Math.min(value, top) / top) * (HEIGHT - 6);
    path += `${pen}${x.toFixed(1)} ${y.toFixed(1)}`;
    pen = "L";
  }
  return path;
}

/** The value below which a share of what was measured between two looks at a histogram lies; NaN where nothing was. */
export function quantile(now, before, share) {
  const counts = now.counts.map((count, at) => count - (before?.counts[at] ?? 0));
  const total = counts.at(-1) ?? 0;
  if (total <= 0) return NaN;
  const wanted = share * total;
  const at = counts.findIndex((count) => count >= wanted);
  const low = at ? now.bounds[at - 1] : 0;
  const high = now.bounds[at] ?? low;
  const below = at ? counts[at - 1] : 0;
  return low + (high - low) * ((wanted - below) / Math.max(counts[at] - below, 1));
}

/** What has happened between two looks, per second and in shares. */
export function sampleOf(now, before) {
  const passed = before ? now.time - before.time : NaN;
  const grown = (name) => (before ? (now.counters[name] ?? 0) - (before.counters[name] ?? 0) : NaN);
  const [cached, fed] = [grown("cached_tokens"), grown("prompt_tokens")];
  const pages = now.pages.map(([total, free, evictable]) => (total - free - evictable) / Math.max(1, total));
  const { first_token: first, inter_token: between } = now.latency;
  return {
    time: now.time,
    output: grown("output_tokens") / passed,
    prompt: fed / passed,
    hits: cached + fed > 0 ? cached / (cached + fed) : NaN,
    used: Math.max(0, ...pages),
    running: now.running,
    waiting: now.waiting,
    first: before ? quantile(first, before.latency.first_token, 0.5) : NaN,
    slow: before ? quantile(first, before.latency.first_token, 0.95) : NaN,
    between: before ? quantile(between, before.latency.inter_token, 0.5) : NaN,
    far: before ? quantile(between, before.latency.inter_token, 0.95) : NaN,
  };
}

const rate = (value) => (Number.isFinite(value) ? `${value >= 10 ? Math.round(value).toLocaleString("en") : value.toFixed(1)}/s` : "–");
const share = (value) => (Number.isFinite(value) ? `${Math.round(100 * value)} %` : "–");
const number = (value) => (Number.isFinite(value) ? String(value) : "–");

export function tiles() {
  const one = (name, label = "") => ({ name, label, of: (sample) => sample[name] });
  return [
    new Tile("Tokens generated", [one("output"), one("prompt", "prompts")], { format: rate }),
    new Tile("Time to first token", [one("first"), one("slow", "95 %")], { format: seconds }),
    new Tile("Between tokens", [one("between"), one("far", "95 %")], { format: seconds }),
    new Tile("Cache hit rate", [one("hits")], { format: share, most: 1 }),
    new Tile("Requests running", [one("running"), one("waiting", "waiting")], { format: number }),
    new Tile("Pages in use", [one("used")], { format: share, most: 1 }),
  ];
}
