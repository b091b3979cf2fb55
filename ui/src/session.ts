// Who looks: the token, and what it may do. The token is kept as long as the tab, and nowhere else.

import { Store } from "./store";
import type { Action, Me } from "./types";

const KEY = "taskyard-token";

/** A browser may be told to store nothing: then a token lasts until the page is loaded anew. */
function stored(): string | null {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null;
  }
}

export const token = new Store<string | null>(stored());
/** What `/v1/me` said; null: not asked yet, or nobody has logged in. */
export const me = new Store<Me | null>(null);
/** Whether a token must be asked for, and why. */
export const login = new Store<{ why: string } | null>(null);

export function keepToken(text: string): void {
  try {
    sessionStorage.setItem(KEY, text);
  } catch {
    // As above.
  }
  token.set(text);
}

const left: (() => void)[] = [];

/** Has something forgotten when whoever looks has left: the next one at this tab may be somebody else. */
export function whenLeft(forget: () => void): void {
  left.push(forget);
}

export function leave(): void {
  for (const forget of left) forget();
}

export function forgetToken(): void {
  try {
    sessionStorage.removeItem(KEY);
  } catch {
    // As above.
  }
  token.set(null);
  me.set(null);
  leave();
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
