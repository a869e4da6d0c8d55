// Conversations, kept in this browser and nowhere else.

const NAME = "sapwood";
const TABLE = "conversations";
const LAST = "sapwood.last";

let opened = null;

function open() {
  opened ??= new Promise((resolve, reject) => {
    const asked = indexedDB.open(NAME, 1);
    asked.onupgradeneeded = () => asked.result.createObjectStore(TABLE, { keyPath: "id" });
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
  return opened;
}

async function within(mode, work) {
  const base = await open();
  return new Promise((resolve, reject) => {
    const transaction = base.transaction(TABLE, mode);
    const request = work(transaction.objectStore(TABLE));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onerror = () => reject(transaction.error);
  });
}

/** All of them, the last one used first. */
export async function all() {
  const found = await within("readonly", (table) => table.getAll());
  return found.sort((one, other) => other.updated - one.updated);
}

export const put = (conversation) => within("readwrite", (table) => table.put(conversation));
export const remove = (id) => within("readwrite", (table) => table.delete(id));

export const last = {
  get: () => localStorage.getItem(LAST),
  set: (id) => localStorage.setItem(LAST, id),
};

/** A conversation that nothing was said in yet. `settings` are those that go on from the one before. */
export function fresh(settings = {}) {
  const now = Date.now();
  return { id: crypto.randomUUID?.() ?? `${now}-${Math.random()}`, title: "", created: now, updated: now, settings, messages: [] };
}

export function exported(conversations) {
  return JSON.stringify({ format: "sapwood-conversations", version: 1, conversations }, null, 1);
}

/** The conversations of an exported file. Throws Error, saying what is wrong with it. */
export function imported(text) {
  let body;
  try {
    body = JSON.parse(text);
  } catch {
    throw new Error("The file is not JSON.");
  }
  if (body?.format !== "sapwood-conversations" || !Array.isArray(body.conversations)) {
    throw new Error("The file holds no conversations that were exported here.");
  }
  return body.conversations.map((one) => {
    if (typeof one !== "object" || one === null || !Array.isArray(one.messages)) throw new Error("A conversation in the file has no messages.");
    const messages = one.messages.filter((message) => typeof message?.content === "string" && typeof message?.role === "string");
    const settings = typeof one.settings === "object" && one.settings !== null ? one.settings : {};
    return { ...fresh(settings), title: String(one.title ?? ""), messages, updated: Number(one.updated) || Date.now() };
  });
}
