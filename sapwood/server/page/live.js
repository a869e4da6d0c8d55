// The live view: what the server does now, and why a request was fast.

import { getJson, postJson } from "./api.js";
import { requestOf } from "./chat.js";
import { LENGTH, sampleOf, tiles } from "./curves.js";
import { count, h, plural, seconds } from "./dom.js";
import { best, forest, pathOf, pathTo } from "./forest.js";
import { Icicle } from "./icicle.js";
import { Lanes } from "./lanes.js";

const EVERY = 1000; // milliseconds between looks

export class Live {
  constructor(section) {
    Object.assign(this, { section, on: false, timer: 0, before: null, samples: [], tree: null, sought: null });
    this.tiles = tiles();
    this.lanes = new Lanes({ chosen: (lane) => this.lightLane(lane) });
    this.facts = h("p", { class: "facts" });
    this.state = h("p", { class: "state", role: "status" }, "Looking…");
    this.detail = h("p", { class: "detail", role: "status", "aria-live": "polite" });
    this.sum = h("p", { class: "sum", id: "tree-sum" });
    this.prefixes = h("ol", { class: "prefixes" });
    this.groups = h("div", { class: "groups" });
    this.canvas = h("canvas", { class: "icicle", tabindex: "0", role: "application", "aria-roledescription": "tree of cached texts", "aria-label": "Cached prefixes. Arrow keys go along and across, Enter goes in, Escape goes out.", "aria-describedby": "tree-sum" });
    section.append(...this.parts());
    this.icicle = new Icicle(this.canvas, { chosen: (node) => this.describe(node) });
    this.describe(null);
    document.addEventListener("visibilitychange", () => this.wake());
  }

  parts() {
    const way = (value, label) => h("label", {}, h("input", { type: "radio", name: "colour", value, checked: value === "use", onchange: () => this.colour(value) }), h("span", {}, label));
    const ways = h("fieldset", { class: "ways" }, h("legend", { class: "away" }, "Colours"), way("use", "Use"), way("hits", "Hits"));
    this.legend = h("ul", { class: "legend" });
    const head = h("div", { class: "card-head" }, h("h2", {}, "Prefix cache"), ways);
    const cache = (this.cache = h("section", { class: "card cache", "aria-label": "Prefix cache" }, head, this.sum, this.canvas, this.legend, this.detail));
    const saved = h("section", { class: "card", "aria-label": "Prefixes that saved most" }, h("h2", {}, "What saved most"), this.prefixes);
    const memory = h("section", { class: "card", "aria-label": "Memory of the cache" }, h("h2", {}, "Pages"), this.groups);
    const lanes = h("section", { class: "card", "aria-label": "Requests" }, h("h2", {}, "Requests"), this.lanes.element);
    const right = h("div", { class: "column" }, memory, saved);
    this.colour("use");
    return [h("div", { class: "live-head" }, this.state, this.facts), h("div", { class: "tiles" }, this.tiles.map(({ element }) => element)), h("div", { class: "cards" }, lanes, right), cache];
  }

  colour(by) {
    const entries = { use: [["shared", "several requests run on it"], ["used", "one does"], ["idle", "kept for later"], ["going", "evicted first"]], hits: [["wood", "found often"], ["surface", "never yet"]] };
    this.legend.replaceChildren(...entries[by].map(([name, text]) => h("li", {}, h("span", { class: `swatch ${name}` }), text)));
    this.icicle?.colourBy(by);
  }

  // -- looking --------------------------------------------------------------------------------------------------------

  watch(on) {
    this.on = on;
    this.wake();
  }

  /** Look at once if there is anybody to see it, and go on looking. */
  wake() {
    clearTimeout(this.timer);
    if (this.on && !document.hidden) this.look();
  }

  async look() {
    clearTimeout(this.timer);
    try {
      this.show(await getJson(this.sought ? "live?begins=1" : "live"));
    } catch (error) {
      this.state.textContent = error.message;
      this.state.classList.add("wrong");
      this.before = null;
    }
    clearTimeout(this.timer);
    if (this.on && !document.hidden) this.timer = setTimeout(() => this.look(), EVERY);
  }

  show(now) {
    if (this.before && now.time <= this.before.time) return; // the same as before
    this.samples = [...this.samples, sampleOf(now, this.before)].slice(-LENGTH);
    this.before = now;
    this.state.textContent = now.running ? plural(now.running, "request runs", "requests run") : "Idle";
    this.state.classList.remove("wrong");
    this.state.classList.toggle("busy", now.running > 0);
    this.facts.textContent = [`${now.device}, ${now.dtype}`, `context ${count(now.max_model_len)}`, `up ${seconds(now.uptime)}`, `Sapwood ${now.version}`].join(" · ");
    for (const tile of this.tiles) tile.show(this.samples);
    this.lanes.show(now.lanes, now.running + now.waiting);
    this.groups.replaceChildren(...now.pages.map((pages, at) => occupancy(pages, at, now.pages.length)));
    this.showTree(now.tree);
  }

