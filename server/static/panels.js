// What the charts show, read from the schemas of /info: one panel for each quantity of the workload and the metrics that asks
// for a chart, one for the reward, one for each knob that is a number. And what the task says of them: limits.

import { aboutOnTime, shareUpTo } from "./ontime.js";

/** A number as it is written: whole ones with separators, others with their decimals. */
const written = (digits) => (value) => (digits ? value.toFixed(digits) : Math.round(value).toLocaleString("en"));

/** The schemas of a task's kind: a single engine's stand in /info itself, a fleet's in its part of it. */
export const schemasOf = (info, kind) => (kind === "fleet" ? info.fleet : info);

/** What a task, or a step, says of a metric beyond its value. */
const MARKS = { gpu_memory_gb: (row) => row.oom };
const ttft = (task) => shownSlos(task).map(({ value, label }) => ({ value, label: `${label} ${value.toLocaleString("en")} ms` }));
const LIMITS = {
  ttft_p50_ms: ttft,
  ttft_mean_ms: ttft,
  gpu_memory_gb: (task) => (task.memory_limit_gb ? [{ value: task.memory_limit_gb, label: `limit ${task.memory_limit_gb} GB` }] : []),
  cost_per_1k: (task) => (task.cost_budget ? [{ value: task.cost_budget, label: `budget ${task.cost_budget}` }] : []),
};

/** The knobs of an action's schema: OpenEnv adds an object of metadata to every action; a knob is a number or a switch. */
export function knobsOf(schemas) {
  return Object.fromEntries(Object.entries(schemas.action_space.properties).filter(([, schema]) => schema.type !== "object"));
}

/** What tells most of an episode stands first. */
const FIRST = ["band", "load", "gpu_seconds", "on_time", "ttft_p50_ms", "queue_depth", "reward"];

/** On which tasks a panel is of use; the others show all. */
const SHOWN = {
  priority_distribution: (task) => task.class_shares.filter((share) => share > 0).length > 1,
  cost_per_1k: (task) => !task.scored_by_request,
  gpu_seconds: (task) => task.scored_by_request,
};

/** The quantities of a band, one on top of the other, as one panel; none where there are none. */
function bandOf(schemas) {
  const parts = Object.entries(schemas.metrics.properties).filter(([, schema]) => schema.chart === "band");
  if (!parts.length) return [];
  const [{ unit, digits }] = parts.map(([, schema]) => schema);
  return [{
    id: "band", title: `${unit} by state`, about: parts.map(([, { title, description }]) => `${title}: ${description}`).join("; "), unit,
    bands: parts.map(([id, { title }], i) => ({ name: title, kind: `g${i}`, value: (row) => row.metrics[id] })),
    format: written(digits), least: 1, limits: () => [], shown: () => true,
    value: (row) => parts.reduce((sum, [id]) => sum + row.metrics[id], 0),
  }];
}

/** A line for each class, or none: `[{name, kind, value(row)}]`. */
function linesOf(info, part, id, schema) {
  if (schema.chart !== "classes") return null;
  return info.classes.map((name, i) => ({ name, kind: `c${i}`, value: (row) => 100 * row[part][id][i] }));
}

function quantities(info, part) {
  const asked = Object.entries(info[part].properties).filter(([, schema]) => schema.chart && schema.chart !== "band");
  return asked.map(([id, schema]) => ({
    lines: linesOf(info, part, id, schema),
    shown: SHOWN[id] ?? (() => true),
    id,
    title: schema.title,
    about: schema.description,
    unit: schema.chart === "classes" ? "% of arrivals" : schema.unit,
    log: schema.scale === "log",
    shared: schema.exogenous,
    format: written(schema.chart === "classes" ? 0 : schema.digits),
    least: schema.chart === "classes" ? 100 : 10 ** -schema.digits,
    mark: MARKS[id],
    limits: LIMITS[id] ?? (() => []),
    value: schema.chart === "sum" ? (row) => row.totals[id] : (row) => row[part][id],
  }));
}

/** One entry a chart: id, title, about, unit, format(number), value(row), limits(task), shown(task), and how it is drawn. */
export function panelsOf(schemas, classes) {
  const info = { ...schemas, classes };
  const numbers = Object.entries(knobsOf(info)).filter(([, schema]) => !schema.enum && schema.type !== "boolean");
  const onTime = {
    id: "on_time", title: "On time so far", about: aboutOnTime, unit: "%", format: written(1), least: 100, limits: () => [], shown: () => true,
    value: (row) => 100 * shareUpTo(row),
  };
  const reward = { id: "reward", title: "Cumulative reward", about: "what the reward of every step adds up to: of an engine throughput, less latency, violations and cost; of a fleet minus GPUs and late requests", unit: "reward", format: written(1), limits: () => [], shown: () => true, value: (row) => row.totals.reward };
  const knobs = numbers.map(([id, schema]) => ({
    id, title: `${schema.title} set`, about: schema.description, unit: schema.unit, hold: true, limits: () => [], shown: (task) => task.active_actions.includes(id), value: (row) => row.action[id],
    format: written(schema.type === "integer" ? 0 : 2),
  }));
  const all = [...bandOf(info), ...quantities(info, "workload"), onTime, ...quantities(info, "metrics"), ...quantities(info, "outcome"), reward, ...knobs];
  const place = ({ id }) => (FIRST.includes(id) ? FIRST.indexOf(id) : FIRST.length);
  return all.sort((a, b) => place(a) - place(b)); // sorting keeps the order of the others
}

/** The TTFT objectives of a task: one, or one a class; a class without an objective is left out. */
export function shownSlos(task) {
  const slos = task.slo_ttft_ms.map((value, i) => ({ value, label: task.classes[i] })).filter(({ value }) => Number.isFinite(value));
  return slos.length > 1 ? slos.map(({ value, label }) => ({ value, label: `SLO ${label}` })) : slos.map(({ value }) => ({ value, label: "SLO" }));
}

/** The latest row in one line, for small screens where the charts are out of sight: what the task limits, and the reward. */
export function readings(row, panels, task) {
  if (!row) return "";
  const limited = panels.filter((panel) => panel.limits(task).length || panel.id === "reward");
  return limited.map((panel) => `${panel.title} ${panel.format(panel.value(row))}${panel.unit === "reward" ? "" : ` ${panel.unit}`}`).join(" · ");
}
