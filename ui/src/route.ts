// Where one is: the part of the address behind '#'.

import { Store } from "./store";

export interface Route {
  page: string;
  /** What of it: a queue, a task. */
  name: string;
  search: URLSearchParams;
}

function parse(): Route {
  const [path = "", search = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [page = "", name = ""] = path.split("/").map((part) => {
    try {
      return decodeURIComponent(part);
    } catch {
      return part;
    }
  });
  return { page: page || "overview", name, search: new URLSearchParams(search) };
}

export const route = new Store<Route>(parse());
addEventListener("hashchange", () => route.set(parse()));

export function to(page: string, name = "", search: Record<string, string | undefined> = {}): string {
  const pairs = Object.entries(search).filter((pair): pair is [string, string] => Boolean(pair[1]));
  const text = new URLSearchParams(pairs).toString();
  return `#/${page}${name && `/${encodeURIComponent(name)}`}${text && `?${text}`}`;
}

export function go(address: string): void {
  location.hash = address;
}

/** The same page with another search, without a step in the history. */
export function refine(search: Record<string, string | undefined>): void {
  history.replaceState(null, "", to(route.value.page, route.value.name, search));
  route.set(parse());
}
