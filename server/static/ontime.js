// What was on time: requests where they are counted, seconds where they are not.

const FATES = ["on_time", "late", "rejected", "failed"];
const total = (counts) => (Array.isArray(counts) ? counts.reduce((a, b) => a + b, 0) : counts);

/** What is counted, in words. */
export const counted = (task) => (task.scored_by_request ? "requests" : "seconds");

/** What a share on time says of a task, in a line. */
export function aboutOnTime(task) {
  return task.scored_by_request
    ? "share of the requests judged so far that finished within the latency objectives of their class"
    : `share of the seconds so far whose median first token came within ${task.slo_ttft_ms[0]} ms, with memory left`;
}

/** [on time, judged] of one second. */
export function judged(row, task) {
  if (row.outcome) return [total(row.outcome.on_time), FATES.reduce((all, name) => all + total(row.outcome[name]), 0)];
  return [Number(row.metrics.ttft_p50_ms <= (task.slo_ttft_ms[0] ?? Infinity) && !row.oom), 1];
}

/** Share on time up to a row, 0 to 1; 1 where nothing was judged. */
export const shareUpTo = (row) => (row.totals.judged ? row.totals.on_time / row.totals.judged : 1);
