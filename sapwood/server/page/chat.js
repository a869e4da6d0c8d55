// One conversation on the screen: asking, streaming, stopping, asking again.

import { chat } from "./api.js";
import { h, icon } from "./dom.js";
import { editField, messageElement } from "./message.js";
import { bodyOf, told } from "./settings.js";
import { kept } from "./tokens.js";

const STARTS = [
  ["Explain something", "Explain how a prefix cache makes a language model answer faster, in five sentences.", {}],
  ["Try a tool", "What is the weather in Bergen?", { tools: true }],
  ["Answer as JSON", "Give me a plan to learn the cello.", { schema: true }],
];

/** The body of a request for the next answer of a conversation. */
export function requestOf({ settings, messages }) {
  const said = settings.system?.trim() ? [{ role: "system", content: settings.system }] : [];
  for (const { role, content, calls } of messages) {
    if (role === "user") said.push({ role, content });
    if (role !== "assistant") continue;
    if (!content && !calls?.length) continue; // it came to nothing: an error, or stopped at once
    const asked = (calls ?? []).map(({ id, name, arguments: given }) => ({ id, type: "function", function: { name, arguments: given } }));
    said.push({ role, content, ...(asked.length && { tool_calls: asked }) });
    for (const call of calls ?? []) said.push({ role: "tool", tool_call_id: call.id, content: call.result ?? "" });
  }
  return { messages: said, ...bodyOf(settings) };
}

export class Chat {
  /** `hooks`: `changed` when there is something to keep, `start` for an example, `path` to show a conversation in the cache. */
  constructor({ thread, composer, hooks }) {
    Object.assign(this, { thread, hooks, conversation: null, running: null, early: false, pending: 0 });
    this.acts = {
      edit: (message, element) => this.edit(message, element),
      again: (message) => this.again(message),
      result: (message, call, text) => this.result(message, call, text),
      path: (message) => hooks.path({ ...this.conversation, messages: this.upTo(message) }),
    };
    this.compose(composer);
    document.addEventListener("keydown", (event) => this.shortcut(event));
  }

  upTo(message) {
    const { messages } = this.conversation;
    return messages.slice(0, messages.indexOf(message) + 1);
  }

