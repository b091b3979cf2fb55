// Who looks: the token, and what it may do. The token is kept as long as the tab, and nowhere else.

import { Store } from "./store";
import type { Action, Me } from "./types";

const KEY = "taskyard-token";

export const token = new Store<string | null>(sessionStorage.getItem(KEY));
/** What `/v1/me` said; null: not asked yet, or nobody has logged in. */
export const me = new Store<Me | null>(null);
/** Whether a token must be asked for, and why. */
export const login = new Store<{ why: string } | null>(null);

export function keepToken(text: string): void {
  sessionStorage.setItem(KEY, text);
  token.set(text);
}

export function forgetToken(): void {
  sessionStorage.removeItem(KEY);
  token.set(null);
  me.set(null);
}

function rules(action: Action): string[] {
  const words = action === "observe" ? ["observe", "manage"] : [action];
  return (me.value?.allow ?? [])
    .filter((rule) => words.includes(rule.slice(0, rule.indexOf(":"))))
    .map((rule) => rule.slice(rule.indexOf(":") + 1));
}

/** Whether one may do this with the queue or room of this name. */
export function may(action: Action, name: string): boolean {
  return rules(action).some((names) =>
    names.endsWith("*") ? name.startsWith(names.slice(0, -1)) : names === name,
  );
}

/** Whether there is any name that one may do this with. */
export function mayAny(action: Action): boolean {
  return rules(action).length > 0;
}

/** Whether one may do this with every name. */
export function mayEvery(action: Action): boolean {
  return rules(action).includes("*");
}
