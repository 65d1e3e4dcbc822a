// The overrides of a reset: reward weights and SLO, one number each, built from the config schema of /info. Empty means the
// task's own value, which stands in the field as its placeholder.

/** The task's own values by key. */
function usual(task) {
  return { ...task.reward_weights, slo_ttft_ms: task.slo_ttft_ms[0], slo_tpot_ms: [].concat(task.slo_tpot_ms)[0] };
}

/** Put a value in, and have it judged as if it had been typed. */
function set(field, value) {
  field.value = value;
  field.dispatchEvent(new Event("input"));
}

export class Overrides {
  /** @param {HTMLDetailsElement} host @param {object} properties key -> JSON schema. @param {() => void} onChange */
  constructor(host, properties, onChange) {
    this.host = host;
    this.note = host.querySelector("summary span");
    this.fields = Object.fromEntries(Object.entries(properties).map(([key, schema]) => [key, this.build(key, schema)]));
    this.clear = host.querySelector("button");
    this.clear.addEventListener("click", () => {
      this.reset();
      onChange();
    });
    for (const field of Object.values(this.fields)) field.addEventListener("change", onChange);
  }

  build(key, schema) {
    const { minimum, exclusiveMinimum, maximum } = schema.anyOf?.find(({ type }) => type === "number") ?? schema;
    const label = document.createElement("label");
    const field = Object.assign(document.createElement("input"), {
      type: "number", step: "any", min: minimum ?? exclusiveMinimum, max: maximum, inputMode: "decimal", name: key, title: schema.description ?? "",
    });
    field.addEventListener("input", () => {
      const low = exclusiveMinimum !== undefined && field.valueAsNumber <= exclusiveMinimum;
      field.setCustomValidity(low ? `${key} must be above ${exclusiveMinimum}.` : "");
    });
    const hint = Object.assign(document.createElement("span"), { className: "hint", textContent: schema.description });
    label.append(`${schema.title} `, hint, field);
    this.host.querySelector(".fields").append(label);
    return field;
  }

  /** Whether every field is empty or in its range; says what is wrong where it is not. */
  check() {
    const wrong = Object.values(this.fields).find((field) => !field.checkValidity());
    if (!wrong) return true;
    this.host.open = true; // a message at a hidden field could not be read
    return wrong.reportValidity();
  }

  /** Back to the task's own values. */
  reset() {
    for (const field of Object.values(this.fields)) set(field, "");
  }

  /** Put in what `value(key)` gives (null: nothing); what is no number in range is left out and returned: [[key, value], ...]. */
  recall(value) {
    const refused = [];
    for (const [key, field] of Object.entries(this.fields)) {
      const given = value(key);
      set(field, given ?? "");
      if (!field.checkValidity()) set(field, "");
      if (given && !field.value) refused.push([key, given]);
    }
    if (Object.keys(this.config).length) this.host.open = true;
    return refused;
  }

  /** Show a task's own values where nothing is given, and how many are. A task without an objective on TPOT has no field for it. */
  show(task) {
    for (const [key, value] of Object.entries(usual(task))) {
      const field = this.fields[key];
      if (!field) continue;
      field.placeholder = value ?? "none";
      if (key !== "slo_tpot_ms") continue;
      field.parentElement.hidden = value === null;
      if (value === null && field.value) set(field, "");
    }
    const count = Object.keys(this.config).length;
    this.note.textContent = count ? `${count} changed` : "as the task has them";
    this.clear.disabled = !count;
  }

  /** The overrides that are given, as numbers. */
  get config() {
    const given = Object.entries(this.fields).filter(([, field]) => Number.isFinite(field.valueAsNumber));
    return Object.fromEntries(given.map(([key, field]) => [key, field.valueAsNumber]));
  }
}
