// The episode on the page as code that a user can run: Python in process, and curl against this server.

import { episodeOf, rolloutOf } from "./api.js";

/** Runs of equal actions: [[steps, action], ...]. */
function runs(actions) {
  const found = [];
  for (const action of actions) {
    const last = found.at(-1);
    if (last && JSON.stringify(last[1]) === JSON.stringify(action)) last[0] += 1;
    else found.push([1, action]);
  }
  return found;
}

/** The actions taken so far, held to the end with the knobs as they stand; `whole`: all that a policy takes. */
function plan(episode, action, whole = false) {
  const rows = episode.driver.rows.slice(0, whole ? undefined : episode.driver.shown).map((row) => row.action);
  return runs([...rows, ...Array(episode.length - rows.length).fill(action)]);
}

const BOOLS = { true: "True", false: "False" };
const keywords = (action) => Object.entries(action).map(([name, value]) => `${name}=${BOOLS[value] ?? value}`).join(", ");

export function python(episode, action, task) {
  const { taskId, seed, driver, config } = episode;
  const overrides = Object.keys(config).length ? `, config=${JSON.stringify(config)}` : "";
  if (task.kind === "fleet") return ofFleet(episode, task, action);
  const head = `import inferencegym_jax as ig\n\nenv, params = ig.make(${taskId}${overrides})\n`;
  if (driver.policy === "manual") {
    const lines = plan(episode, action).map(([steps, held]) => `    (${steps}, ig.ServeAction(${keywords(held)})),`);
    return `${head}obs, state = env.reset_seed(${seed}, params)
plan = [  # (seconds, action)
${lines.join("\n")}
]
log = []
for seconds, action in plan:
    for _ in range(seconds):
        obs, state, reward, terminated, truncated, info = env.step(None, state, action, params)
        log.append({"action": vars(action), "reward": float(reward), "metrics": vars(info["metrics"]),
                    "outcome": vars(info["outcome"])})
print(ig.grade(${taskId}, log))
`;
  }
  const ofTask = ["best_static", "trained"].includes(driver.policy) ? `(${taskId})` : "";
  const policy = `ig.policies.${driver.policy}${ofTask}`;
  return `${head}statistics = ig.evaluate(env, params, ${policy}, seeds=[${seed}])
scores = ig.grader.score_aggregates(${taskId}, statistics)
print({name: float(value[0]) for name, value in scores.items()})
`;
}

/** A fleet's episode: the actions of whoever drove it, step by step. */
function ofFleet(episode, task, action) {
  const lines = plan(episode, action, episode.driver.policy !== "manual").map(([steps, held]) => `    (${steps}, ig.FleetAction(${keywords(held)})),`);
  const spec = task.name === "fleet-anywhere" ? `draw_condition(${episode.seed})` : `"${task.name}"`;
  const drawn = task.name === "fleet-anywhere" ? "from inferencegym_jax.fleet.making import draw_condition\n" : "";
  return `import inferencegym_jax as ig
${drawn}
env, params = ig.make_fleet(${spec})
obs, state = env.reset_seed(${episode.seed}, params)
plan = [  # (decisions of 5 s, action)
${lines.join("\n")}
]
total = 0.0
for decisions, action in plan:
    for _ in range(decisions):
        obs, state, reward, terminated, truncated, info = env.step(None, state, action, params)
        total += float(reward)
print(total)
`;
}

export function curl(episode, action) {
  const { driver } = episode;
  const head = `BASE=${base()}
post() { curl -sSf --retry 5 "$BASE/$1" -H 'content-type: application/json' -d "$2"; echo; }
`;
  if (driver.policy !== "manual") {
    return `${head}post rollout '${JSON.stringify(rolloutOf(episode, driver.policy))}'\n`;
  }
  const lines = plan(episode, action).map(([steps, held]) => `step ${steps} '${JSON.stringify(held)}'`);
  return `${head}SESSION=$(post reset '${JSON.stringify(episodeOf(episode))}' | sed 's/.*"session_id": *"\\([^"]*\\)".*/\\1/')
step() { for i in $(seq "$1"); do post step "{\\"session_id\\":\\"$SESSION\\",\\"action\\":$2}"; done; }
${lines.join("\n")}
post grader "{\\"session_id\\":\\"$SESSION\\"}"
`;
}

/** This server's address as the page was reached, without a slash at the end. */
function base() {
  return new URL(".", document.baseURI).href.replace(/\/$/, "");
}
