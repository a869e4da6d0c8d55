// What a request may ask for: the instructions, sampling, tools and schema of a conversation.

import { h, iconButton } from "./dom.js";

const number = (name, label, hint, more = {}) => ({ name, label, hint, kind: "number", step: "any", ...more });
const whole = (name, label, hint, more = {}) => number(name, label, hint, { step: 1, ...more });
const text = (name, label, hint, more = {}) => ({ name, label, hint, kind: "text", ...more });

const list = (value) => value.split(",").map((part) => part.trim()).filter(Boolean);
const ids = (value) => list(value).map(Number);
const words = (value) => value.split("\n").filter((line) => line !== "");

const SAMPLING = [
  number("temperature", "Temperature", "0 always takes the likeliest token", { min: 0 }),
  number("top_p", "Top p", "the likeliest tokens that make up this share", { min: 0, max: 1 }),
  whole("top_k", "Top k", "this many of the likeliest tokens", { min: -1 }),
  number("min_p", "Min p", "tokens at least this likely beside the likeliest", { min: 0, max: 1 }),
  whole("seed", "Seed", "the same seed, the same answer"),
  whole("max_tokens", "Most tokens", "where the answer ends at the latest", { min: 1 }),
];
const ENDS = [
  text("stop", "Stop texts", "one per line", { kind: "lines", read: words }),
  text("stop_regex", "Stop expressions", "one per line", { kind: "lines", read: words }),
  text("stop_token_ids", "Stop tokens", "ids, with commas", { read: ids }),
  whole("min_tokens", "Fewest tokens", "no end before so many", { min: 0 }),
  { name: "ignore_eos", label: "Go on behind the end", kind: "check" },
  { name: "include_stop_str_in_output", label: "Keep what stopped it", kind: "check" },
];
const MORE = [
  number("frequency_penalty", "Frequency penalty", "", { min: -2, max: 2 }),
  number("presence_penalty", "Presence penalty", "", { min: -2, max: 2 }),
  number("repetition_penalty", "Repetition penalty", "1 is none", { min: 0 }),
  text("logit_bias", "Logit bias", '{"token id": bias}', { read: JSON.parse }),
  text("allowed_token_ids", "Only these tokens", "ids, with commas", { read: ids }),
  text("bad_words", "Never these words", "one per line", { kind: "lines", read: words }),
  whole("thinking_budget", "Most tokens of thoughts", "", { min: 0 }),
  whole("priority", "Priority", "higher first, under that policy"),
  text("cache_salt", "Cache salt", "shares prefixes with the same salt only"),
  { name: "parallel_tool_calls", label: "Several calls at once", kind: "choice", choices: ["", "true", "false"], read: JSON.parse },
];
const FIELDS = [...SAMPLING, ...ENDS, ...MORE];

const EXAMPLE_TOOLS = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "The weather in a city now.",
      parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
    },
  },
];
const EXAMPLE_SCHEMA = {
  type: "object",
  properties: { title: { type: "string" }, steps: { type: "array", items: { type: "string" }, maxItems: 5 } },
  required: ["title", "steps"],
  additionalProperties: false,
};
export const EXAMPLES = { tools: JSON.stringify(EXAMPLE_TOOLS, null, 2), schema: JSON.stringify(EXAMPLE_SCHEMA, null, 2) };

/** Fields of a chat's body that follow from settings. Throws Error that names the setting it cannot read. */
export function bodyOf(settings) {
  const body = {};
  for (const field of FIELDS) {
    const given = settings[field.name];
    if (given === undefined || given === "" || given === false) continue;
    body[field.name] = read(field, given);
  }
  const tools = json("Tools", settings.tools);
  if (tools !== undefined) body.tools = Array.isArray(tools) ? tools : [tools];
  if (body.tools && settings.tool_choice) body.tool_choice = settings.tool_choice;
  const schema = json("Schema", settings.schema);
  if (schema !== undefined) body.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
  if (settings.thinking) body.chat_template_kwargs = { enable_thinking: settings.thinking === "on" };
  if (settings.alternatives !== "off") Object.assign(body, { logprobs: true, top_logprobs: Number(settings.alternatives ?? 5) });
  return body;
}

function read(field, given) {
  try {
    const value = field.kind === "number" ? Number(given) : (field.read ?? String)(given);
    return field.kind === "check" ? true : value;
  } catch (error) {
    throw new Error(`${field.label}: ${error.message}`, { cause: error });
  }
}

function json(label, given) {
  if (!given?.trim()) return undefined;
  try {
    return JSON.parse(given);
  } catch (error) {
    throw new Error(`${label}: not JSON (${error.message})`, { cause: error });
  }
}

