// The tokens of an answer, each with its probability and what might have stood in its place.

import { filled, h, plural } from "./dom.js";

const SHOWN = { " ": "·", "\n": "↵", "\t": "⇥" };

/** What is kept of a token as the API tells it. */
export function kept(entry) {
  const one = ({ token, logprob }) => ({ text: token, logprob });
  return { ...one(entry), top: (entry.top_logprobs ?? []).map(one) };
}

export const visible = (text) => (text === "" ? "(nothing)" : text.replace(/[ \n\t]/g, (letter) => SHOWN[letter]));

/** The view: tokens side by side, coloured by how likely each was. Arrows go from one to the next. */
export function tokenView(tokens) {
  const detail = h("div", { class: "token-detail", role: "status", "aria-live": "polite" }, h("p", { class: "quiet" }, "Point at a token, or go through them with the arrow keys."));
  const line = h("div", { class: "token-line", role: "listbox", "aria-label": "Tokens of the answer", "aria-orientation": "horizontal" });
  const buttons = tokens.map((token, at) => chip(token, at));
  line.append(...buttons);

  function show(at) {
    for (const [index, button] of buttons.entries()) {
      button.tabIndex = index === at ? 0 : -1;
      button.setAttribute("aria-selected", index === at);
    }
    detail.replaceChildren(...described(tokens[at], at, tokens.length));
  }

  const near = (event) => buttons.indexOf(event.target.closest(".token"));
  const look = (event) => near(event) >= 0 && show(near(event));
  line.addEventListener("pointerover", look);
  line.addEventListener("focusin", look);
  line.addEventListener("click", look);
  line.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -tokens.length, End: tokens.length };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const at = Math.max(0, Math.min(tokens.length - 1, near(event) + steps[event.key]));
    buttons[at].focus();
  });
  if (buttons.length) buttons[0].tabIndex = 0;
  return h("div", { class: "token-view" }, h("p", { class: "token-sum" }, summary(tokens)), line, detail);
}

function summary(tokens) {
  const mean = tokens.reduce((sum, { logprob }) => sum + logprob, 0) / Math.max(1, tokens.length);
  return `${plural(tokens.length, "token")}, perplexity ${Math.exp(-mean).toFixed(2)}`;
}

function chip({ text, logprob }, at) {
  const likely = Math.exp(logprob);
  const level = Math.min(5, Math.floor((1 - likely) * 6));
  const label = `${text.trim() ? text : visible(text)}, ${percent(likely)}`;
  const shown = text.includes("\n") ? [visible(text), h("br")] : visible(text).replace(/^·|·$/g, " ");
  return h("button", { type: "button", class: `token level-${level}`, role: "option", tabindex: at ? -1 : 0, "aria-label": label, "aria-selected": "false" }, shown);
}

function described(token, at, total) {
  const taken = { text: token.text, logprob: token.logprob, taken: true };
  const others = token.top.filter(({ text }) => text !== token.text);
  const rows = [taken, ...others].sort((one, other) => other.logprob - one.logprob);
  const head = h("p", {}, h("code", {}, visible(token.text)), ` token ${at + 1} of ${total}`);
  return [head, h("ul", { class: "bars" }, rows.map(bar))];
}

function bar({ text, logprob, taken }) {
  const likely = Math.exp(logprob);
  return h("li", { class: taken ? "taken" : "" }, h("code", {}, visible(text)), filled(likely), h("span", {}, percent(likely)), taken && h("em", {}, "taken"));
}

export function percent(share) {
  if (share > 0.9995) return share === 1 ? "100 %" : ">99.9 %";
  return share < 0.001 ? "<0.1 %" : `${(100 * share).toFixed(1)} %`;
}
