// Requests as lanes: what was found in the cache, what has been computed, what has been said.

import { count, h, plural, seconds } from "./dom.js";

const MOST = 40;
const SAYS = { prompt: "reads", output: "writes", waiting: "waits", aside: "waits" };

export class Lanes {
  /** `chosen` is called with a lane whose path is to be shown, or null. */
  constructor({ chosen }) {
    this.chosen = chosen;
    this.rows = new Map();
    this.list = h("ul", { class: "lanes" });
    this.none = h("p", { class: "quiet" }, "Nothing runs and nothing waits.");
    this.more = h("p", { class: "quiet", hidden: true });
    this.element = h("div", {}, this.none, this.list, this.more);
  }

  show(lanes, total) {
    const shown = lanes.slice(0, MOST);
    const widest = Math.max(1, ...shown.map(({ prompt, output }) => prompt + output));
    const kept = new Map();
    for (const lane of shown) {
      const row = this.rows.get(lane.id) ?? this.row(lane.id);
      row.show(lane, widest);
      kept.set(lane.id, row);
    }
    for (const [id, row] of this.rows) if (!kept.has(id)) row.element.remove();
    for (const [at, row] of [...kept.values()].entries()) if (this.list.children[at] !== row.element) this.list.insertBefore(row.element, this.list.children[at] ?? null);
    this.rows = kept;
    this.none.hidden = total > 0;
    this.more.hidden = total <= shown.length;
    this.more.textContent = `and ${plural(total - shown.length, "more request")}`;
  }

  row(id) {
    const parts = Object.fromEntries(["cached", "computed", "left", "output"].map((name) => [name, h("span", { class: `part ${name}` })]));
    const phase = h("span", { class: "phase" });
    const words = h("span", { class: "lane-words" });
    let lane = null;
    const on = () => this.chosen(lane);
    const off = () => this.chosen(null);
    const bar = h("span", { class: "lane-bar", "aria-hidden": "true" }, Object.values(parts));
    const button = h("button", { type: "button", class: "lane", "data-id": id, onpointerenter: on, onfocus: on, onpointerleave: off, onblur: off }, phase, bar, words);
    const show = (now, widest) => {
      lane = now;
      button.dataset.phase = lane.phase;
      phase.textContent = SAYS[lane.phase] ?? lane.phase;
      words.textContent = told(lane);
      const cached = Math.max(0, Math.min(lane.cached, lane.prompt));
      const computed = Math.max(0, Math.min(lane.computed, lane.prompt) - cached);
      const sizes = { cached, computed, left: lane.prompt - cached - computed, output: lane.output };
      for (const [name, part] of Object.entries(parts)) part.style.width = `${(100 * sizes[name]) / widest}%`;
    };
    return { element: h("li", {}, button), show };
  }
}

function told({ prompt, output, cached, age, priority }) {
  const parts = [plural(prompt, "token") + (cached > 0 ? ` (${count(cached)} cached)` : ""), output ? `${count(output)} out` : null, seconds(age), priority ? `priority ${priority}` : null];
  return parts.filter(Boolean).join(" · ");
}