/** What differs from the server's own settings, in a few words each. */
export function told(settings) {
  const parts = FIELDS.filter(({ name }) => settings[name] !== undefined && settings[name] !== "" && settings[name] !== false);
  const few = parts.map(({ name, label, kind }) => (kind === "number" ? `${label.toLowerCase()} ${settings[name]}` : label.toLowerCase()));
  if (settings.system?.trim()) few.unshift("instructions");
  if (settings.tools?.trim()) few.push("tools");
  if (settings.schema?.trim()) few.push("schema");
  if (settings.thinking) few.push(`thoughts ${settings.thinking}`);
  return few;
}

/** The panel. `changed` is called with the settings whenever one is. */
export class Settings {
  constructor(panel, { changed, close }) {
    this.panel = panel;
    this.changed = changed;
    this.close = close;
    this.values = {};
  }

  show(values) {
    this.values = values;
    const head = h("div", { class: "panel-head" }, h("h2", {}, "Settings"), iconButton("close", "Close the settings", this.close));
    this.panel.replaceChildren(
      head,
      this.area("system", "Instructions", "What the model is told before anything else", 4),
      this.group("Sampling", SAMPLING, true),
      this.group("Ends", ENDS),
      this.group("Penalties and more", MORE),
      this.section("Tools", this.tools(), Boolean(values.tools)),
      this.section("Answer by a schema", [this.area("schema", "JSON schema", "The answer will match it", 8, "schema")], Boolean(values.schema)),
      this.section("Thoughts and tokens", [
        this.row({ name: "thinking", label: "Thoughts", hint: "where the model can do both", kind: "choice", choices: ["", "on", "off"] }),
        this.row({ name: "alternatives", label: "Alternatives kept per token", kind: "choice", choices: ["off", "0", "1", "3", "5", "10", "20"], otherwise: "5" }),
      ]),
      h("button", { type: "button", class: "button quiet", onclick: () => this.clear() }, "Back to the server's own"),
    );
  }

  clear() {
    this.show({});
    this.changed(this.values);
  }

  set(name, value) {
    this.values = { ...this.values, [name]: value };
    this.changed(this.values);
  }

  tools() {
    const choice = { name: "tool_choice", label: "Choice", hint: "whether it must call one", kind: "choice", choices: ["", "auto", "required", "none"] };
    return [this.area("tools", "Tools", "JSON as OpenAI's clients send it; you type in what they return", 8, "tools"), this.row(choice)];
  }

  group(title, fields, open = false) {
    const used = fields.some(({ name }) => this.values[name] !== undefined && this.values[name] !== "");
    return this.section(title, fields.map((field) => this.row(field)), open || used);
  }

  section(title, rows, open = false) {
    return h("details", { class: "group", open }, h("summary", {}, title), h("div", { class: "rows" }, rows));
  }

  area(name, label, hint, rows, example = null) {
    const id = `setting-${name}`;
    const wrong = h("p", { class: "wrong", role: "alert", hidden: true });
    const check = () => {
      const message = example ? this.wrong(label, field.value) : "";
      wrong.textContent = message;
      wrong.hidden = !message;
    };
    const field = h("textarea", {
      id, rows, placeholder: hint, spellcheck: example ? "false" : "true", class: example ? "mono" : "", value: this.values[name] ?? "",
      oninput: () => this.set(name, field.value), onchange: check,
    });
    const fill = () => {
      field.value = EXAMPLES[example];
      this.set(name, field.value);
      check();
    };
    const button = example && h("button", { type: "button", class: "link", onclick: fill }, "Example");
    return h("div", { class: "row tall" }, h("div", { class: "label-line" }, h("label", { for: id }, label), button), field, wrong);
  }

  wrong(label, value) {
    try {
      json(label, value);
      return "";
    } catch (error) {
      return error.message;
    }
  }

  row(field) {
    const id = `setting-${field.name}`;
    const label = h("label", { for: id }, field.label, field.hint && h("small", {}, field.hint));
    return h("div", { class: `row ${field.kind}` }, label, this.control(field, id));
  }

  control(field, id) {
    const value = this.values[field.name] ?? field.otherwise ?? "";
    const { name, kind, min, max, step } = field;
    if (kind === "choice") {
      const options = field.choices.map((one) => h("option", { value: one }, one || "as it comes"));
      const select = h("select", { id, onchange: () => this.set(name, select.value) }, options);
      select.value = value;
      return select;
    }
    if (kind === "check") return h("input", { id, type: "checkbox", checked: value === true, onchange: (event) => this.set(name, event.target.checked) });
    const oninput = (event) => this.set(name, event.target.value);
    if (kind === "lines") return h("textarea", { id, rows: 2, spellcheck: "false", value, oninput });
    return h("input", { id, type: kind, min, max, step, value, oninput, inputmode: kind === "number" ? "decimal" : null, placeholder: kind === "number" ? "–" : "" });
  }
}
