// The address bar holds the setup, so a link reopens the same episode:
// ?task=2&seed=7&policy=reactive&rival=baseline&gamma=0.5

/** @param {{taskId: number, seed: number, policy: string, rival: string, config: object}} setup */
export function remember({ taskId, seed, policy, rival, config }) {
  history.replaceState(null, "", `?${new URLSearchParams({ task: taskId, seed, policy, rival, ...config })}`);
}

/** The whole address of the setup that is remembered, to share. */
export function shared() {
  return location.href;
}

/** What the address says of a name, or null. */
export function recalled(name) {
  return new URLSearchParams(location.search).get(name);
}
