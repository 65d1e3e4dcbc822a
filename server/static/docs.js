// The API from its own openapi.json: what each endpoint takes and answers, and a form that asks it. Nothing is loaded from elsewhere.

const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

/** A schema with its reference followed. */
const follow = (schema, api) =>
  schema?.$ref ? schema.$ref.slice(2).split("/").reduce((at, name) => at[name], api) : (schema ?? {});

/** The type of a schema in a few words. */
function kind(schema, api) {
  const found = follow(schema, api);
  const several = found.anyOf ?? found.oneOf;
  if (several) return several.map((one) => kind(one, api)).filter((one) => one !== "null").join(" or ");
  if (found.enum) return found.enum.map((value) => JSON.stringify(value)).join(", ");
  if (found.type === "array") return `list of ${kind(found.items, api)}`;
  const limits = [found.minimum !== undefined && `from ${found.minimum}`, found.maximum !== undefined && `to ${found.maximum}`];
  return [found.title && found.type === "object" ? found.title : found.type ?? "anything", ...limits.filter(Boolean)].join(" ");
}

function fields(schema, api) {
  const found = follow(schema, api);
  const needed = new Set(found.required ?? []);
  return make("table", {}, ...Object.entries(found.properties ?? {}).map(([name, part]) =>
    make("tr", {},
      make("td", {}, make("code", { textContent: name })),
      make("td", { textContent: kind(part, api) + (needed.has(name) ? ", needed" : "") }),
      make("td", { textContent: part.description ?? follow(part, api).description ?? "" }))));
}

/** A form that asks the endpoint and shows what it answers. */
function form(method, path, operation, api) {
  const body = operation.requestBody?.content?.["application/json"]?.schema;
  const inputs = (operation.parameters ?? []).map((parameter) => ({ parameter, input: make("input", { type: "text", name: parameter.name }) }));
  const example = follow(body, api).examples?.[0] ?? {};
  const text = body && make("textarea", { value: JSON.stringify(example, null, 2), spellcheck: false });
  const answer = make("pre", { hidden: true, tabIndex: 0 });
  const send = make("button", { type: "submit", textContent: "Send" });
  const children = inputs.map(({ parameter, input }) => make("label", {}, `${parameter.name} `, input));
  if (text) children.push(make("label", {}, "Body", text));
  const element = make("form", {}, ...children, send, answer);
  element.addEventListener("submit", async (event) => {
    event.preventDefault();
    send.disabled = true;
    const query = new URLSearchParams(inputs.filter(({ input }) => input.value).map(({ parameter, input }) => [parameter.name, input.value]));
    const address = new URL(path.slice(1) + (query.size ? `?${query}` : ""), document.baseURI);
    try {
      const options = text ? { method, body: text.value, headers: { "content-type": "application/json" } } : { method };
      const response = await fetch(address, options);
      const told = await response.text();
      let shown = told;
      try {
        shown = JSON.stringify(JSON.parse(told), null, 2);
      } catch {
        // not JSON: shown as it is
      }
      answer.textContent = `${response.status} ${response.statusText}\n${shown.slice(0, 20000)}`;
    } catch (error) {
      answer.textContent = `The server does not answer: ${error.message}`;
    }
    answer.hidden = false;
    send.disabled = false;
  });
  return element;
}

function endpoint(method, path, operation, api) {
  const body = operation.requestBody?.content?.["application/json"]?.schema;
  const answered = operation.responses?.[200]?.content?.["application/json"]?.schema;
  const meanings = Object.entries(operation.responses ?? {}).filter(([status]) => status !== "200");
  const parts = [make("p", { textContent: operation.description ?? "" })];
  if (body) parts.push(make("h3", { textContent: "Takes" }), fields(body, api));
  if (answered) parts.push(make("h3", { textContent: "Answers" }), fields(answered, api));
  if (meanings.length) {
    parts.push(make("table", {}, ...meanings.map(([status, { description }]) =>
      make("tr", {}, make("td", { textContent: status }), make("td", { textContent: description })))));
  }
  const title = make("summary", {}, make("b", { textContent: method }), make("code", { textContent: path }),
    make("span", { textContent: (operation.description ?? operation.summary ?? "").split("\n")[0] }));
  return make("details", {}, title, ...parts, form(method, path, operation, api));
}

async function show() {
  const api = await (await fetch(new URL("openapi.json", document.baseURI))).json();
  const groups = new Map();
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const tag = operation.tags?.[0] ?? "Other";
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push(endpoint(method.toUpperCase(), path, operation, api));
    }
  }
  document.querySelector("main").replaceChildren(
    ...[...groups].flatMap(([tag, entries]) => [make("h2", { textContent: tag }), ...entries]));
}

show().catch((error) => {
  document.getElementById("state").textContent = `The API's description could not be read: ${error.message}`;
});
