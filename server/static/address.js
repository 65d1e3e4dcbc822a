// The address bar holds the setup, so a link reopens the same episode: ?task=2&seed=7&policy=reactive&rival=baseline

const DEFAULTS = { task: "2", policy: "manual", rival: "baseline" };

/** @param {{taskId: number, seed: number, policy: string, rival: string}} setup */
export function remember({ taskId, seed, policy, rival }) {
  history.replaceState(null, "", `?${new URLSearchParams({ task: taskId, seed, policy, rival })}`);
}

/** Set the controls, by their ids, to the address's setup; what it lacks or names wrongly stays at the default. */
export function recall() {
  const wanted = new URLSearchParams(location.search);
  for (const [id, usual] of Object.entries(DEFAULTS)) {
    const select = document.getElementById(id);
    const known = (value) => [...select.options].some((option) => option.value === value && !option.disabled);
    const value = [wanted.get(id), usual].find(known);
    if (value !== undefined) select.value = value;
  }
  const seed = wanted.get("seed") ?? "";
  document.getElementById("seed").value = /^\d{1,10}$/.test(seed) ? seed : 0;
}
