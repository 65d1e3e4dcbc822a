// The page: reads the controls, runs the episode, and keeps charts, knobs, result and code in step with it.

import { recalled, remember, shared } from "./address.js";
import { api, explain } from "./api.js";
import { ResultCard } from "./card.js";
import { Chart } from "./charts.js";
import { Episode, REQUESTS_PER_SECOND } from "./episode.js";
import { Knobs } from "./knobs.js";
import { knobsOf, panelsOf, readings, schemasOf } from "./panels.js";
import { legend, resultOf, tableOf, taskFacts } from "./readout.js";
import { Setup } from "./setup.js";
import { showClaim } from "./showcase.js";
import { curl, python } from "./snippets.js";
import { watchTerms } from "./terms.js";
import { recallTheme, switchTheme } from "./theme.js";

const $ = (id) => document.getElementById(id);
const page = { setup: null, episode: null, knobs: null, shown: null, playing: false, busy: false, inspected: null, language: "python" };

const FRAMES_PER_SECOND = 30;
const LONG = 600; // steps of an episode that is shown fast, unless a visitor chose a speed

const task = () => page.setup.task;
/** The panels that the task has a use for. */
const panels = () => page.shown.panels.filter((panel) => panel.shown(task()));
const manual = () => page.episode?.driver.policy === "manual";
const speed = () => Number(document.querySelector("input[name=speed]:checked").value);
/** What the steps of a task are called. */
const stepsOf = ({ step_s }) => (step_s > 1 ? `steps of ${step_s} s` : "seconds");
const setSpeed = (value) => (document.querySelector(`input[name=speed][value='${value}']`).checked = true);
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/* Episode */

async function begin() {
  const mine = (page.begun = (page.begun ?? 0) + 1);
  page.playing = false;
  while (page.busy) await pause(10);
  if (mine !== page.begun) return; // a newer choice is on its way
  if (!page.setup.check()) return;
  clearTrouble();
  $("result").hidden = $("card").hidden = $("claim").hidden = true;
  const setup = page.setup.read();
  remember(setup);
  showKind(task().kind);
  showTask();
  await guarded(begin, async () => {
    const episode = new Episode(setup, await stored(setup));
    await episode.open();
    if (episode.isCompared) {
      await episode.grade(); // both are known to their end: what they come to can be said before they are played
      showClaim($("claim"), episode, task(), page.quantities);
    }
    page.episode = episode;
    page.inspected = null;
    if (!page.paced) setSpeed(manual() || episode.length <= LONG ? 15 : 120);
    page.knobs.lock(locks(), !manual());
    $("knobs-hint").textContent = manual() ? "Move them at any time; each step uses them as they stand." : `${episode.driver.name} sets them; choose “You” to drive.`;
    showDrawer(manual()); // who drives needs them; else the charts come first
    for (const chart of page.shown.charts) chart.begin(episode.length, task(), episode.lanes);
    $("progress").max = episode.length;
    $("legend").replaceChildren(...legend(episode, panels(), task()));
    render();
    $("setup").firstElementChild.textContent = `${task().title}, seed ${setup.seed}: ${episode.lanes.map(({ name }) => name).join(" against ")}`;
    say(`${task().title}, seed ${setup.seed}: ready. ${episode.length} ${stepsOf(task())}.`);
  });
}

/** The episode that the server keeps as a file, where the setup names it: it needs no simulation. */
async function stored({ taskId, seed, policy, rival, config }) {
  const first = page.info.first_screen;
  const names = first && first.task_id === taskId && first.seed === seed && !Object.keys(config).length;
  const has = [policy, rival].some((id) => id && [first?.policy, first?.rival].includes(id));
  if (!names || !has) return undefined;
  return (page.stored ??= api.file(first.episode));
}

/** Why a knob cannot be moved, by name. */
function locks() {
  const why = {};
  for (const name of Object.keys(page.knobs.values)) {
    if (!task().active_actions.includes(name)) why[name] = "Locked in this task: it stays at the baseline's value.";
    else if (task().kind === "engine" && page.info.table.locked_knobs.includes(name)) why[name] = "Locked: this server's latency table does not vary it.";
  }
  return why;
}

/** Take so many steps, and show where they lead. */
async function advance(steps) {
  const { episode } = page;
  for (let i = 0; i < steps && !episode.done; i++) await episode.advance(manual() ? page.knobs.action : undefined);
  render();
  if (episode.done) await grade();
}

async function grade() {
  page.playing = false;
  await page.episode.grade();
  const result = $("result");
  result.replaceChildren(...resultOf(page.episode, task(), page.quantities));
  result.hidden = false;
  if (manual()) page.card.show(page.episode, task(), shared());
  result.scrollIntoView({ block: "nearest" });
  render();
  say(page.episode.lanes.map((lane) => `${lane.name}: score ${lane.grade.score.toFixed(3)}.`).join(" "));
}

