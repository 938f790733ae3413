"use strict";
// Reads openapi.json and makes every route readable and try-able. Texts go in as text, never as markup.

const LONGEST_CODE = 80; // letters of a picture in a shown answer: it has millions
const LONGEST_TEXT = 4000; // of any other text
let api = {};

function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-")) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Text in which `words` in backticks are code. */
function prose(text) {
  const parts = String(text || "").split("`");
  return make("p", {}, ...parts.map((part, number) => (number % 2 ? make("code", {}, part) : part)));
}

// ------------------------------------------------------------------ schemas

function resolved(schema, deep = 0) {
  if (!schema || deep > 20) return {};
  if (schema.$ref) {
    const target = schema.$ref.split("/").slice(1).reduce((place, key) => (place || {})[key], api);
    return { ...resolved(target, deep + 1), ...without(schema, "$ref") };
  }
  const choices = schema.anyOf || schema.oneOf || schema.allOf;
  if (!choices) return schema;
  const first = choices.find((choice) => choice.type !== "null") || {};
  return { ...resolved(first, deep + 1), ...without(schema, "anyOf", "oneOf", "allOf") };
}

function without(object, ...names) {
  return Object.fromEntries(Object.entries(object).filter(([name]) => !names.includes(name)));
}

function typeOf(schema) {
  const one = resolved(schema);
  if (one.enum) return one.enum.map((value) => JSON.stringify(value)).join(" | ");
  if ("const" in one) return JSON.stringify(one.const);
  if (one.type === "array") return `list of ${typeOf(one.items || {})}`;
  if (one.type === "object" && one.title) return one.title;
  const low = one.minimum ?? one.exclusiveMinimum, high = one.maximum ?? one.exclusiveMaximum;
  const range = low === undefined && high === undefined ? "" : ` ${low ?? ""}…${high ?? ""}`;
  return `${one.type || "anything"}${range}`;
}

/** What a value of this kind may look like. */
function example(schema, deep = 0) {
  const one = resolved(schema);
  if (one.default !== undefined && one.default !== null) return one.default;
  if (one.enum) return one.enum[0];
  if ("const" in one) return one.const;
  if (one.type === "object") return deep > 3 ? {} : exampleObject(one, deep);
  if (one.type === "array") return deep > 3 || !one.items ? [] : [example(one.items, deep + 1)];
  if (one.type === "integer" || one.type === "number") return one.minimum ?? 0;
  if (one.type === "boolean") return false;
  return one.type === "string" ? "" : null;
}

/** What is required; where nothing is, the first few plain fields. */
function exampleObject(schema, deep) {
  const fields = Object.entries(schema.properties || {});
  const plain = (kind) => ["string", "integer", "number", "boolean"].includes(resolved(kind).type);
  let chosen = (schema.required || []).map((name) => [name, (schema.properties || {})[name]]);
  if (!chosen.length) chosen = fields.filter(([, kind]) => plain(kind)).slice(0, 3);
  return Object.fromEntries(chosen.map(([name, kind]) => [name, example(kind, deep + 1)]));
}

// ------------------------------------------------------------------ tables

function table(heads, rows) {
  return make("div", { className: "scroll" }, make("table", {},
    make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", {}, head)))),
    make("tbody", {}, ...rows)));
}

function told(schema) {
  const one = resolved(schema);
  const usual = one.default === undefined ? "" : JSON.stringify(one.default);
  return [make("td", {}, typeOf(schema)), make("td", {}, usual), make("td", {}, one.description || "")];
}

function fieldTable(schema, body) {
  const required = new Set(schema.required || []);
  const rows = Object.entries(schema.properties || {}).map(([name, kind]) => {
    const button = make("button", { type: "button", title: "put it into the body" }, name);
    button.addEventListener("click", () => addField(body, name, kind));
    return make("tr", {}, make("td", {}, button, required.has(name) ? " *" : ""), ...told(kind));
  });
  return table(["field", "type", "usual", ""], rows);
}

function addField(body, name, kind) {
  let value;
  try {
    value = JSON.parse(body.value || "{}");
  } catch {
    body.focus();
    return;
  }
  const target = Array.isArray(value) ? value[0] : value;
  if (target && !(name in target)) target[name] = example(kind);
  body.value = JSON.stringify(value, null, 2);
}

// ------------------------------------------------------------------ one route