  compose(composer) {
    this.field = h("textarea", { id: "ask", rows: 1, placeholder: "Ask something", "aria-label": "Your message", oninput: () => this.fit() });
    this.button = h("button", { type: "submit", class: "send", "aria-label": "Send" }, icon("send"));
    this.used = h("p", { class: "given" });
    composer.append(h("div", { class: "box" }, this.field, this.button), this.used);
    this.field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) (event.preventDefault(), composer.requestSubmit());
    });
    composer.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.running) this.stop();
      else this.ask(this.field.value);
    });
  }

  shortcut(event) {
    if (event.key === "Escape" && this.running && !document.querySelector("dialog[open]")) this.stop();
    const typing = event.target.closest?.("input, textarea, select");
    if (event.key === "/" && !typing && this.thread.checkVisibility?.() !== false) (event.preventDefault(), this.field.focus());
  }

  fit() {
    this.field.style.height = "auto";
    this.field.style.height = `${Math.min(this.field.scrollHeight, 220)}px`;
  }

  show(conversation) {
    if (conversation !== this.conversation) this.stop();
    this.conversation = conversation;
    this.draw();
    this.settled();
    this.thread.scrollTop = this.thread.scrollHeight;
    if (this.early) this.ask(this.field.value);
  }

  /** Settings have changed. */
  settled() {
    this.used.textContent = told(this.conversation.settings).join(" · ");
  }

  draw() {
    const { messages } = this.conversation;
    const shown = messages.map((message) => this.element(message));
    this.thread.replaceChildren(...(shown.length ? shown : [this.welcome()]));
    this.button.replaceChildren(icon(this.running ? "stop" : "send"));
    this.button.setAttribute("aria-label", this.running ? "Stop" : "Send");
    this.thread.setAttribute("aria-busy", Boolean(this.running));
  }

  element(message) {
    const last = message === this.conversation.messages.at(-1);
    return messageElement(message, { acts: this.acts, running: Boolean(this.running) && last, last });
  }

  welcome() {
    const start = ([label, text, use]) => h("button", { type: "button", class: "start", onclick: () => this.example(text, use) }, h("strong", {}, label), h("span", {}, text));
    return h("div", { class: "welcome" }, h("img", { src: "page/icon.svg", alt: "", width: 56, height: 56 }), h("h2", {}, "What would you like to know?"), h("div", { class: "starts" }, STARTS.map(start)));
  }

  example(text, use) {
    this.hooks.start(use);
    this.field.value = text;
    this.fit();
    this.field.focus();
  }

  async ask(text) {
    if (!text.trim() || this.running) return;
    const { conversation } = this;
    this.early = !conversation; // they are still being read: asked as soon as there is one
    if (this.early) return;
    conversation.messages.push({ role: "user", content: text });
    conversation.title ||= text.trim().split("\n")[0].slice(0, 80);
    this.field.value = "";
    this.fit();
    await this.answer();
  }

  edit(message, element) {
    editField(message, element, async (text) => {
      const { messages } = this.conversation;
      if (text !== null) {
        messages.splice(messages.indexOf(message));
        await this.ask(text);
      } else {
        this.draw();
      }
    });
  }

  async again(message) {
    const { messages } = this.conversation;
    messages.splice(messages.indexOf(message));
    await this.answer();
  }

  /** A tool's result was typed in; once there is one for each call, the model goes on. */
  async result(message, call, text) {
    call.result = text;
    this.draw();
    await this.hooks.changed(this.conversation);
    if (message.calls.every(({ result }) => result !== undefined)) await this.answer();
    else this.thread.querySelector(".call-form textarea")?.focus();
  }

  stop() {
    this.running?.abort();
  }

  async answer() {
    const { conversation } = this;
    const message = { role: "assistant", content: "", thought: "", calls: [], tokens: [] };
    const abort = (this.running = new AbortController());
    let request = null;
    try {
      request = requestOf(conversation);
      conversation.messages.push(message);
      this.draw();
      this.follow();
      await this.stream(request, message, abort.signal);
    } catch (error) {
      if (!request) conversation.messages.push(message);
      if (abort.signal.aborted) message.finish = "stopped";
      else message.error = error.message;
    } finally {
      this.running = null;
      conversation.updated = Date.now();
      if (conversation === this.conversation) this.drawEnd();
      await this.hooks.changed(conversation);
    }
  }

  async stream(request, message, signal) {
    const began = performance.now();
    const since = () => (performance.now() - began) / 1000;
    let first = null;
    for await (const chunk of chat(request, signal)) {
      const [choice] = chunk.choices;
      if (chunk.usage) Object.assign(message, { usage: chunk.usage, timing: { first: first ?? since(), total: since() } });
      if (!choice) continue;
      if (take(message, choice)) first ??= since();
      if (choice.delta.content && message.thought) message.thoughtSeconds ??= since();
      this.soon(message);
    }
  }

  /** Draw the last message again with the next frame, however many chunks come until then. */
  soon(message) {
    this.pending ||= requestAnimationFrame(() => {
      this.pending = 0;
      if (!this.running || message !== this.conversation.messages.at(-1)) return;
      const near = this.near();
      this.thread.lastElementChild.replaceWith(this.element(message));
      if (near) this.follow();
    });
  }

  drawEnd() {
    const near = this.near();
    this.draw();
    if (near) this.follow();
  }

  /** Whether one looks at the end, and wants to stay there. */
  near() {
    return this.thread.scrollHeight - this.thread.scrollTop - this.thread.clientHeight < 80;
  }

  follow() {
    this.thread.scrollTop = this.thread.scrollHeight;
  }
}

/** Add a chunk's choice to the message; whether it held any of the answer. */
function take(message, { delta, logprobs, finish_reason: finish }) {
  message.content += delta.content ?? "";
  message.thought += delta.reasoning_content ?? "";
  for (const { index, id, function: part } of delta.tool_calls ?? []) {
    const call = (message.calls[index] ??= { id, name: "", arguments: "" });
    call.name += part?.name ?? "";
    call.arguments += part?.arguments ?? "";
  }
  message.tokens.push(...(logprobs?.content ?? []).map(kept));
  if (finish) message.finish = finish;
  return Boolean(delta.content || delta.reasoning_content || delta.tool_calls || logprobs?.content?.length);
}
