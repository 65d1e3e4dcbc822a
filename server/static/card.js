// Your result as a picture to share, drawn here: score, rival, seed, address, and both curves of the reward.

const SIZE = { width: 1200, height: 630 };
const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif";
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** The colours of the theme in use, resolved: a canvas knows no light-dark(). */
function palette() {
  const probe = document.body.appendChild(document.createElement("i"));
  const found = {};
  for (const name of ["page", "card", "line", "ink", "soft", "a", "b"]) {
    probe.style.color = colour(name);
    found[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  return found;
}

/**
 * What the card says.
 * @param {object} episode graded, its first lane yours. @param {object} task of /tasks. @param {string} address of the same episode.
 */
export function cardOf(episode, task, address) {
  const [you, rival] = episode.lanes;
  const name = rival?.name.toLowerCase();
  const margin = rival ? you.grade.score - rival.grade.score : 0;
  let headline = `I scored ${you.grade.score.toFixed(3)}`;
  if (rival && Math.abs(margin) < 0.0005) headline = `Level with the policy “${name}”`;
  else if (rival) headline = margin > 0 ? `I beat the policy “${name}”` : `The policy “${name}” beat me`;
  return {
    headline,
    scores: episode.lanes.map((lane) => ({ who: lane.name, score: lane.grade.score.toFixed(3), kind: lane.kind })),
    where: `Task ${task.id}, ${task.title} · seed ${episode.seed}`,
    address,
  };
}

/** The card in a line, for who does not see it. */
export const cardText = ({ headline, scores, where, address }) =>
  `${headline}. ${scores.map(({ who, score }) => `${who} ${score}`).join(", ")}. ${where}. ${address}`;

/** A text, set smaller until it fits. */
function write(context, text, x, y, size, width, weight = 600) {
  for (let points = size; ; points -= 1) {
    context.font = `${weight} ${points}px ${FONT}`;
    if (context.measureText(text).width <= width || points < 16) break;
  }
  context.fillText(text, x, y, width);
}

/** The reward so far of each lane, in the box. */
function curves(context, lanes, box, colours) {
  const values = lanes.map((lane) => lane.rows.map((row) => row.totals.reward));
  const [low, high] = [Math.min(0, ...values.flat()), Math.max(0, ...values.flat())];
  values.forEach((line, i) => {
    context.beginPath();
    context.setLineDash(i ? [10, 7] : []);
    context.strokeStyle = colours[lanes[i].kind];
    context.lineWidth = 5;
    line.forEach((value, step) => context.lineTo(box.x + (box.width * (step + 1)) / line.length, box.y + box.height * (1 - (value - low) / (high - low || 1))));
    context.stroke();
  });
  context.setLineDash([]);
}

/** Draw the card. @param {HTMLCanvasElement} canvas @param {object} card of `cardOf`. @param {object[]} lanes of the episode. */
export function drawCard(canvas, card, lanes) {
  Object.assign(canvas, SIZE);
  const colours = palette();
  const context = canvas.getContext("2d");
  context.fillStyle = colours.page;
  context.fillRect(0, 0, SIZE.width, SIZE.height);
  context.fillStyle = colours.a;
  context.fillRect(0, 0, 14, SIZE.height);
  context.fillStyle = colours.soft;
  write(context, "InferenceGym JAX: 200 seconds at the knobs of an LLM server".replace("200", lanes[0].rows.length), 64, 84, 28, 1072);
  context.fillStyle = colours.ink;
  write(context, card.headline, 64, 172, 64, 1072, 700);
  card.scores.forEach(({ who, score, kind }, i) => {
    context.fillStyle = colours[kind];
    write(context, score, 64, 306 + 126 * i, 96, 330, 700);
    write(context, who, 64, 344 + 126 * i, 28, 330);
  });
  context.fillStyle = colours.soft;
  write(context, "reward so far", 440, 236, 22, 400, 500);
  context.strokeStyle = colours.line;
  context.lineWidth = 2;
  context.strokeRect(440, 250, 696, 232);
  curves(context, lanes, { x: 446, y: 262, width: 684, height: 208 }, colours);
  context.fillStyle = colours.ink;
  write(context, card.where, 64, 546, 30, 1072);
  context.fillStyle = colours.soft;
  write(context, card.address, 64, 590, 24, 1072, 500);
}

/** The section of the card below a result: the picture, saved or shared, and the link. */
export class ResultCard {
  /** @param {HTMLElement} host with a canvas and the buttons save, share, link. @param {(text: string) => void} say */
  constructor(host, say) {
    this.host = host;
    this.say = say;
    this.canvas = host.querySelector("canvas");
    const [save, share, link] = host.querySelectorAll("button");
    save.addEventListener("click", () => this.save());
    share.addEventListener("click", () => this.share());
    link.addEventListener("click", () => this.copy());
    share.hidden = !navigator.canShare?.({ files: [new File([""], "card.png", { type: "image/png" })] });
  }

  show(episode, task, address) {
    this.card = cardOf(episode, task, address);
    this.name = `inferencegym-card-task${task.id}-seed${episode.seed}.png`;
    drawCard(this.canvas, this.card, episode.lanes);
    this.canvas.setAttribute("aria-label", cardText(this.card));
    this.host.hidden = false;
  }

  blob() {
    return new Promise((resolve) => this.canvas.toBlob(resolve, "image/png"));
  }

  async save() {
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(await this.blob()), download: this.name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    this.say("Picture saved.");
  }

  async share() {
    const files = [new File([await this.blob()], this.name, { type: "image/png" })];
    await navigator.share({ files, text: this.card.headline, url: this.card.address }).catch(() => {}); // closed without sharing
  }

  async copy() {
    try {
      await navigator.clipboard.writeText(this.card.address);
      this.say("Link copied.");
    } catch {
      prompt("The link to this episode", this.card.address);
    }
  }
}