function route(path, verb, operation) {
  const [about] = paragraphs(operation);
  const details = make("details", { className: "route", id: operation.operationId || `${verb} ${path}` },
    make("summary", {}, make("span", { className: `verb ${verb}` }, verb.toUpperCase()),
      make("span", { className: "path" }, path), make("span", { className: "about" }, about)));
  const words = [path, verb, about, operation.description, ...(operation.parameters || []).map((one) => one.name)];
  const media = operation.requestBody && operation.requestBody.content["application/json"];
  const schema = media ? resolved(media.schema) : null;
  words.push(...Object.keys((schema && schema.properties) || {}));
  details.dataset.words = words.join(" ").toLowerCase();
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) details.append(inner(path, verb, operation, media));
  });
  return details;
}

/** What a route says of itself; without that, its name. */
function paragraphs(operation) {
  return (operation.description || operation.summary || "").trim().split(/\n\s*\n/);
}

function inner(path, verb, operation, media) {
  const place = make("div", { className: "inner" });
  place.append(...paragraphs(operation).slice(1).map(prose));
  const inputs = new Map();
  if ((operation.parameters || []).length) {
    place.append(make("h3", {}, "Parameters"), table(["name", "type", "usual", "", "value"], operation.parameters.map((one) => {
      const input = make("input", { "aria-label": one.name, placeholder: one.in });
      inputs.set(one, input);
      return make("tr", {}, make("td", {}, one.name + (one.required ? " *" : "")), ...told({ ...one.schema, description: one.description }),
        make("td", {}, input));
    })));
  }
  let body = null;
  if (media) {
    const schema = resolved(media.schema);
    body = make("textarea", { spellcheck: false, value: JSON.stringify(example(media.schema), null, 2), "aria-label": "Body" });
    const fields = schema.type === "array" ? resolved(schema.items) : schema;
    place.append(make("h3", {}, "Body"), body);
    if (fields.properties) place.append(make("details", {}, make("summary", {}, "Fields"), fieldTable(fields, body)));
  }
  const answer = make("div", { className: "answer", "aria-live": "polite" });
  place.append(actions(path, verb, inputs, body, answer), answer, answersOf(operation));
  return place;
}

function answersOf(operation) {
  const rows = Object.entries(operation.responses || {}).map(([status, response]) => {
    const [type, media] = Object.entries(response.content || {})[0] || ["", {}];
    const schema = media.schema ? resolved(media.schema) : {};
    const fields = Object.keys(schema.properties || {}).join(", ");
    return make("tr", {}, make("td", {}, status), make("td", {}, type), make("td", {}, fields || (media.schema ? typeOf(schema) : "")),
      make("td", {}, response.description || ""));
  });
  return make("details", {}, make("summary", {}, "Answers"), table(["status", "type", "fields", ""], rows));
}

function actions(path, verb, inputs, body, answer) {
  const send = make("button", { type: "button", className: "send" }, "Send");
  const stop = make("button", { type: "button", disabled: true }, "Stop");
  const place = make("div", { className: "actions" }, send, stop);
  if (body) place.append(pictureChooser(body));
  let under = null;
  send.addEventListener("click", async () => {
    under = new AbortController();
    send.disabled = true;
    stop.disabled = false;
    try {
      await ask(path, verb, inputs, body, answer, under.signal);
    } catch (error) {
      if (error.name !== "AbortError") answer.append(make("p", { className: "wrong" }, String(error.message || error)));
    }
    send.disabled = false;
    stop.disabled = true;
  });
  stop.addEventListener("click", () => under && under.abort());
  return place;
}

function pictureChooser(body) {
  const file = make("input", { type: "file", accept: "image/*" });
  file.addEventListener("change", () => {
    if (!file.files[0]) return;
    const reader = new FileReader();
    reader.addEventListener("load", () => {
      const text = String(reader.result).split(",")[1];
      body.setRangeText(text, body.selectionStart, body.selectionEnd, "end");
    });
    reader.readAsDataURL(file.files[0]);
    file.value = "";
  });
  return make("label", { title: "in base64, where the cursor stands" }, "Insert a picture", file);
}

// ------------------------------------------------------------------ asking