/** Wait for a request under way (a step just asked for, an episode being opened), but not for a whole run. */
async function turn() {
  while (page.busy && !page.playing) await pause(5);
}

/** Step until paused or done, `perSecond()` steps a second. */
async function run(perSecond) {
  await turn();
  if (!page.episode) return;
  page.perSecond = perSecond;
  if (page.playing) return;
  page.playing = true;
  await guarded(() => run(perSecond), async () => {
    render();
    while (page.playing && !page.episode.done) {
      const steps = manual() ? 1 : Math.max(1, Math.round(page.perSecond() / FRAMES_PER_SECOND));
      const due = performance.now() + (1000 * steps) / page.perSecond();
      await advance(steps);
      while (page.playing && performance.now() < due) await pause(Math.min(50, due - performance.now()));
    }
    if (page.episode.done && $("result").hidden) await grade();
  });
}

async function play() {
  if (page.playing) return stop();
  if (page.episode?.done) await begin();
  run(speed);
}

const finish = () => run(() => (manual() ? REQUESTS_PER_SECOND : 1000));

function stop() {
  page.playing = false;
  render();
  say(`Paused at ${task().step_s > 1 ? "step" : "second"} ${page.episode.time}.`);
}

async function single() {
  if (page.playing) return;
  await turn();
  if (!page.playing && page.episode && !page.episode.done) guarded(single, () => advance(1));
}

/* Trouble: one request at a time; a failure is told in words with a way on, and the episode stays where it was. */

async function guarded(again, work) {
  if (page.busy) return;
  busy(true);
  try {
    await work();
    clearTrouble();
  } catch (error) {
    trouble(error, again);
  } finally {
    page.playing = false;
    busy(false);
    render();
  }
}

function busy(yes) {
  page.busy = yes;
  document.querySelector("main").setAttribute("aria-busy", String(yes));
}

function tell(text, label, act) {
  const [message, button] = $("trouble").children;
  message.textContent = text;
  button.textContent = label;
  button.onclick = act;
  $("trouble").hidden = false;
}

function trouble(error, again) {
  const { text, action, label } = explain(error);
  tell(text, label, () => {
    clearTrouble();
    if (action === "retry") again();
    if (action === "restart") location.reload();
    if (action === "resume") resume(again);
    if (action === "drive") {
      page.setup.drive();
      begin();
    }
  });
}

/** A new session in the old one's place, then whatever could not be done in that. */
async function resume(again) {
  await guarded(() => resume(again), () => page.episode.resume());
  if ($("trouble").hidden) again();
}

function clearTrouble() {
  $("trouble").hidden = true;
}

function say(text) {
  $("said").textContent = text;
}

/* What is shown */

function render() {
  const { episode } = page;
  const over = !episode || episode.done;
  $("play").textContent = page.playing ? "Pause" : episode?.done ? "Again" : "Play";
  $("play").disabled = !episode;
  $("step").disabled = over || page.playing;
  $("finish").disabled = over;
  if (!episode) return;
  const latest = episode.driver.rows[episode.time - 1];
  $("time").value = `${episode.time} / ${episode.length} ${task().step_s > 1 ? stepsOf(task()) : "s"}`;
  $("progress").value = episode.time;
  $("readings").textContent = readings(latest, panels(), task());
  const burst = Boolean(latest?.workload.is_burst);
  $("phase").textContent = episode.done ? "Finished" : !latest ? "Press Play" : burst ? "Burst" : "Normal traffic";
  $("phase").classList.toggle("burst", burst && !episode.done);
  if (!manual()) page.knobs.show(latest?.action ?? episode.driver.rows[0].action);
  draw();
  showCode();
  if ($("table").open && (!page.playing || episode.time % 10 === 0)) showTable();
}

function draw() {
  for (const chart of page.shown.charts) chart.draw(page.inspected);
}

function showTable() {
  if (page.episode) $("table").querySelector(".scroll").replaceChildren(tableOf(page.episode, panels(), task()));
}

function showTask() {
  $("task-description").textContent = task().description;
  $("task-facts").replaceChildren(...taskFacts(task(), Object.keys(page.knobs.values).length, page.quantities));
}

function showCode() {
  if (!page.episode) return;
  const write = page.language === "curl" ? curl : python;
  $("code").firstElementChild.textContent = write(page.episode, page.knobs.action, task());
}

function selectLanguage(language) {
  page.language = language;
  for (const name of ["python", "curl"]) {
    $(`tab-${name}`).setAttribute("aria-selected", String(name === language));
    $(`tab-${name}`).tabIndex = name === language ? 0 : -1;
  }
  $("code").setAttribute("aria-labelledby", `tab-${language}`);
  if (page.episode) showCode();
}

