// Markdown as models write it, made into elements. Nothing is ever parsed as HTML, and links lead to web pages only.

import { copy, h, iconButton } from "./dom.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const DIVIDER = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const MOST_NESTED = 8;
const MOST_MARKED = 8000; // letters of a paragraph in which marks are looked for

const INLINE = new RegExp(
  [
    "(?<code>`+)(?<inner>[\\s\\S]*?[^`])\\k<code>(?!`)",
    "\\*\\*(?<strong>(?=\\S)[\\s\\S]*?\\S)\\*\\*",
    "(?<![\\w*])[*_](?<em>(?=[^\\s*_])[^*_]*?[^\\s*_]|[^\\s*_])[*_](?![\\w*])",
    "~~(?<del>(?=\\S)[\\s\\S]*?\\S)~~",
    "!?\\[(?<label>[^\\]]*)\\]\\((?<target>[^()\\s]+)\\)",
    "(?<bare>https?://[^\\s<>()]+[^\\s<>().,;:!?'\"])",
  ].join("|"),
);

/** The elements of a text. */
export function markdown(text, depth = 0) {
  const lines = text.split("\n");
  const found = [];
  let at = 0;
  while (at < lines.length) {
    const [element, next] = block(lines, at, depth);
    if (element) found.push(element);
    at = next;
  }
  return found;
}

/** One block, and the line behind it. */
function block(lines, at, depth) {
  const line = lines[at];
  if (!line.trim()) return [null, at + 1];
  const fence = FENCE.exec(line);
  if (fence) return code(lines, at, fence);
  const heading = HEADING.exec(line);
  if (heading) return [h(`h${Math.min(6, heading[1].length + 2)}`, {}, inline(heading[2])), at + 1];
  if (RULE.test(line)) return [h("hr"), at + 1];
  if (depth < MOST_NESTED && QUOTE.test(line)) return quote(lines, at, depth);
  if (depth < MOST_NESTED && ITEM.test(line)) return list(lines, at, depth);
  if (line.includes("|") && DIVIDER.test(lines[at + 1] ?? "") && lines[at + 1].includes("-")) return table(lines, at);
  return paragraph(lines, at);
}

function code(lines, at, [, mark, language]) {
  let end = at + 1;
  const closed = (line) => line.trim().startsWith(mark) && !line.trim().slice(mark.length).trim();
  while (end < lines.length && !closed(lines[end])) end += 1;
  const text = lines.slice(at + 1, end).join("\n");
  const button = iconButton("copy", "Copy the code", () => copy(text, button));
  const head = h("div", { class: "code-head" }, h("span", {}, language || "text"), button);
  return [h("div", { class: "code" }, head, h("pre", { tabindex: "0" }, h("code", {}, text))), end + 1];
}

function quote(lines, at, depth) {
  const inner = [];
  while (at < lines.length && QUOTE.test(lines[at])) inner.push(QUOTE.exec(lines[at++])[1]);
  return [h("blockquote", {}, markdown(inner.join("\n"), depth + 1)), at];
}

function list(lines, at, depth) {
  const [, indent, mark] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(mark);
  const items = [];
  while (at < lines.length) {
    const item = ITEM.exec(lines[at]);
    if (!item || item[1].length > indent.length + 1 || /\d/.test(item[2]) !== ordered || item[1].length < indent.length) break;
    const inner = [item[3]];
    const inside = item[1].length + item[2].length + 1;
    at += 1;
    while (at < lines.length && belongs(lines, at, indent.length)) inner.push(dedent(lines[at++], inside));
    items.push(h("li", {}, tight(markdown(inner.join("\n"), depth + 1))));
  }
  return [h(ordered ? "ol" : "ul", ordered ? { start: parseInt(mark, 10) } : {}, items), at];
}

/** Whether a line goes on with the item above it: it is indented, or empty with such a line behind it. */
function belongs(lines, at, indent) {
  const deeper = (line) => line !== undefined && line.trim() !== "" && line.search(/\S/) > indent;
  return deeper(lines[at]) || (lines[at].trim() === "" && deeper(lines[at + 1]));
}

const dedent = (line, by) => line.slice(Math.min(by, Math.max(0, line.search(/\S/))));

/** An item of one paragraph needs none. */
function tight(elements) {
  const [first, ...rest] = elements;
  return first?.tagName === "P" && rest.every((one) => one.tagName !== "P") ? [...first.childNodes, ...rest] : elements;
}

function table(lines, at) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const head = cells(lines[at]);
  const rows = [];
  for (at += 2; at < lines.length && lines[at].includes("|"); at += 1) rows.push(cells(lines[at]));
  const row = (tag, texts) => h("tr", {}, head.map((_, column) => h(tag, {}, inline(texts[column] ?? ""))));
  const body = h("tbody", {}, rows.map((texts) => row("td", texts)));
  return [h("div", { class: "table", tabindex: "0" }, h("table", {}, h("thead", {}, row("th", head)), body)), at];
}

function paragraph(lines, at) {
  const first = at;
  do at += 1;
  while (at < lines.length && lines[at].trim() && !begins(lines[at]));
  return [h("p", {}, inline(lines.slice(first, at).join("\n"))), at];
}

const begins = (line) => [FENCE, HEADING, RULE, QUOTE, ITEM].some((pattern) => pattern.test(line));

/** Text with what stands in its lines. */
function inline(text, depth = 0) {
  const parts = [];
  while (text) {
    const found = depth < MOST_NESTED && text.length < MOST_MARKED ? INLINE.exec(text) : null;
    if (!found) break;
    if (found.index) parts.push(...broken(text.slice(0, found.index)));
    parts.push(span(found.groups, found[0], depth));
    text = text.slice(found.index + found[0].length);
  }
  return text ? [...parts, ...broken(text)] : parts;
}

function span(groups, whole, depth) {
  if (groups.inner !== undefined) return h("code", {}, groups.inner.trim());
  for (const tag of ["strong", "em", "del"]) if (groups[tag] !== undefined) return h(tag, {}, inline(groups[tag], depth + 1));
  const target = groups.bare ?? groups.target;
  if (!/^(https?:|mailto:)/i.test(target)) return whole;
  return h("a", { href: target, target: "_blank", rel: "noopener noreferrer nofollow" }, groups.bare ?? (groups.label || target));
}

/** Two spaces or a backslash at the end of a line break it. */
function broken(text) {
  return text.split(/(?: {2,}|\\)\n/).flatMap((part, at) => (at ? [h("br"), part] : [part]));
}