async function ask(path, verb, inputs, body, answer, signal) {
  answer.replaceChildren(make("p", {}, "Waiting for the answer …"));
  let url = path.replace(/^\//, "");
  const query = new URLSearchParams();
  for (const [one, input] of inputs) {
    if (one.in === "path") url = url.replace(`{${one.name}}`, encodeURIComponent(input.value));
    else if (one.in === "query" && input.value !== "") query.append(one.name, input.value);
  }
  if ([...query].length) url += `?${query}`;
  const options = { method: verb.toUpperCase(), signal };
  if (body) {
    JSON.parse(body.value); // says what is wrong, before it is sent
    options.body = body.value;
    options.headers = { "Content-Type": "application/json" };
  }
  const start = performance.now();
  const reply = await fetch(url, options);
  const time = `${Math.round(performance.now() - start)} ms`;
  const head = make("p", {}, make("span", { className: reply.ok ? "status" : "status wrong" }, `${reply.status} ${reply.statusText}`), ` · ${time}`);
  answer.replaceChildren(head);
  const type = reply.headers.get("content-type") || "";
  if (type.startsWith("image/")) answer.append(make("img", { src: URL.createObjectURL(await reply.blob()), alt: "the answer" }));
  else if (type.startsWith("text/event-stream")) await showStream(reply, answer);
  else showText(await reply.text(), answer);
}

async function showStream(reply, answer) {
  const shown = make("pre", { tabIndex: 0 });
  answer.append(shown);
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    shown.append(value.replace(/[A-Za-z0-9+/=]{300,}/g, "…"));
    shown.scrollTop = shown.scrollHeight;
  }
}

function showText(text, answer) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    answer.append(make("pre", { tabIndex: 0 }, text.slice(0, 20000)));
    return;
  }
  for (const picture of picturesIn(value).slice(0, 16)) {
    answer.append(make("img", { src: picture, alt: "a picture of the answer" }));
  }
  const short = (key, one) => {
    if (typeof one !== "string") return one;
    const most = /^[\w+/=:;,-]*$/.test(one.slice(0, 1000)) ? LONGEST_CODE : LONGEST_TEXT;
    return one.length > most ? `${one.slice(0, most)}… (${one.length} letters)` : one;
  };
  answer.append(make("pre", { tabIndex: 0 }, JSON.stringify(value, short, 2)));
}

/** Pictures in base64, wherever they stand. */
function picturesIn(value) {
  if (typeof value === "string") {
    if (/^data:image\/(png|jpeg|webp);base64,/.test(value)) return [value];
    const kind = { iVBORw0KGgo: "png", "/9j/": "jpeg", UklGR: "webp" };
    const found = Object.keys(kind).find((start) => value.startsWith(start) && value.length > 60);
    return found ? [`data:image/${kind[found]};base64,${value}`] : [];
  }
  return value && typeof value === "object" ? Object.values(value).flatMap(picturesIn) : [];
}

// ------------------------------------------------------------------ the page

function show() {
  const groups = new Map((api.tags || []).map((tag) => [tag.name, { about: tag.description, routes: [] }]));
  for (const [path, verbs] of Object.entries(api.paths)) {
    for (const [verb, operation] of Object.entries(verbs)) {
      const name = (operation.tags || ["other"])[0];
      if (!groups.has(name)) groups.set(name, { about: "", routes: [] });
      groups.get(name).routes.push(route(path, verb, operation));
    }
  }
  const main = document.getElementById("routes");
  main.replaceChildren(...(api.info.description || "").trim().split(/\n\s*\n/).map(prose));
  for (const [name, group] of groups) {
    if (!group.routes.length) continue;
    main.append(make("section", {}, make("h2", {}, name), group.about ? prose(group.about) : null, ...group.routes));
  }
  main.append(make("p", { id: "none", hidden: true }, "No route has that in it."));
}

function filter(words) {
  let any = false;
  for (const section of document.querySelectorAll("section")) {
    let some = false;
    for (const one of section.querySelectorAll("details.route")) {
      one.hidden = !words.every((word) => one.dataset.words.includes(word));
      some ||= !one.hidden;
    }
    section.hidden = !some;
    any ||= some;
  }
  document.getElementById("none").hidden = any;
}

document.getElementById("search").addEventListener("input", (event) => {
  filter(event.target.value.toLowerCase().split(/\s+/).filter(Boolean));
});

fetch("openapi.json").then((reply) => {
  if (!reply.ok) throw new Error(`openapi.json: ${reply.status}`);
  return reply.json();
}).then((found) => {
  api = found;
  show();
}).catch((error) => {
  document.getElementById("state").textContent = `The routes could not be read: ${error.message}`;
});
