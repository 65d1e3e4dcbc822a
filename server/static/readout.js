// The episode in words and numbers: the task's facts, the legend, the grade, the table of steps. Functions that build elements.

import { shownSlos } from "./panels.js";
import { term } from "./terms.js";

function element(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

/** @param {object} task of /tasks. @param {number} knobs how many there are. @param {object} quantities schemas of metrics and outcome, by name. */
export function taskFacts(task, knobs, quantities) {
  const { gpu_memory_gb: memory, cost_per_1k: cost } = quantities;
  const ttft = quantities.ttft_p50_ms ?? quantities.ttft_mean_ms;
  const facts = [
    ...shownSlos(task).map(({ label, value }) => [`${label} ${value.toLocaleString("en")} ms TTFT`, `latency objective on the ${ttft.description}`]),
    ...(task.memory_limit_gb ? [[`memory limit ${task.memory_limit_gb} GB`, memory.description]] : []),
    ...(task.cost_budget ? [[`cost budget ${task.cost_budget} ${cost.unit}`, `of an episode: ${cost.description}`]] : []),
    [`${task.active_actions.length} of ${knobs} knobs`, "the others stay at the baseline's value"],
  ];
  return facts.map(([fact, about]) => element("li", "", term(fact, about)));
}

/** The drivers, and of what else charts draw that which this episode has or, driven by hand, may come to have. */
export function legend(episode, panels, task) {
  const items = episode.lanes.map((lane) => element("span", "", element("i", `key ${lane.kind}`), lane.kind === "b" ? `${lane.name} (same seed)` : lane.name));
  const known = episode.lanes.filter((lane) => lane.rows.length); // the traffic of one is that of all
  const isManual = episode.driver.policy === "manual";
  const marks = [
    ["key limit", "limit", panels.some((panel) => panel.limits(task).length)],
    ["swatch", "burst", known.length ? known[0].rows.some((row) => row.workload.is_burst) : task.kind === "engine"],
    ["key oom", "out of memory", task.kind === "engine" && (isManual || known.some((lane) => lane.rows.some((row) => row.oom)))],
  ];
  for (const [key, text, has] of marks) if (has) items.push(element("span", "", element("i", key), text));
  return items;
}

/** One card a lane: score, verification, a bar for each component, seconds out of memory, and the grader's own words. */
export function resultOf(episode, task, quantities) {
  const title = element("h2", "", `Final grade: ${task.title}, seed ${episode.seed}`);
  title.id = "result-title";
  const cards = episode.lanes.map((lane) => {
    const { score, breakdown, feedback, verified, outcome } = lane.grade;
    const parts = element("dl", "parts");
    for (const [name, value] of Object.entries(breakdown)) {
      const fill = element("i", "");
      fill.style.width = `${100 * value}%`;
      const bar = element("dd", "bar", fill);
      bar.setAttribute("aria-hidden", "true");
      const { weight, meaning } = task.components[name];
      parts.append(element("dt", "", term(name.replaceAll("_", " "), `${meaning}; weighs ${weight}`)), bar, element("dd", "", value.toFixed(3)));
    }
    if (outcome) {
      parts.append(element("dt", "", term("GPU-seconds", quantities.gpu_seconds.description)), element("dd", "bar none"), element("dd", "", Math.round(outcome.gpu_seconds).toLocaleString("en")));
    }
    const crashed = lane.rows.filter((entry) => entry.oom).length;
    const told = verified ? "✓ verified by simulating it again" : "not verified";
    return element(
      "div",
      `grade ${lane.kind}`,
      element("output", "score", score.toFixed(3)),
      element("div", "", element("strong", "", lane.name), element("p", `verified${verified ? "" : " no"}`, told)),
      parts,
      ...(task.kind === "engine" ? [element("p", "oom", crashed ? `Out of memory in ${crashed} of ${lane.rows.length} seconds.` : "Never out of memory.")] : []),
      element("p", "feedback", feedback),
    );
  });
  return [title, element("div", "grades", ...cards)];
}

/** Every step shown so far, newest first, one column a panel and lane. */
export function tableOf(episode, panels, task) {
  const columns = panels.flatMap((panel) => (panel.shared ? episode.lanes.slice(0, 1) : episode.lanes).flatMap((lane) => {
    const lines = panel.lines ?? [{ name: panel.shared ? "" : lane.name, value: panel.value }];
    return lines.map((line) => ({ panel, lane, ...line }));
  }));
  const heading = columns.map(({ panel, name }) => {
    const cell = element("th", "", `${panel.title}${name && `, ${name}`} (${panel.unit})`);
    cell.scope = "col";
    return cell;
  });
  const body = element("tbody", "");
  for (let i = episode.time - 1; i >= 0; i--) {
    const cells = columns.map(({ panel, lane, value }) => element("td", "", lane.rows[i] ? panel.format(value(lane.rows[i])) : ""));
    body.append(element("tr", "", element("td", "", `${i + 1}`), ...cells));
  }
  return element("table", "", element("thead", "", element("tr", "", element("th", "", task.step_s > 1 ? `Step of ${task.step_s} s` : "Second"), ...heading)), body);
}