  showTree(told) {
    const tree = (this.tree = forest(told));
    this.icicle.show(tree);
    const parts = [plural(told.pages, "page") + " cached", `${count(told.sheltered)} in use`, `${count(told.shared)} shared by running requests`];
    this.sum.textContent = tree.nodes.length ? parts.join(" · ") : "The cache is empty: nothing was asked yet.";
    this.canvas.classList.toggle("empty", !tree.nodes.length);
    this.prefixes.replaceChildren(...best(tree, 4).map((node) => this.prefix(node)));
    if (this.sought) this.relight();
    if (this.icicle.node) this.describe(this.icicle.node);
  }

  prefix(node) {
    const show = () => this.icicle.point(node);
    const saved = `${count(node.hits * node.tokens)} tokens not computed: ${count(node.tokens)}, found ${plural(node.hits, "time")}`;
    const button = h("button", { type: "button", class: "prefix", onpointerenter: show, onfocus: show, onclick: () => this.icicle.zoom(node) }, h("span", { class: "quote" }, quoted(node)), h("span", { class: "quiet" }, saved));
    return h("li", {}, button);
  }

  // -- lighting -------------------------------------------------------------------------------------------------------

  lightLane(lane) {
    const at = this.tree?.holders[lane?.id];
    const node = this.tree?.nodes[at];
    if (lane) this.sought = null;
    this.icicle.light(node ? { path: pathTo(node), cached: lane.cached, end: Infinity } : null);
    if (node) this.detail.textContent = `This request: ${plural(lane.prompt, "prompt token")}, ${count(Math.max(0, lane.cached))} of them found in the cache.`;
  }

  /** Show where the prompt of a conversation's last answer is in the cache: what was found, and what was computed. */
  async light(conversation) {
    const { messages, tools, chat_template_kwargs } = requestOf({ ...conversation, messages: conversation.messages.slice(0, -1) });
    const { tokens } = await postJson("tokenize", { messages, tools, chat_template_kwargs, add_generation_prompt: true });
    const usage = conversation.messages.at(-1)?.usage;
    this.sought = { title: conversation.title, tokens, cached: usage?.prompt_tokens_details?.cached_tokens ?? 0 };
    this.before = null;
    await this.look();
    this.section.scrollTo({ top: this.cache.offsetTop - 16 });
  }

  relight() {
    const { title, tokens, cached } = this.sought;
    const { path, end: there } = pathOf(this.tree.roots, tokens);
    this.icicle.light(path.length ? { path, cached, end: tokens.length } : null);
    const clear = h("button", { type: "button", class: "link", onclick: () => this.unlight() }, "Show all");
    const text = path.length
      ? `“${title}”: of ${plural(tokens.length, "prompt token")} the first ${count(cached)} were found in the cache, the other ${count(tokens.length - cached)} were computed. ${count(there)} are cached now. `
      : `“${title}” is not in the cache any more, or its texts are not told here. `;
    this.detail.replaceChildren(text, clear);
  }

  unlight() {
    this.sought = null;
    this.icicle.light(null);
    this.describe(null);
  }

  describe(node) {
    if (this.sought && !node) return this.relight();
    if (!node) return this.detail.replaceChildren("Point at a box, or go through the tree with the arrow keys. A click goes in, Escape goes out.");
    const use = node.users ? `${plural(node.users, "request runs", "requests run")} on it` : `nobody runs on it; ${plural(Math.max(0, node.ahead), "page")} would be evicted before it`;
    const parts = [`tokens ${count(node.start)} to ${count(node.end)}, ${plural(node.pages, "page")}`, `found ${plural(node.hits, "time")}`, use];
    if (node.leases) parts.push(`${plural(node.leases, "ends here", "end here")}`);
    if (node.more) parts.push(`${plural(node.more, "page")} more hang from it`);
    this.detail.replaceChildren(h("span", { class: "quote" }, quoted(node)), ` ${parts.join(" · ")}`);
  }
}

function quoted({ label, tokens }) {
  return label === null ? plural(tokens, "token") : `“${label.replace(/\s+/g, " ").trim()}…”`;
}

function occupancy([total, free, evictable], at, groups) {
  const used = total - free - evictable;
  const part = (name, size) => {
    const bar = h("span", { class: `part ${name}` });
    bar.style.width = `${(100 * size) / Math.max(1, total)}%`;
    return bar;
  };
  const words = `${count(used)} in use, ${count(evictable)} kept for later, ${count(free)} free of ${count(total)}`;
  const title = groups > 1 && h("span", { class: "quiet" }, `Group ${at + 1}`);
  return h("div", { class: "group-bar" }, title, h("div", { class: "stack", role: "img", "aria-label": words }, part("used", used), part("idle", evictable)), h("span", { class: "quiet" }, words));
}
