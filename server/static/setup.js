// The controls that choose an episode: task, driver, rival, seed and overrides. Reads them, and offers only what the server has.

import { recalled } from "./address.js";
import { policyName } from "./episode.js";
import { Overrides } from "./overrides.js";

const $ = (id) => document.getElementById(id);
// What a visitor sees first where the server has no episode of its own for that (/info's first_screen): a short task, and what
// can be had without control. Of seeds 0 to 15 the one whose difference is nearest to their mean.
const USUAL = { task: "3", seed: "9", policy: ["trained", "reactive"], rival: ["best_static", "baseline"] };
const BY_HAND = 300; // steps of an episode that people drive to its end
const OWN = { manual: "You set the knobs, second by second.", "": "One policy alone." };
const MOST_SEED = 2 ** 32 - 1;
const isSeed = (text) => /^\d{1,10}$/.test(text) && Number(text) <= MOST_SEED;

/** Today as a seed, the same for everybody (UTC): 20261126. */
export const seedOfToday = () => Number(new Date().toISOString().slice(0, 10).replaceAll("-", ""));

const offers = (select, value) => [...select.options].some((option) => option.value === value && !option.disabled);

/** Set a select to the first of these values that it offers. */
function choose(select, ...values) {
  const value = values.find((one) => offers(select, one));
  if (value !== undefined) select.value = value;
}

export class Setup {
  /** @param {object[]} tasks of /tasks. @param {object} info of /info. @param {() => void} onChange a control was moved. */
  constructor(tasks, info, onChange) {
    const known = info.first_screen;
    const first = known && { task: `${known.task_id}`, seed: `${known.seed}`, policy: [known.policy, ...USUAL.policy], rival: [known.rival, ...USUAL.rival] };
    Object.assign(this, { tasks, info, first: first ?? USUAL });
    $("task").append(...tasks.map((entry) => new Option(`${entry.id}. ${entry.title} (${entry.difficulty})`, entry.id)));
    const all = [...new Set(tasks.flatMap((entry) => Object.keys(entry.policies)))];
    const policies = () => all.map((id) => new Option(policyName(id), id));
    $("policy").append(...policies(), new Option(policyName("manual"), "manual"));
    $("rival").append(new Option("Nobody", ""), ...policies());
    this.overrides = new Overrides($("overrides"), info.config.properties, onChange);
    /** What the address asks for and cannot be had, in sentences. */
    this.complaints = [];
    this.recall("task", this.first.task);
    this.offer();
    for (const id of ["policy", "rival"]) this.recall(id, ...this.first[id]);
    const seed = location.search ? recalled("seed") : this.first.seed;
    $("seed").value = seed !== null && isSeed(seed) ? seed : 0;
    if (seed !== null && !isSeed(seed)) this.complain(seed, `no seed: a whole number from 0 to ${MOST_SEED}. This is seed 0`);
    for (const [key, value] of this.overrides.recall(recalled)) this.complain(value, `no value of ${key}. The task's own is used`);
    for (const id of ["task", "policy", "rival", "seed"]) $(id).addEventListener("change", onChange);
  }

  /** Choose what the address names, or the first of `usual`; say so where it names what there is not. */
  recall(id, ...usual) {
    const named = recalled(id);
    choose($(id), ...(named === null ? [] : [named]), ...usual);
    if (named === null || $(id).value === named) return;
    this.complain(named, `none that this server has as ${id}. This is ${$(id).selectedOptions[0].text}`);
  }

  complain(value, what) {
    this.complaints.push(`“${value.slice(0, 40)}” in the address is ${what}.`);
  }

  /** The task with the SLO that is asked for, and the names of the classes. */
  get task() {
    const task = this.tasks.find((entry) => entry.id === Number($("task").value));
    const [own, ...others] = task.slo_ttft_ms;
    return { ...task, slo_ttft_ms: [this.overrides.config.slo_ttft_ms ?? own, ...others], classes: this.info.classes };
  }

  /** A policy that the task lacks cannot be chosen; if it was, the next best is. */
  offer() {
    const has = (id) => id in OWN || id in this.task.policies;
    for (const id of ["policy", "rival"]) {
      for (const option of $(id).options) {
        option.disabled = !has(option.value);
        option.hidden = option.disabled && option.value !== "trained"; // rules of fleets are no choice for an engine
        option.text = option.disabled ? `${policyName(option.value)} (none for this task)` : option.text.replace(/ \(none.*/, "");
      }
      if ($(id).selectedOptions[0]?.disabled) choose($(id), ...this.first[id]);
    }
  }

  /** Whether everything can be used as it stands; says what is wrong where not. */
  check() {
    const seed = $("seed");
    const good = seed.checkValidity();
    $("seed-trouble").textContent = good ? "" : `A seed is a whole number from 0 to ${MOST_SEED}; the episode on the page stays.`;
    seed.setAttribute("aria-invalid", String(!good));
    if (!good) {
      $("setup").open = true; // what is wrong can be seen
      seed.focus();
    }
    return good && this.overrides.check();
  }

  /** What an episode is made of. */
  read() {
    this.offer();
    for (const id of ["policy", "rival"]) $(`${id}-about`).textContent = this.about($(id).value);
    $("overrides").hidden = this.task.kind === "fleet"; // which takes none
    if ($("overrides").hidden) this.overrides.reset();
    this.overrides.show(this.tasks.find((entry) => entry.id === this.task.id));
    const { config } = this.overrides;
    return { task: this.task, taskId: this.task.id, seed: $("seed").valueAsNumber, policy: $("policy").value, rival: $("rival").value, config };
  }

  /** What a driver is, in a line. */
  about(policy) {
    return OWN[policy] ?? this.task.policies[policy] ?? "";
  }

  /** Another seed, at random. */
  reseed() {
    $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0] % 10_000;
  }

  /** Drive by hand against the best setting that never changes: what every server can do. */
  drive() {
    $("policy").value = "manual";
    $("rival").value = "best_static";
  }

  /** You against the trained policy on today's seed, on a task that has one and is short, as it stands for everybody. */
  challenge() {
    const fits = (task) => task.policies.trained && task.episode_length <= BY_HAND;
    if (!fits(this.task)) choose($("task"), USUAL.task, ...this.tasks.filter(fits).map((task) => String(task.id)));
    this.overrides.reset();
    this.offer();
    $("policy").value = "manual";
    choose($("rival"), "trained", "best_static");
    $("seed").value = seedOfToday();
  }
}
