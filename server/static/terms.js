// One line of explanation for whatever carries data-about: shown on hover, on focus and on tap, until Escape or leaving.

const tip = Object.assign(document.createElement("div"), { id: "tip", role: "tooltip", hidden: true });
let shown = null;

/** A word with its explanation, reached by pointer, tap and Tab. */
export function term(text, about, className = "term") {
  const node = Object.assign(document.createElement("span"), { className, textContent: text });
  return explained(node, about);
}

/** Give an element its explanation; an empty one takes it away. */
export function explained(node, about) {
  if (!about) {
    for (const name of ["data-about", "tabindex", "role", "aria-label"]) node.removeAttribute(name);
    return node;
  }
  node.dataset.about = about;
  node.tabIndex = 0; // focus and tap show what hovering shows
  node.setAttribute("role", "note");
  node.setAttribute("aria-label", `${node.textContent}: ${about}`);
  return node;
}

function place() {
  const at = shown.getBoundingClientRect();
  const { width, height } = tip.getBoundingClientRect();
  const below = at.bottom + 6 + height <= innerHeight;
  tip.style.left = `${Math.max(8, Math.min(at.left, innerWidth - width - 8))}px`;
  tip.style.top = `${below ? at.bottom + 4 : Math.max(8, at.top - height - 4)}px`;
}

function show(node) {
  shown = node;
  tip.textContent = node.dataset.about;
  tip.hidden = false;
  place();
}

function hide() {
  shown = null;
  tip.hidden = true;
}

export function watchTerms() {
  document.body.append(tip);
  const of = (event) => event.target.closest?.("[data-about]");
  const enter = (event) => (of(event) ? show(of(event)) : tip.contains(event.target) || hide());
  document.addEventListener("pointerover", (event) => (of(event) || shown !== document.activeElement) && enter(event));
  document.addEventListener("focusin", enter);
  document.addEventListener("click", enter);
  document.addEventListener("focusout", hide);
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  for (const name of ["scroll", "resize"]) addEventListener(name, () => shown && place(), { capture: true, passive: true });
}
