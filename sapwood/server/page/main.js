// The page: what it consists of, and how its parts are opened and closed.

import * as api from "./api.js";
import { Chat } from "./chat.js";
import { byId } from "./dom.js";
import { Live } from "./live.js";
import { EXAMPLES, Settings } from "./settings.js";
import { Side } from "./side.js";

const LIVE = "#/live"; // no element's id, so that nothing scrolls
const THEME = "sapwood.theme";
const narrow = matchMedia("(max-width: 860px)");

// -- light and dark -------------------------------------------------------------------------------------------------

function dress(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  document.dispatchEvent(new CustomEvent("theme"));
}

function swapTheme() {
  const dark = document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  const theme = dark === "dark" ? "light" : "dark";
  localStorage.setItem(THEME, theme);
  dress(theme);
}

// -- panels ---------------------------------------------------------------------------------------------------------

const panels = { side: byId("open-side"), settings: byId("open-settings") };

function toggle(name, open = !isOpen(name)) {
  const panel = byId(name);
  if (name === "side") panel.classList.toggle("open", open);
  else panel.hidden = !open;
  panels[name].setAttribute("aria-expanded", open);
  byId("backdrop").hidden = !(narrow.matches && (isOpen("side") || isOpen("settings")));
  if (open && narrow.matches) panel.querySelector("button, input, textarea")?.focus();
}

const isOpen = (name) => (name === "side" ? byId("side").classList.contains("open") : !byId("settings").hidden);

function closePanels() {
  toggle("side", false);
  if (narrow.matches) toggle("settings", false);
}

// -- views ----------------------------------------------------------------------------------------------------------

function view(name) {
  for (const one of ["chat", "live"]) {
    const tab = byId(`tab-${one}`);
    tab.setAttribute("aria-selected", one === name);
    tab.tabIndex = one === name ? 0 : -1;
    byId(one).hidden = one !== name;
  }
  byId("open-settings").hidden = name !== "chat";
  history.replaceState(null, "", name === "live" ? LIVE : location.pathname);
  live.watch(name === "live");
}

function say(text) {
  const notice = byId("notice");
  notice.textContent = text;
  notice.hidden = !text;
  if (text) setTimeout(() => notice.textContent === text && say(""), 8000);
}

// -- the key --------------------------------------------------------------------------------------------------------

function askForKey() {
  const dialog = byId("key-dialog");
  byId("open-key").hidden = false;
  if (dialog.open) return;
  byId("key-wrong").hidden = !api.key.get();
  byId("key-field").value = "";
  dialog.showModal();
}

function takeKey(event) {
  event.preventDefault();
  api.key.set(byId("key-field").value.trim());
  byId("key-dialog").close();
  greet();
}

/** Say which model is served. */
async function greet() {
  try {
    const { data } = await api.getJson("v1/models");
    byId("model").textContent = data[0]?.id ?? "";
    live.wake();
  } catch (error) {
    if (error.status !== 401) say(error.message);
  }
}

// -- all together ---------------------------------------------------------------------------------------------------

const live = new Live(byId("live"));
const chat = new Chat({
  thread: byId("thread"),
  composer: byId("composer"),
  hooks: { changed: (conversation) => side.keep(conversation), start: example, path: showPath },
});
const settings = new Settings(byId("settings"), { changed: settle, close: () => toggle("settings", false) });
const side = new Side(byId("side"), {
  say,
  choose(conversation) {
    chat.show(conversation);
    settings.show(conversation.settings);
    if (narrow.matches) toggle("side", false);
  },
});

function settle(values) {
  chat.conversation.settings = values;
  chat.settled();
  side.keep(chat.conversation);
}

function example(use) {
  const values = { ...chat.conversation.settings };
  for (const name of Object.keys(use)) values[name] = EXAMPLES[name];
  settings.show(values);
  settle(values);
}

function showPath(conversation) {
  view("live");
  live.light(conversation).catch((error) => say(error.message));
}

function begin() {
  dress(localStorage.getItem(THEME));
  byId("theme").addEventListener("click", swapTheme);
  for (const [name, button] of Object.entries(panels)) button.addEventListener("click", () => toggle(name));
  byId("backdrop").addEventListener("click", closePanels);
  document.addEventListener("keydown", (event) => event.key === "Escape" && narrow.matches && closePanels());
  for (const name of ["chat", "live"]) {
    byId(`tab-${name}`).addEventListener("click", () => view(name));
    byId(`tab-${name}`).addEventListener("keydown", (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      const other = name === "chat" ? "live" : "chat";
      view(other);
      byId(`tab-${other}`).focus();
    });
  }
  document.addEventListener("key-needed", askForKey);
  byId("open-key").addEventListener("click", askForKey);
  byId("key-form").addEventListener("submit", takeKey);
  byId("key-cancel").addEventListener("click", () => byId("key-dialog").close());
  addEventListener("hashchange", () => view(location.hash === LIVE ? "live" : "chat"));
  view(location.hash === LIVE ? "live" : "chat");
  side.begin();
  greet();
}

begin();
