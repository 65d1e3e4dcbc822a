// Light or dark: the system's choice until the button is pressed, then the user's, kept in this browser.

const root = document.documentElement;

export function recallTheme() {
  try {
    const theme = localStorage.getItem("theme");
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  } catch { /* private windows and frames may refuse storage */ }
}

export function switchTheme() {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try {
    localStorage.setItem("theme", root.dataset.theme);
  } catch { /* the choice then lasts as long as the page */ }
}
