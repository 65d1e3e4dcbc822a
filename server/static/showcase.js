// What two policies on the same traffic came to, before a visitor has touched anything: one sentence and three numbers.

const WHO = {
  manual: "you",
  trained: "a trained policy that turns the knobs every second",
  reactive: "a rule that reacts to the load",
  best_static: "the best setting that never changes",
  baseline: "an engine's default setting",
  random: "knobs turned at random",
};

const sum = (rows, value) => rows.reduce((total, row) => total + value(row), 0);
const total = (counts) => (Array.isArray(counts) ? counts.reduce((a, b) => a + b, 0) : counts);
const percent = (share) => `${Math.round(100 * share)} %`;

/** Share of requests that were on time, where requests are counted; else of seconds whose median first token was. */
function inTime(lane, task) {
  if (lane.rows[0].outcome) {
    const judged = sum(lane.rows, ({ outcome }) => ["on_time", "late", "rejected", "failed"].reduce((all, name) => all + total(outcome[name]), 0));
    return judged ? sum(lane.rows, ({ outcome }) => total(outcome.on_time)) / judged : 1;
  }
  const limit = task.slo_ttft_ms[0] ?? Infinity;
  return sum(lane.rows, (row) => Number(row.metrics.ttft_p50_ms <= limit && !row.oom)) / lane.rows.length;
}

function cost(lane) {
  if (lane.rows[0].outcome) return { value: sum(lane.rows, ({ outcome }) => outcome.gpu_seconds), unit: "GPU-seconds", digits: 0 };
  return { value: sum(lane.rows, ({ metrics }) => metrics.cost_per_1k), unit: "GPU-seconds per 1,000 tokens, summed", digits: 2 };
}

/**
 * @param {object} episode opened and graded, both lanes replays. @param {object} task of /tasks.
 * @returns {{sentence: string, numbers: {label: string, hint: string, values: string[]}[]}}
 */
export function claimOf(episode, task) {
  const [a, b] = episode.lanes;
  const counted = Boolean(a.rows[0].outcome);
  const what = counted ? "of the requests" : "of the seconds";
  const shares = [a, b].map((lane) => percent(inTime(lane, task)));
  const who = (lane) => WHO[lane.policy] ?? lane.name;
  const first = who(a)[0].toUpperCase() + who(a).slice(1);
  const costs = [a, b].map(cost);
  return {
    sentence: `Same traffic, same GPU. ${first} answers in time in ${shares[0]} ${what}, ${who(b)} in ${shares[1]}.`,
    numbers: [
      { label: "In time", hint: what, values: shares },
      { label: "Cost", hint: costs[0].unit, values: costs.map(({ value, digits }) => value.toFixed(digits)) },
      { label: "Score", hint: "0 to 1", values: [a, b].map((lane) => lane.grade.score.toFixed(3)) },
    ],
  };
}

/** Fill the section of the claim. */
export function showClaim(host, episode, task) {
  const { sentence, numbers } = claimOf(episode, task);
  const [text, list] = host.children;
  text.textContent = sentence;
  list.replaceChildren(
    ...numbers.map(({ label, hint, values }) => {
      const entry = document.createElement("div");
      const name = Object.assign(document.createElement("dt"), { textContent: label });
      name.append(" ", Object.assign(document.createElement("span"), { className: "hint", textContent: hint }));
      const shown = values.map((value, i) => Object.assign(document.createElement("dd"), { className: "ab"[i], textContent: value, title: episode.lanes[i].name }));
      entry.append(name, ...shown);
      return entry;
    }),
  );
  host.hidden = false;
}