/** Charts and knobs of a kind of task, made when a task of it is first chosen. */
function showKind(kind) {
  page.kinds ??= {};
  if (!page.kinds[kind]) {
    const schemas = schemasOf(page.info, kind);
    const shown = panelsOf(schemas, page.info.classes);
    page.kinds[kind] = {
      panels: shown,
      charts: shown.map((panel) => new Chart($("charts"), panel, page.inspect)),
      quantities: { ...schemas.metrics.properties, ...schemas.outcome.properties },
      properties: knobsOf(schemas),
    };
  }
  if (page.shown === page.kinds[kind]) return;
  page.shown = page.kinds[kind];
  page.episode = null; // it has other knobs and charts
  page.quantities = page.shown.quantities;
  $("charts").replaceChildren(...page.shown.charts.map((chart) => chart.figure));
  $("knobs").replaceChildren();
  $("locked").replaceChildren($("locked").firstElementChild);
  page.knobs = new Knobs($("knobs"), page.shown.properties, showCode);
}

/* Wiring */

function download() {
  const { taskId, seed } = page.episode;
  const blob = new Blob([JSON.stringify(page.episode.export(), null, 1)], { type: "application/json" });
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: `inferencegym-task${taskId}-seed${seed}.json` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function copy() {
  const text = $("code").textContent;
  try {
    await navigator.clipboard.writeText(text);
    say("Copied.");
    $("copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren($("code"));
    $("copy").textContent = "Selected: press Ctrl+C";
  }
  setTimeout(() => ($("copy").textContent = "Copy"), 2000);
}

function newSeed() {
  page.setup.reseed();
  begin();
}

/** You against the trained policy, on the seed that everybody has today. */
function beat() {
  page.setup.challenge();
  setSpeed(5);
  page.paced = true;
  begin();
}

/** On small screens the knobs are a drawer over the charts. */
function showDrawer(open) {
  document.body.classList.toggle("drawer", open);
  $("drawer").setAttribute("aria-expanded", String(open));
}

const toggleDrawer = () => showDrawer(!document.body.classList.contains("drawer"));

function showLinks(links) {
  for (const [name, address] of Object.entries(links)) {
    const link = document.querySelector(`#links [data-to=${name}]`);
    link.hidden = !address;
    if (address) link.href = address;
  }
}

const KEYS = { " ": play, s: single, ArrowRight: single, f: finish, r: begin, n: newSeed };

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const at = event.target;
  const typing = at.matches("input, select, textarea, [role=tab], summary") || (at.matches("pre, .scroll") && event.key === "ArrowRight");
  if (typing || (event.key === " " && at.matches("button, a"))) return;
  const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act) return;
  event.preventDefault();
  act();
}

async function start() {
  recallTheme();
  watchTerms();
  const narrow = matchMedia("(max-width: 820px)"); // there the controls fold away behind what they say
  const unfold = () => ($("setup").open = !narrow.matches);
  narrow.addEventListener("change", unfold);
  unfold();
  // the drawer stands on the playback bar, whose height depends on what it says
  new ResizeObserver(([bar]) => document.body.style.setProperty("--bar", `${bar.target.offsetHeight}px`)).observe(document.querySelector(".transport"));
  const inspect = (step) => {
    page.inspected = step;
    draw();
  };
  const [tasks, info] = await Promise.all([api.tasks(), api.info()]);
  page.info = info;
  page.inspect = inspect;
  page.card = new ResultCard($("card"), say);
  showLinks(info.links);
  page.setup = new Setup(tasks, info, begin);
  const clicks = { beat, drawer: toggleDrawer, play, step: single, finish, restart: begin, dice: newSeed, theme: switchTheme, download, copy };
  for (const [id, act] of Object.entries(clicks)) $(id).addEventListener("click", act);
  document.querySelector(".speeds").addEventListener("change", () => (page.paced = true));
  for (const name of ["python", "curl"]) $(`tab-${name}`).addEventListener("click", () => selectLanguage(name));
  document.querySelector("[role=tablist]").addEventListener("keydown", (event) => {
    if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    selectLanguage(page.language === "python" ? "curl" : "python");
    $(`tab-${page.language}`).focus();
  });
  $("table").addEventListener("toggle", () => $("table").open && showTable());
  document.addEventListener("keydown", onKey);
  const paused = recalled("paused") !== null || matchMedia("(prefers-reduced-motion: reduce)").matches;
  await begin();
  document.documentElement.dataset.ready = "true";
  if (page.setup.complaints.length) tell(page.setup.complaints.join(" "), "Close", clearTrouble);
  if (!paused && !manual()) run(speed); // a policy plays; you begin when you like
}

start().catch((error) => trouble(error, () => location.reload()));
