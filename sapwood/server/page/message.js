// How a message looks: text, thoughts, calls of tools, tokens, and what is known of how it came about.

import { copy, count, filled, h, iconButton, plural, seconds } from "./dom.js";
import { markdown } from "./markdown.js";
import { percent, tokenView } from "./tokens.js";

/** The element of a message. `acts` are the functions behind its buttons; `last` is whether it is the last one. */
export function messageElement(message, { acts, running = false, last = false }) {
  return message.role === "user" ? asked(message, acts, running) : answered(message, acts, running, last);
}

function asked(message, acts, running) {
  const buttons = [
    iconButton("copy", "Copy", (event) => copy(message.content, event.currentTarget)),
    iconButton("edit", "Edit and ask again", () => acts.edit(message, element), { disabled: running }),
  ];
  const element = h("article", { class: "message user", "aria-label": "You" }, h("div", { class: "bubble" }, message.content), h("div", { class: "actions" }, buttons));
  return element;
}

/** A text field in place of a message that was asked. */
export function editField(message, element, done) {
  const field = h("textarea", { class: "edit", rows: Math.min(12, message.content.split("\n").length + 1), "aria-label": "Edit the message", value: message.content });
  const save = () => field.value.trim() && done(field.value);
  const buttons = [
    h("button", { type: "button", class: "button quiet", onclick: () => done(null) }, "Cancel"),
    h("button", { type: "button", class: "button", onclick: save }, "Ask again"),
  ];
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") done(null);
    if (event.key === "Enter" && !event.shiftKey) (event.preventDefault(), save());
  });
  element.replaceChildren(field, h("div", { class: "edit-actions" }, buttons));
  field.focus();
}

function answered(message, acts, running, last) {
  const element = h("article", { class: "message answer", "aria-label": "Answer" });
  const text = h("div", { class: "text" });
  const thoughts = message.thought ? thoughtsOf(message, running && !message.content) : null;
  text.append(...markdown(message.content));
  if (running) text.append(h("span", { class: "cursor", "aria-hidden": "true" }));
  const calls = (message.calls ?? []).map((call) => callOf(call, acts, message, running));
  const error = message.error && h("p", { class: "wrong", role: "alert" }, message.error);
  element.append(...[thoughts, text, ...calls, error].filter(Boolean));
  if (!running) element.append(...footer(message, acts, last));
  return element;
}

function thoughtsOf(message, open) {
  const title = open ? "Thinking…" : message.thoughtSeconds ? `Thoughts, ${seconds(message.thoughtSeconds)}` : "Thoughts";
  const folded = h("details", { class: "thoughts", open: open || message.unfolded }, h("summary", {}, title), h("div", {}, markdown(message.thought)));
  folded.addEventListener("toggle", () => (message.unfolded = folded.open && !open));
  return folded;
}

function callOf(call, acts, message, running) {
  const head = h("div", { class: "call-head" }, h("span", { class: "chip" }, "calls"), h("code", {}, call.name));
  const given = h("pre", { tabindex: "0" }, h("code", {}, pretty(call.arguments)));
  const box = h("div", { class: "call" }, head, given);
  if (call.result !== undefined && call.result !== null) {
    box.append(h("div", { class: "call-result" }, h("span", { class: "chip" }, "returned"), h("pre", { tabindex: "0" }, call.result)));
  } else if (!running) {
    box.append(resultForm(call, acts, message));
  }
  return box;
}

function resultForm(call, acts, message) {
  const label = `What ${call.name} returns`;
  const field = h("textarea", { rows: 2, placeholder: '{"temperature": 21}', "aria-label": label, class: "mono", spellcheck: "false" });
  const send = (event) => {
    event.preventDefault();
    acts.result(message, call, field.value);
  };
  field.addEventListener("keydown", (event) => event.key === "Enter" && !event.shiftKey && send(event));
  return h("form", { class: "call-form", onsubmit: send }, h("span", { class: "quiet" }, label), field, h("button", { type: "submit", class: "button" }, "Send the result"));
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

function footer(message, acts, last) {
  const buttons = [iconButton("copy", "Copy", (event) => copy(message.content, event.currentTarget))];
  if (last) buttons.push(iconButton("again", "Answer again", () => acts.again(message)));
  const view = h("div", { hidden: true });
  if (message.tokens?.length) {
    const toggle = iconButton("tokens", "Tokens and their probabilities", () => {
      if (!view.hasChildNodes()) view.append(tokenView(message.tokens));
      view.hidden = !view.hidden;
      toggle.setAttribute("aria-expanded", !view.hidden);
    }, { "aria-expanded": "false" });
    buttons.push(toggle);
  }
  if (message.usage && acts.path) buttons.push(iconButton("path", "Where this is in the cache", () => acts.path(message)));
  return [h("div", { class: "actions" }, buttons, measured(message)), view];
}

/** How much of the prompt was in the cache, and how fast the answer came. */
function measured({ usage, timing, finish }) {
  if (!usage) return finish === "stopped" ? h("span", { class: "measured" }, "stopped") : null;
  const prompt = usage.prompt_tokens;
  const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  const share = prompt ? cached / prompt : 0;
  const speed = timing && usage.completion_tokens > 1 ? (usage.completion_tokens - 1) / (timing.total - timing.first) : NaN;
  const parts = [
    `${count(cached)} of ${plural(prompt, "prompt token")} cached`,
    timing && `first token ${seconds(timing.first)}`,
    Number.isFinite(speed) ? `${plural(usage.completion_tokens, "token")} at ${speed.toFixed(speed < 10 ? 1 : 0)}/s` : plural(usage.completion_tokens, "token"),
    finish === "length" && "cut at the limit",
    finish === "stopped" && "stopped",
  ].filter(Boolean);
  const title = `${percent(share)} of the prompt did not need to be computed`;
  return h("span", { class: "measured", title }, filled(share), parts.map((part) => h("span", {}, part)));
}
