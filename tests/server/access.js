// What test_page_access.py measures on the page: contrast of every word with what lies under it, and targets too small for fingers.

function parse(text) {
  const numbers = text.match(/[\d.]+/g).map(Number);
  const scale = text.startsWith("color(") ? 255 : 1;
  return [...numbers.slice(0, 3).map((x) => x * scale), numbers[3] ?? 1];
}

function over(top, below) {
  const alpha = top[3] + below[3] * (1 - top[3]);
  const mix = (i) => (alpha ? (top[i] * top[3] + below[i] * below[3] * (1 - top[3])) / alpha : 0);
  return [mix(0), mix(1), mix(2), alpha];
}

function chain(element) {
  const found = [];
  for (let one = element; one; one = one.parentElement) found.push(one);
  return found;
}

function ground(element) {
  const under = chain(element).reduce((colour, one) => over(colour, parse(getComputedStyle(one).backgroundColor)), [0, 0, 0, 0]);
  return over(under, [255, 255, 255, 1]);
}

function luminance(colour) {
  const linear = colour.slice(0, 3).map((x) => x / 255).map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
  return linear.reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
}

function written(element) {
  if (element.tagName === "SELECT") return true;
  if (element.tagName === "INPUT") return !["radio", "checkbox", "range"].includes(element.type);
  return [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim());
}

/** Of everything that is written on the page: [contrast, what, whether it is disabled]. */
function contrasts() {
  const shown = [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() && written(e) && !e.closest(".unseen, .skip, noscript, option"));
  return shown.map((element) => {
    const style = getComputedStyle(element);
    const back = ground(element);
    const ink = parse(element instanceof SVGElement ? style.fill : style.webkitTextFillColor);
    ink[3] *= chain(element).reduce((all, one) => all * Number(getComputedStyle(one).opacity), 1);
    const [light, dark] = [luminance(over(ink, back)), luminance(back)].sort((x, y) => y - x);
    const what = `${element.tagName} ${element.id} ${element.getAttribute("class")} ${(element.value || element.textContent).slice(0, 30)}`;
    return [(light + 0.05) / (dark + 0.05), what, Boolean(element.closest(":disabled"))];
  });
}

/** What can be pressed and is less than 24 px wide or high. */
function small() {
  const pressed = [...document.querySelectorAll('a, button, select, summary, input, [tabindex="0"]')].filter((e) => e.checkVisibility() && !e.matches(".skip"));
  const boxes = pressed.map((element) => [element.outerHTML.slice(0, 90), element.getBoundingClientRect()]);
  return boxes.filter(([, box]) => Math.min(box.width, box.height) < 23.99).map(([text, box]) => `${box.width} x ${box.height}: ${text}`);
}
