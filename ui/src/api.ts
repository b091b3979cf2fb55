// Requests, and lists that are asked for again while their page is open and seen.

import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { login, token } from "./session";
import type { Failure, Me } from "./types";
import { parseExact } from "./format";

/** What the broker refused, in its words. */
export class Refused extends Error {
  constructor(
    readonly status: number,
    readonly failure: Failure,
  ) {
    super(failure.message);
  }
}

const UNREACHABLE: Failure = {
  code: "unreachable",
  message: "The broker does not answer. It may be restarting, or the network is away: this is tried again.",
  retryable: true,
};

/** How long an answer to a look may take; what changes something is waited for. */
const ANSWER_MS = 30_000;

/** A part of an address. Dots alone would lead to another one, however they are written. */
function segment(name: string): string {
  return /^\.\.?$/.test(name) ? name.replaceAll(".", "%252e") : encodeURIComponent(name);
}

export function path(parts: TemplateStringsArray, ...names: string[]): string {
  return parts.reduce((text, part, at) => text + segment(names[at - 1] ?? "") + part);
}

export function query(fields: Record<string, string | number | undefined | null>): string {
  const pairs = Object.entries(fields).filter(
    ([, value]) => value !== undefined && value !== null && value !== "",
  );
  const text = new URLSearchParams(pairs.map(([name, value]) => [name, String(value)])).toString();
  return text && `?${text}`;
}

export async function call<T>(
  method: string,
  address: string,
  body?: unknown,
  signal?: AbortSignal,
  /** Whether numbers keep all their digits: a payload is to be seen as it is. */
  exact = false,
): Promise<T> {
  const headers: Record<string, string> = { Accept: "application/json" };
  if (token.value) headers["Authorization"] = `Bearer ${token.value}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer: Response;
  let text: string;
  const abort = new AbortController();
  const give = () => abort.abort();
  const timer = method === "GET" ? setTimeout(give, ANSWER_MS) : undefined;
  signal?.addEventListener("abort", give);
  try {
    answer = await fetch(address, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: abort.signal,
      cache: "no-store",
      credentials: "omit",
    });
    text = await answer.text();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Refused(0, UNREACHABLE);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", give);
  }
  let value: unknown;
  try {
    value = text === "" ? {} : exact ? parseExact(text) : JSON.parse(text);
  } catch {
    const message = `Expected JSON of ${address}, got status ${answer.status}: something between here and the broker?`;
    throw new Refused(answer.status, { code: "no_json", message, retryable: true });
  }
  if (answer.status === 401 && !login.value) {
    login.set({ why: token.value ? "The broker does not take this token (any more)." : "" });
  }
  if (!answer.ok) throw new Refused(answer.status, value as Failure);
  return value as T;
}

/** Who looks, as the broker sees it. */
export async function whoLooks(): Promise<Me> {
  const found = await call<Me>("GET", "v1/me");
  return { ...found, ends_at: found.expires_in_ms === null ? null : Date.now() + found.expires_in_ms };
}

/** What an error says, whoever made it. */
export function words(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

export interface Polled<T> {
  value: T | null;
  error: Refused | null;
  /** When the value came. */
  at: number;
  reload: () => void;
}

/**
 * Asks for a document, and again every so often while the page is seen; slower where answers take long, so that
 * looking never is a load. `null` asks for nothing.
 */
export function usePoll<T>(address: string | null, everyMs: number, exact = false): Polled<T> {
  const [state, setState] = useState<{ value: T | null; error: Refused | null; at: number }>({
    value: null,
    error: null,
    at: 0,
  });
  const [asked, ask] = useState(0);
  const last = useRef<string | null>(null);
  useEffect(() => {
    let round = 0;
    let abort = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    if (last.current !== address) {
      last.current = address;
      setState({ value: null, error: null, at: 0 });
    }
    // A turn takes the place of the one before it, answered or not: there is one row of them, whoever begins it.
    const turn = async () => {
      clearTimeout(timer);
      abort.abort();
      const mine = ++round;
      // Without a good token there is nothing to ask; it goes on when there is one.
      if (address === null || login.value) return;
      abort = new AbortController();
      const begun = performance.now();
      let final = false;
      try {
        const value = await call<T>("GET", address, undefined, abort.signal, exact);
        if (mine !== round) return;
        setState({ value, error: null, at: Date.now() });
      } catch (error) {
        if (mine !== round || !(error instanceof Refused)) return;
        setState((old) => ({ ...old, error }));
        // Asking again for what may not be seen, or is no name, changes nothing.
        final = error.status === 400 || error.status === 403;
      }
      const took = performance.now() - begun;
      if (!document.hidden && !final) timer = setTimeout(turn, Math.max(everyMs, took * 10));
    };
    const seen = () => {
      if (document.hidden) clearTimeout(timer);
      else void turn();
    };
    const entered = login.watch(seen);
    void turn();
    document.addEventListener("visibilitychange", seen);
    return () => {
      round++;
      abort.abort();
      clearTimeout(timer);
      entered();
      document.removeEventListener("visibilitychange", seen);
    };
  }, [address, everyMs, exact, asked]);
  const reload = useCallback(() => ask((count) => count + 1), []);
  return { ...state, reload };
}
