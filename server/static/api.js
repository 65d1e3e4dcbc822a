// The server's endpoints as functions, and its errors as sentences. Addresses are relative, so the page also works in a frame
// or behind a proxy's prefix.

export class ApiError extends Error {
  /** @param {number} status HTTP status, 0 when no answer came. @param {number} retryAfter seconds the server asks to wait. */
  constructor(status, message, retryAfter = 1) {
    super(message);
    this.status = status;
    this.code = ""; // "policy": what was refused is a policy
    this.retryAfter = retryAfter;
  }
}

/** The server's detail as one sentence: it is a string, or a list with an entry for each malformed field. */
function words(body, status) {
  const detail = body?.detail;
  if (typeof detail === "string") return detail;
  if (Array.isArray(detail)) {
    return detail.map(({ field, message }) => `${field.replace(/^body\./, "")}: ${message}`).join("; ");
  }
  return `the server answered with status ${status}`;
}

async function request(path, body) {
  const options = body === undefined
    ? {}
    : { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  let answer;
  try {
    answer = await fetch(new URL(path, document.baseURI), options);
  } catch {
    throw new ApiError(0, "The server does not answer.");
  }
  const parsed = await answer.json().catch(() => null);
  if (answer.ok && parsed !== null) return parsed;
  throw new ApiError(answer.status, words(parsed, answer.status), Number(answer.headers.get("retry-after")) || 1);
}

/** The fields that name an episode: task, seed, and overrides where there are any. */
export function episodeOf({ taskId, seed, config }) {
  return { task_id: taskId, seed, ...(Object.keys(config).length ? { config } : {}) };
}

/** The body of a /rollout that plays a policy on one episode and gives every step. */
export function rolloutOf(setup, policy) {
  const { seed, ...rest } = episodeOf(setup);
  return { ...rest, seeds: [seed], policy, trajectories: true };
}

export const api = {
  tasks: async () => (await request("tasks")).tasks,
  info: () => request("info"),
  reset: (setup) => request("reset", episodeOf(setup)),
  step: (sessionId, action, stepId) => request("step", { session_id: sessionId, action, step_id: stepId }),
  gradeSession: (sessionId) => request("grader", { session_id: sessionId }),
  gradeActions: (setup, actions) => request("grader", { ...episodeOf(setup), actions }),
  rollout: (setup, policy) => request("rollout", rolloutOf(setup, policy)),
  file: (address) => request(address),
};

/**
 * What went wrong and what to do about it.
 * @returns {{text: string, action: string, label: string}} action is "resume", "retry", "restart", "drive" or "none".
 */
export function explain(error) {
  if (!(error instanceof ApiError)) return { text: `The page failed: ${error.message}.`, action: "restart", label: "Start again" };
  if (error.code === "policy") {
    return { text: `This policy cannot be played: ${error.message}`, action: "drive", label: "Drive it yourself" };
  }
  switch (error.status) {
    case 0:
      return { text: "The server does not answer. Your steps so far are kept on this page.", action: "retry", label: "Try again" };
    case 404:
      return {
        text: "The server has let this session expire. The episode is deterministic, so the page can open a new session and replay your actions.",
        action: "resume",
        label: "Replay and go on",
      };
    case 409:
      return {
        text: `This session was stepped from elsewhere, or its episode is over (${error.message}).`,
        action: "resume",
        label: "Replay in a session of its own",
      };
    case 422:
      return { text: `The server refused a value: ${error.message}`, action: "none", label: "Close" };
    case 429:
      return {
        text: `Too many requests for this server; it asks to wait ${error.retryAfter} s. Nothing is lost.`,
        action: "retry",
        label: "Go on",
      };
    default:
      return { text: `The server failed (status ${error.status}): ${error.message}`, action: "retry", label: "Try again" };
  }
}
