// Light or dark: as the system says, or as the operator has chosen.

export type Theme = "system" | "light" | "dark";
const NAME = "weft.theme";
const dark = matchMedia("(prefers-color-scheme: dark)");

export function chosenTheme(): Theme {
  const stored = localStorage.getItem(NAME);
  return stored === "light" || stored === "dark" ? stored : "system";
}

export function applyTheme() {
  const theme = chosenTheme();
  document.documentElement.dataset.theme = theme === "system" ? (dark.matches ? "dark" : "light") : theme;
  window.dispatchEvent(new Event("weft-theme"));
}

export function chooseTheme(theme: Theme) {
  localStorage.setItem(NAME, theme);
  applyTheme();
}

dark.addEventListener("change", applyTheme);
