// What the charts show: one entry a panel, its value in a row of the episode, unit, and the task's limits.

const whole = (value) => Math.round(value).toLocaleString("en");
const digits = (n) => (value) => value.toFixed(n);

const CLASSES = ["interactive", "batch", "best effort"];

export const PANELS = [
  { id: "arrivals", title: "Arrivals", unit: "requests/s", shared: true, format: whole, value: (row) => row.workload.arrivals },
  { id: "queue", title: "Queue", unit: "requests", format: whole, least: 10, value: (row) => row.workload.queue_depth },
  { id: "ttft", title: "Time to first token", unit: "TTFT median, ms", log: true, format: whole, value: (row) => row.metrics.ttft_p50_ms },
  { id: "tpot", title: "Time per output token", unit: "TPOT, ms", format: digits(1), value: (row) => row.metrics.tpot_ms },
  { id: "throughput", title: "Throughput", unit: "tokens/s", format: whole, value: (row) => row.metrics.tokens_per_sec },
  {
    id: "memory", title: "GPU memory", unit: "GB", format: digits(1), value: (row) => row.metrics.gpu_memory_gb, least: 10, mark: (row) => row.oom,
  },
  { id: "reward", title: "Cumulative reward", unit: "reward", format: digits(1), value: (row) => row.totalReward },
  { id: "cost", title: "Cumulative cost", unit: "cost", format: digits(2), least: 0.1, value: (row) => row.totalCost },
  { id: "batch", title: "Batch size set", unit: "requests", hold: true, format: whole, value: (row) => row.action.batch_size },
];

/** The TTFT objectives of a task: one, or one a class; a class without an objective is left out. */
export function shownSlos(task) {
  const slos = task.slo_ttft_ms.map((value, i) => ({ value, label: CLASSES[i] })).filter(({ value }) => Number.isFinite(value));
  return slos.length > 1 ? slos.map(({ value, label }) => ({ value, label: `SLO ${label}` })) : slos.map(({ value }) => ({ value, label: "SLO" }));
}

/** The latest row in one line, for small screens where the charts are out of sight. */
export function readings(row) {
  if (!row) return "";
  const [queue, ttft, memory, reward] = ["queue", "ttft", "memory", "reward"].map((id) => PANELS.find((panel) => panel.id === id));
  return `queue ${queue.format(queue.value(row))} · TTFT ${ttft.format(ttft.value(row))} ms · ${memory.format(memory.value(row))} GB · reward ${reward.format(reward.value(row))}`;
}

/** Horizontal lines of a panel for a task: `[{value, label, strong}]`. */
export function limitsOf(id, task) {
  if (id === "ttft") return shownSlos(task).map(({ value, label }) => ({ value, label: `${label} ${value.toLocaleString("en")} ms` }));
  if (id === "memory" && task.memory_limit_gb) return [{ value: task.memory_limit_gb, label: `limit ${task.memory_limit_gb} GB` }];
  if (id === "cost" && task.cost_budget) return [{ value: task.cost_budget, label: `budget ${task.cost_budget}` }];
  return [];
}
