// The controls that choose an episode: task, driver, rival, seed and overrides. Reads them, and offers only what the server has.

import { recalled } from "./address.js";
import { policyAbout, policyName } from "./episode.js";
import { Overrides } from "./overrides.js";

const $ = (id) => document.getElementById(id);
// What a visitor sees first: the task on which control makes the largest difference, and what can be had without it.
// Of seeds 0 to 15 the one whose difference is nearest to their mean.
const FIRST = { task: "3", seed: "9", policy: ["trained", "reactive"], rival: ["best_static", "baseline"] };
const USUAL = { policy: "manual", rival: "baseline" };

/** Set a select to the first of these values that it offers. */
function choose(select, ...values) {
  const offered = (value) => [...select.options].some((option) => option.value === value && !option.disabled);
  const value = values.find(offered);
  if (value !== undefined) select.value = value;
}

export class Setup {
  /** @param {object[]} tasks of /tasks. @param {object} info of /info. @param {() => void} onChange a control was moved. */
  constructor(tasks, info, onChange) {
    Object.assign(this, { tasks, info });
    $("task").append(...tasks.map((entry) => new Option(`${entry.id}. ${entry.title} (${entry.difficulty})`, entry.id)));
    const policies = () => Object.keys(info.policies).map((id) => new Option(policyName(id), id));
    $("policy").append(new Option(policyName("manual"), "manual"), ...policies());
    $("rival").append(new Option("Nobody", ""), ...policies());
    this.overrides = new Overrides($("overrides"), info.config.properties, onChange);
    choose($("task"), recalled("task"), FIRST.task);
    this.offer();
    for (const id of ["policy", "rival"]) choose($(id), ...(recalled(id) === null ? FIRST[id] : [recalled(id)]), USUAL[id]);
    const seed = location.search ? recalled("seed") : FIRST.seed;
    const isSeed = /^\d{1,10}$/.test(seed) && Number(seed) < 2 ** 32;
    $("seed").value = isSeed ? seed : 0;
    /** What the address asks for and cannot be had, or "". */
    this.complaint = seed === null || isSeed ? "" : `“${seed.slice(0, 40)}” in the address is no seed: a whole number from 0 to 4294967295. This is seed 0.`;
    this.overrides.recall(recalled);
    for (const id of ["task", "policy", "rival", "seed"]) $(id).addEventListener("change", onChange);
  }

  /** The task with the SLO that is asked for. */
  get task() {
    const task = this.tasks.find((entry) => entry.id === Number($("task").value));
    const [own, ...others] = task.slo_ttft_ms;
    return { ...task, slo_ttft_ms: [this.overrides.config.slo_ttft_ms ?? own, ...others] };
  }

  /** A policy that the task lacks cannot be chosen; if it was, the usual one is. */
  offer() {
    const lacking = { trained: !this.info.trained_policies[this.task.name] };
    for (const id of ["policy", "rival"]) {
      for (const option of $(id).options) {
        option.disabled = lacking[option.value] ?? false;
        option.text = option.disabled ? `${policyName(option.value)} (none for this task)` : option.text.replace(/ \(none.*/, "");
      }
      if ($(id).selectedOptions[0]?.disabled) choose($(id), USUAL[id]);
    }
  }

  /** Whether everything can be used as it stands; says what is wrong where not. */
  check() {
    return $("seed").reportValidity() && this.overrides.check();
  }

  /** What an episode is made of. */
  read() {
    this.offer();
    for (const id of ["policy", "rival"]) $(`${id}-about`).textContent = policyAbout($(id).value);
    this.overrides.show(this.tasks.find((entry) => entry.id === this.task.id));
    const { config } = this.overrides;
    return { taskId: this.task.id, seed: $("seed").valueAsNumber, policy: $("policy").value, rival: $("rival").value, config };
  }

  /** Another seed, at random. */
  reseed() {
    $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0] % 10_000;
  }

  /** Drive by hand against the baseline: what every server can do. */
  drive() {
    $("policy").value = "manual";
    $("rival").value = "baseline";
  }
}
