// What two policies on the same traffic came to, before a visitor has touched anything: one sentence and three numbers.

import { aboutOnTime, counted, shareUpTo } from "./ontime.js";
import { term } from "./terms.js";

const WHO = {
  manual: "you",
  trained: "a trained policy that turns the knobs every second",
  reactive: "a rule that reacts to the load",
  best_static: "the best setting that never changes",
  baseline: "an engine's default setting",
  random: "knobs turned at random",
};

const TOLD = 0.05; // share of the cost from which on the difference is what there is to tell

const scoreAbout = (task) => `0 to 1, the weighted sum of ${Object.keys(task.components).map((name) => name.replaceAll("_", " ")).join(", ")}`;
const percent = (share) => `${Math.round(100 * share)}\u00a0%`; // never apart at the end of a line
const written = (value, digits) => value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });

/** What an episode cost: its value, unit, decimals and what it means; `quantities` are the schemas of metrics and outcome. */
function cost(lane, task, quantities) {
  const name = task.scored_by_request ? "gpu_seconds" : "cost_per_1k";
  const { unit, digits, description } = quantities[name];
  return { value: lane.rows.at(-1).totals[name], unit, digits, about: `${description}, added up over the episode` };
}

/**
 * @param {object} episode opened and graded, both lanes replays. @param {object} task of /tasks.
 * @param {object} quantities schemas of metrics and outcome, by name.
 * @returns {{sentence: string, numbers: {label: string, about: string, hint: string, values: string[]}[]}}
 */
export function claimOf(episode, task, quantities) {
  const [a, b] = episode.lanes;
  const what = `of the ${counted(task)}`;
  const shares = [a, b].map((lane) => percent(shareUpTo(lane.rows.at(-1))));
  const who = (lane) => (task.kind === "fleet" && lane.policy === "baseline" ? "all GPUs, always" : WHO[lane.policy] ?? lane.name);
  const first = who(a)[0].toUpperCase() + who(a).slice(1);
  const costs = [a, b].map((lane) => cost(lane, task, quantities));
  const saved = 1 - costs[0].value / costs[1].value;
  const sentence = task.scored_by_request && Math.abs(saved) >= TOLD
    ? `Same traffic. ${first} pays for ${percent(Math.abs(saved))} ${saved > 0 ? "fewer" : "more"} ${costs[0].unit} than ${who(b)}, and answers ${shares[0]} ${what} in time against ${shares[1]}.`
    : `Same traffic, same GPU. ${first} answers in time in ${shares[0]} ${what}, ${who(b)} in ${shares[1]}.`;
  return {
    sentence,
    numbers: [
      { label: "In time", about: aboutOnTime(task), hint: what, values: shares },
      { label: "Cost", about: costs[0].about, hint: costs[0].unit, values: costs.map(({ value, digits }) => written(value, digits)) },
      { label: "Score", about: scoreAbout(task), hint: "0 to 1", values: [a, b].map((lane) => lane.grade.score.toFixed(3)) },
    ],
  };
}

/** Fill the section of the claim. */
export function showClaim(host, episode, task, quantities) {
  const { sentence, numbers } = claimOf(episode, task, quantities);
  const [text, list] = host.children;
  text.textContent = sentence;
  list.replaceChildren(
    ...numbers.map(({ label, about, hint, values }) => {
      const entry = document.createElement("div");
      const name = document.createElement("dt");
      name.append(term(label, about), " ", Object.assign(document.createElement("span"), { className: "hint", textContent: hint }));
      const shown = values.map((value, i) => Object.assign(document.createElement("dd"), { className: "ab"[i], textContent: value, title: episode.lanes[i].name }));
      entry.append(name, ...shown);
      return entry;
    }),
  );
  host.hidden = false;
}
