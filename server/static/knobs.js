// The knobs, built from the action schema of /info: a slider with a number beside it, choices, or a switch.

import { term } from "./terms.js";

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

export class Knobs {
  /** @param {HTMLElement} host @param {object} properties name -> JSON schema of a knob. @param {(action) => void} onChange */
  constructor(host, properties, onChange) {
    this.host = host;
    this.folded = host.nextElementSibling; // details for the locked ones
    this.properties = properties;
    this.onChange = onChange;
    this.values = {};
    this.parts = {};
    for (const [name, schema] of Object.entries(this.properties)) {
      const part = this.build(name, schema);
      this.parts[name] = part;
      host.append(part.group);
      this.set(name, schema.default);
    }
  }

  build(name, schema) {
    const why = element("p", { class: "why", id: `why-${name}` });
    const body = element("div", { class: "control" });
    const legend = element("legend", {}, term(schema.title, schema.description));
    const hint = element("p", { class: "hint", id: `hint-${name}` }, schema.description ?? "");
    const group = element("fieldset", { class: "knob", "data-knob": name, "aria-describedby": `hint-${name} why-${name}` }, legend, body, hint, why);
    const part = { group, why, show: () => {} };
    if (schema.type === "boolean") this.buildSwitch(name, schema, body, part);
    else if (schema.enum) this.buildChoices(name, schema, body, part);
    else this.buildSlider(name, schema, body, part);
    return part;
  }

  buildSwitch(name, schema, body, part) {
    const input = element("input", { type: "checkbox", role: "switch", "aria-label": schema.title });
    const said = element("span", { "aria-hidden": "true" });
    input.addEventListener("change", () => this.change(name, input.checked));
    body.append(element("label", { class: "switch" }, input, said));
    part.show = (value) => {
      input.checked = value;
      said.textContent = schema.labels[Number(value)];
    };
  }

  buildChoices(name, schema, body, part) {
    const inputs = schema.enum.map((value, i) => {
      const input = element("input", { type: "radio", name: `knob-${name}`, value: String(value) });
      input.addEventListener("change", () => this.change(name, value));
      body.append(element("label", {}, input, element("span", {}, schema.labels[i] ?? `${value}`)));
      return input;
    });
    body.classList.add("choices");
    part.show = (value) => inputs.forEach((input) => (input.checked = Number(input.value) === value));
  }

  buildSlider(name, schema, body, part) {
    const step = schema.type === "integer" ? 1 : 10 ** Math.floor(Math.log10((schema.maximum - schema.minimum) / 50));
    const range = { min: schema.minimum, max: schema.maximum, step };
    const slider = element("input", { type: "range", ...range, "aria-label": schema.title });
    const number = element("input", { type: "number", ...range, "aria-label": `${schema.title}, exact value` });
    slider.addEventListener("input", () => this.change(name, slider.valueAsNumber));
    number.addEventListener("change", () => {
      const value = number.valueAsNumber;
      const inside = Number.isFinite(value) && value >= schema.minimum && value <= schema.maximum;
      if (inside) this.change(name, schema.type === "integer" ? Math.round(value) : value);
      number.setCustomValidity(inside ? "" : `${name} must be from ${schema.minimum} to ${schema.maximum}.`);
      number.reportValidity();
    });
    body.append(slider, number);
    part.show = (value) => {
      number.setCustomValidity("");
      slider.value = value;
      slider.style.setProperty("--filled", `${(100 * (value - schema.minimum)) / (schema.maximum - schema.minimum)}%`);
      number.value = +value.toFixed(3);
    };
  }

  change(name, value) {
    this.set(name, value);
    this.onChange(this.action);
  }

  set(name, value) {
    this.values[name] = value;
    this.parts[name].show(value);
  }

  /** Show an action without reporting it: what a policy just did. Locked knobs stay where the environment forces them. */
  show(action) {
    for (const [name, part] of Object.entries(this.parts)) {
      if (!part.why.textContent) this.set(name, action[name]);
    }
  }

  /** Locked knobs stand at the default, say why, and cannot be moved; nor can any while a policy drives. */
  lock(reasons, driven) {
    for (const [name, part] of Object.entries(this.parts)) {
      part.why.textContent = reasons[name] ?? "";
      part.group.classList.toggle("locked", Boolean(reasons[name]));
      part.group.disabled = Boolean(reasons[name]) || driven;
      (reasons[name] ? this.folded : this.host).append(part.group);
      if (reasons[name]) this.set(name, this.properties[name].default);
    }
    const count = Object.values(reasons).filter(Boolean).length;
    this.folded.hidden = !count;
    this.folded.firstElementChild.textContent = count === 1 ? "1 locked knob" : `${count} locked knobs`;
  }

  get action() {
    return { ...this.values };
  }
}
