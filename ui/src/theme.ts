// Light or dark: as the system has it, unless somebody chose.

import { Store } from "./store";

export type Theme = "auto" | "light" | "dark";

const KEY = "taskyard-theme";
const system = matchMedia("(prefers-color-scheme: dark)");

function stored(): Theme {
  let word: string | null = null;
  try {
    word = localStorage.getItem(KEY);
  } catch {
    // A browser may be told to store nothing.
  }
  return word === "light" || word === "dark" ? word : "auto";
}

export const choice = new Store<Theme>(stored());
/** What is in force; plots take their colours anew when it changes. */
export const theme = new Store<"light" | "dark">("light");

function apply(): void {
  const now = choice.value === "auto" ? (system.matches ? "dark" : "light") : choice.value;
  document.documentElement.dataset["theme"] = now;
  theme.set(now);
}

export function choose(wanted: Theme): void {
  try {
    if (wanted === "auto") localStorage.removeItem(KEY);
    else localStorage.setItem(KEY, wanted);
  } catch {
    // Then it holds until the page is loaded anew.
  }
  choice.set(wanted);
  apply();
}

system.addEventListener("change", apply);
apply();
