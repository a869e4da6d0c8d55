// The conversations that are kept in this browser.

import { h, iconButton } from "./dom.js";
import * as store from "./store.js";

export class Side {
  /** `hooks`: `choose` is called with the conversation to be shown, `say` with what went wrong. */
  constructor(panel, hooks) {
    Object.assign(this, { panel, hooks, conversations: [], current: null });
    this.list = h("ul", { class: "conversations" });
    const add = h("button", { type: "button", class: "button wide", onclick: () => this.add() }, "New conversation");
    this.file = h("input", { type: "file", accept: "application/json,.json", class: "away", tabindex: "-1", "aria-label": "A file of conversations", onchange: () => this.load() });
    const actions = [
      iconButton("save", "Export all conversations", () => this.save(this.conversations)),
      iconButton("load", "Import conversations", () => this.file.click()),
    ];
    panel.append(add, this.list, h("div", { class: "side-actions" }, actions, this.file));
  }

  async begin() {
    try {
      this.conversations = await store.all();
    } catch {
      this.hooks.say("This browser keeps no data for this page: conversations are lost when it is closed.");
    }
    const last = this.conversations.find(({ id }) => id === store.last.get());
    this.choose(last ?? this.conversations[0] ?? store.fresh());
  }

  choose(conversation) {
    this.current = conversation;
    store.last.set(conversation.id);
    this.draw();
    this.hooks.choose(conversation);
  }

  /** A new one, unless nothing was said in the one that is shown. */
  add() {
    const { current } = this;
    this.choose(current && !current.messages.length ? current : store.fresh({ ...current?.settings }));
  }

  /** Keep a conversation that something was said in. */
  async keep(conversation) {
    if (!conversation.messages.length) return;
    if (!this.conversations.includes(conversation)) this.conversations.push(conversation);
    this.conversations.sort((one, other) => other.updated - one.updated);
    this.draw();
    await store.put(conversation).catch(() => this.hooks.say("The conversation could not be kept: this browser has no room for it."));
  }

  async remove(conversation) {
    if (!confirm(`Delete “${conversation.title}”?`)) return;
    this.conversations = this.conversations.filter((one) => one !== conversation);
    await store.remove(conversation.id).catch(() => {});
    if (conversation === this.current) this.choose(this.conversations[0] ?? store.fresh({ ...conversation.settings }));
    else this.draw();
  }

  save(conversations) {
    const link = h("a", { href: URL.createObjectURL(new Blob([store.exported(conversations)], { type: "application/json" })), download: "sapwood-conversations.json" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  async load() {
    const [file] = this.file.files;
    this.file.value = "";
    if (!file) return;
    try {
      const found = store.imported(await file.text());
      for (const conversation of found) await this.keep(conversation);
      if (found.length) this.choose(found[0]);
    } catch (error) {
      this.hooks.say(error.message);
    }
  }

  draw() {
    const row = (conversation) => {
      const open = h("button", {
        type: "button", class: "conversation", "aria-current": conversation === this.current ? "true" : null, onclick: () => this.choose(conversation),
      }, conversation.title || "Untitled");
      const actions = [
        iconButton("save", `Export ${conversation.title}`, () => this.save([conversation])),
        iconButton("remove", `Delete ${conversation.title}`, () => this.remove(conversation)),
      ];
      return h("li", {}, open, h("span", { class: "row-actions" }, actions));
    };
    this.list.replaceChildren(...this.conversations.map(row));
  }
}
