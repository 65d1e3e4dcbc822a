// An episode as one or two lanes. A lane is a policy's run: its rows so far (all of them for a replayed policy), how many
// are shown, and its grade at the end.

import { api, ApiError } from "./api.js";
import { judged } from "./ontime.js";

/** Most steps a second of your own that the page asks for: each is a request, and a server's usual limit is 100 a second. */
export const REQUESTS_PER_SECOND = 60;

const NAMES = { manual: "You", best_static: "Best static" };

/** A policy's id as it is written on the page: "best_static" is "Best static". */
export function policyName(id) {
  return NAMES[id] ?? id[0].toUpperCase() + id.slice(1).replaceAll("_", " ");
}

/**
 * A row: observation (before the action), action, reward, metrics, workload, outcome (where requests are counted), oom, and the
 * running totals of reward, metrics, GPU-seconds and of what was on time. `previous` is the row before it.
 */
function row(entry, previous, task) {
  const [on_time, all] = judged(entry, task);
  const now = { ...entry.metrics, reward: entry.reward, gpu_seconds: entry.outcome?.gpu_seconds ?? 0, on_time, judged: all };
  const totals = Object.fromEntries(Object.entries(now).map(([name, value]) => [name, (previous?.totals[name] ?? 0) + value]));
  return { ...entry, totals };
}

/** The rows of a stored lane, whose columns are called "part.field" or "part"; a value that never changes stands there once. */
function* unpacked({ columns }, steps) {
  const paths = Object.entries(columns).map(([name, values]) => [...name.split("."), values]);
  for (let i = 0; i < steps; i++) {
    const entry = {};
    for (const path of paths) {
      const values = path.at(-1);
      const value = Array.isArray(values) ? values[i] : values.always;
      if (path.length === 2) entry[path[0]] = value;
      else (entry[path[0]] ??= {})[path[1]] = value;
    }
    yield entry;
  }
}

/** You: every step is a request of one session, made with the knobs as they stand. */
class ManualLane {
  constructor(kind, setup) {
    Object.assign(this, { kind, setup, policy: "manual", name: policyName("manual"), rows: [], shown: 0, grade: null });
  }

  async open() {
    const answer = await api.reset(this.setup);
    this.session = answer.session_id;
    this.observation = answer.observation;
    this.length = answer.episode_length;
  }

  /** Step once. A step repeated after a lost answer carries the same step_id, so it never counts twice. */
  async advance(action) {
    const stepId = `step-${this.rows.length + 1}`;
    const { observation, reward, info } = await api.step(this.session, action, stepId);
    const { timestep, metrics, workload, outcome, oom } = info;
    if (timestep !== this.rows.length + 1) {
      throw new ApiError(409, `the server is at step ${timestep} and this page at step ${this.rows.length}`);
    }
    this.rows.push(row({ observation: this.observation, action, reward, metrics, workload, outcome, oom }, this.rows.at(-1), this.setup.task));
    this.observation = observation;
    this.shown = this.rows.length;
  }

  /** A new session brought to where this lane stands. The same actions give the same rows. */
  async resume() {
    const actions = this.rows.map((entry) => entry.action);
    await this.open();
    for (let i = 0; i < actions.length; i++) {
      this.observation = (await api.step(this.session, actions[i], `step-${i + 1}`)).observation;
      await new Promise((resolve) => setTimeout(resolve, 1000 / REQUESTS_PER_SECOND));
    }
  }

  async finishGrade() {
    this.grade ??= await api.gradeSession(this.session);
  }
}

/** A policy of the server's: its whole trajectory comes in one /rollout, or in a file, and is shown step by step. */
class ReplayLane {
  /** @param {object} [stored] an episode that the server has as a file, see app.js. */
  constructor(kind, setup, policy, stored) {
    Object.assign(this, { kind, setup, policy, stored, name: policyName(policy), rows: [], shown: 0, grade: null });
  }

  async entries() {
    const lane = this.stored?.lanes.find(({ policy }) => policy === this.policy);
    if (lane) {
      this.grade = lane.grade;
      return unpacked(lane, this.stored.steps);
    }
    const answer = await api.rollout(this.setup, this.policy).catch((error) => {
      // A refusal here is about the policy (the server has no trained one, say), not about a session.
      if (error.status >= 400 && error.status < 500 && error.status !== 429) error.code = "policy";
      throw error;
    });
    return answer.trajectories[0];
  }

  async open() {
    this.rows = [];
    for (const entry of await this.entries()) this.rows.push(row(entry, this.rows.at(-1), this.setup.task));
    if (!this.rows.length) throw new ApiError(500, `the rollout of ${this.policy} came back empty`);
    this.length = this.rows.length;
  }

  async advance() {
    this.shown = Math.min(this.shown + 1, this.rows.length);
  }

  async resume() {}

  async finishGrade() {
    this.grade ??= await api.gradeActions(this.setup, this.rows.map((entry) => entry.action));
  }
}

export class Episode {
  /** @param {{task: object, taskId: number, seed: number, policy: string, rival: string, config: object}} setup rival "" plays alone. @param {object} [stored] what is known of it before it is played. */
  constructor(setup, stored) {
    const { taskId, seed, policy, rival, config } = setup;
    const lane = (kind, id) => (id === "manual" ? new ManualLane(kind, setup) : new ReplayLane(kind, setup, id, stored));
    Object.assign(this, { taskId, seed, config });
    this.lanes = [lane("a", policy), ...(rival ? [lane("b", rival)] : [])];
  }

  async open() {
    await Promise.all(this.lanes.map((lane) => lane.open()));
    this.length = this.lanes[0].length;
  }

  get driver() {
    return this.lanes[0];
  }

  get time() {
    return this.driver.shown;
  }

  get done() {
    return this.time >= this.length;
  }

  /** Whether two policies are replayed side by side, with nothing left to decide. */
  get isCompared() {
    return this.lanes.length === 2 && this.lanes.every((lane) => lane.policy !== "manual");
  }

  /** One second: the driver acts (a failure leaves everything as it was), the rival follows to the same second. */
  async advance(action) {
    await this.driver.advance(action);
    for (const lane of this.lanes.slice(1)) lane.shown = Math.min(this.time, lane.rows.length);
  }

  async resume() {
    await this.driver.resume();
  }

  async grade() {
    for (const lane of this.lanes) await lane.finishGrade();
  }

  /** What the download holds: enough to grade again, to replay and to plot. */
  export() {
    return {
      format: "inferencegym-episode",
      task_id: this.taskId,
      seed: this.seed,
      config: this.config,
      steps: this.time,
      episodes: this.lanes.map((lane) => ({
        policy: lane.policy,
        grade: lane.grade,
        episode_log: lane.rows.slice(0, lane.shown).map(({ observation, action, reward, metrics, workload, outcome, oom }) => ({
          observation, action, reward, metrics, workload, ...(outcome && { outcome }), oom,
        })),
      })),
    };
  }
}
