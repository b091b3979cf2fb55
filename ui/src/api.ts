// Requests, and lists that are asked for again while their page is open and seen.

import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { login, token } from "./session";
import type { Failure } from "./types";

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

export function path(parts: TemplateStringsArray, ...names: string[]): string {
  return parts.reduce((text, part, at) => text + encodeURIComponent(names[at - 1] ?? "") + part);
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
): Promise<T> {
  const headers: Record<string, string> = { Accept: "application/json" };
  if (token.value) headers["Authorization"] = `Bearer ${token.value}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer: Response;
  let text: string;
  try {
    answer = await fetch(address, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: signal ?? null,
      cache: "no-store",
      credentials: "omit",
    });
    text = await answer.text();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Refused(0, UNREACHABLE);
  }
  let value: unknown;
  try {
    value = text === "" ? {} : JSON.parse(text);
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
export function usePoll<T>(address: string | null, everyMs: number): Polled<T> {
  const [state, setState] = useState<{ value: T | null; error: Refused | null; at: number }>({
    value: null,
    error: null,
    at: 0,
  });
  const round = useRef(0);
  const [asked, ask] = useState(0);
  const last = useRef<string | null>(null);
  useEffect(() => {
    const mine = ++round.current;
    const abort = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    if (last.current !== address) {
      last.current = address;
      setState({ value: null, error: null, at: 0 });
    }
    const turn = async () => {
      // Without a good token there is nothing to ask; it goes on when there is one.
      if (address === null || mine !== round.current || login.value) return;
      const begun = performance.now();
      try {
        const value = await call<T>("GET", address, undefined, abort.signal);
        if (mine !== round.current) return;
        setState({ value, error: null, at: Date.now() });
      } catch (error) {
        if (mine !== round.current || !(error instanceof Refused)) return;
        setState((old) => ({ ...old, error }));
      }
      const took = performance.now() - begun;
      if (!document.hidden && mine === round.current) timer = setTimeout(turn, Math.max(everyMs, took * 10));
    };
    const seen = () => {
      clearTimeout(timer);
      if (!document.hidden) void turn();
    };
    const entered = login.watch(seen);
    void turn();
    document.addEventListener("visibilitychange", seen);
    return () => {
      abort.abort();
      clearTimeout(timer);
      entered();
      document.removeEventListener("visibilitychange", seen);
    };
  }, [address, everyMs, asked]);
  const reload = useCallback(() => ask((count) => count + 1), []);
  return { ...state, reload };
}
