// The one socket that the page looks through: overviews while somebody looks, rooms, and tasks that are watched.
// When it breaks, it is made again with back-off, and what was asked for is asked again.

import { useEffect } from "preact/hooks";
import { Refused, whoLooks } from "./api";
import { login, me, mayAny, whenLeft } from "./session";
import { Store } from "./store";
import type { Frame, Histogram, Hop, Overview, QueueNow, Totals } from "./types";
import { Conversation } from "./wire";

export type Link =
  | { phase: "idle" | "connecting" | "open" }
  | { phase: "waiting"; why: string; until: number }
  | { phase: "closed"; why: string };

/** A look at the broker that is kept for the plots. */
export interface Sample {
  at: number;
  uptime: number;
  totals: Totals;
  hops?: Record<Hop, Histogram>;
  /** Fifty at most, as long as nobody asks for others: a few megabytes in all. */
  queues: QueueNow[];
}

export const EVERY_MS = 1000;
/** Five minutes of looks. */
const SAMPLES_MAX = 300;
/** Rates that are shown as numbers are taken over so many looks. */
const SMOOTH = 5;
const RETRY_FIRST_MS = 500;
const RETRY_MAX_MS = 15_000;
/** After so many seconds without a word the page does not say that it is live, and then it connects anew. */
const SILENT_S = 5;
const LOST_S = 30;
const SILENT = "nothing comes from the broker";

export const link = new Store<Link>({ phase: "idle" });
export const overview = new Store<Overview | null>(null);
export const samples = new Store<Sample[]>([]);
/** Why there are no overviews though the socket is open. */
export const blind = new Store<string | null>(null);
/** The session of this page, to know it among the workers. */
export const session = new Store<string | null>(null);

type Hear = (frame: Frame) => void;

let conversation: Conversation | null = null;
let attempt = 0;
let timer: ReturnType<typeof setTimeout> | undefined;
let detail: string[] | null = null;
/** Seconds that were counted here since the last frame; a page that stood still itself has not counted. */
let silent = 0;
let watchdog: ReturnType<typeof setInterval> | undefined;
/** Whether overviews are to come: without them silence means nothing. */
let looking = false;
const rooms = new Map<string, Set<Hear>>();
const watched = new Map<string, { hear: Set<Hear>; seq: number }>();
const name = `ui-${crypto.getRandomValues(new Uint32Array(1))[0]!.toString(36)}`;

export function start(): void {
  if (conversation || !me.value) return;
  clearTimeout(timer);
  link.set({ phase: "connecting" });
  looking = false;
  silent = 0;
  clearInterval(watchdog);
  watchdog = setInterval(listen, 1000);
  conversation = new Conversation({ worker: name, client: "taskyard-ui" }, { open, frame, closed });
}

/** A connection may be dead and not know it: a network that is gone, a broker that stands still. */
function listen(): void {
  const due = link.value.phase === "connecting" || (looking && !document.hidden);
  silent = due ? silent + 1 : 0;
  if (looking && silent >= SILENT_S) blind.set(SILENT);
  if (silent < LOST_S) return;
  conversation?.drop();
  closed(1006, "");
}

/** Ends it, as at a logout. */
export function stop(): void {
  clearTimeout(timer);
  clearInterval(watchdog);
  conversation?.drop();
  conversation = null;
  looking = false;
  blind.set(null);
  overview.set(null);
  samples.set([]);
  link.set({ phase: "idle" });
}

whenLeft(() => {
  rooms.clear();
  watched.clear();
});

function open(welcome: Frame): void {
  attempt = 0;
  silent = 0;
  session.set(welcome["session"] as string);
  link.set({ phase: "open" });
  void look();
  for (const room of rooms.keys())
    request({ type: "join", room }).catch((error) => tell(rooms.get(room), error));
  for (const [task, { seq, hear }] of watched) {
    request({ type: "watch", task, from_seq: seq }).catch((error) => tell(hear, error));
  }
}

/** A refusal, for those who asked. */
function tell(hear: Set<Hear> | undefined, error: unknown): void {
  if (error instanceof Refused && error.failure.code === "unreachable") return;
  const failure = error instanceof Refused ? error.failure : { message: String(error) };
  hear?.forEach((one) => one({ type: "error", ...failure }));
}

/** Asks to be told, while the page is seen. */
async function look(): Promise<void> {
  if (!mayAny("observe") || link.value.phase !== "open") return;
  const every = document.hidden ? 0 : EVERY_MS;
  try {
    await request({ type: "observe", every_ms: every, ...(detail ? { queues: detail } : {}) });
    silent = 0;
    looking = every > 0;
    blind.set(null);
  } catch (error) {
    if (error instanceof Refused && error.failure.code !== "unreachable") blind.set(error.message);
  }
}

function frame(said: Frame): void {
  silent = 0;
  if (blind.value === SILENT) blind.set(null);
  if (said.type === "overview") return take(said as unknown as Overview);
  if (said.type === "room_message" || said.type === "lagged") {
    rooms.get(said["room"] as string)?.forEach((hear) => hear(said));
  } else if (said.type === "event" || said.type === "finished") {
    const found = watched.get(said["task"] as string);
    if (found) {
      found.seq = said["seq"] as number;
      found.hear.forEach((hear) => hear(said));
    }
  }
}

function take(now: Overview): void {
  const before = samples.value;
  const last = before.at(-1);
  // After a restart of the broker its counters begin anew.
  const kept = last && last.uptime <= now.uptime_ms ? before.slice(1 - SAMPLES_MAX) : [];
  samples.set([
    ...kept,
    { at: now.at_ms / 1000, uptime: now.uptime_ms, totals: now.totals, hops: now.hops, queues: now.queues },
  ]);
  overview.set(now);
}

function closed(code: number, reason: string): void {
  conversation = null;
  looking = false;
  clearInterval(watchdog);
  const why = reason ? `${code} ${reason}` : `${code}`;
  if (code === 4001) {
    link.set({ phase: "closed", why });
    return login.set({ why: "The broker does not take this token (any more)." });
  }
  // The ranges of PROTOCOL, section 6: 40xx stay away, 42xx at once, all else with back-off.
  if (code === 1008 || (code >= 4000 && code < 4100)) return link.set({ phase: "closed", why });
  const longest = Math.min(RETRY_MAX_MS, RETRY_FIRST_MS * 2 ** attempt++);
  const wait = code >= 4200 && attempt === 1 ? 0 : longest * (0.5 + Math.random() / 2);
  const shown = code === 1006 ? "the connection broke" : why;
  link.set({ phase: "waiting", why: shown, until: Date.now() + wait });
  timer = setTimeout(again, wait);
}

/** What one may do can have changed meanwhile, or a token be asked for. */
async function again(): Promise<void> {
  if (document.hidden) return;
  try {
    const found = await whoLooks();
    // Whoever has logged out meanwhile is not logged in again.
    if (link.value.phase === "idle") return;
    me.set(found);
    start();
  } catch (error) {
    if (link.value.phase === "idle") return;
    if (error instanceof Refused && error.status === 401)
      return link.set({ phase: "closed", why: error.message });
    closed(1006, "");
  }
}

/** Tries at once. */
export function reconnect(): void {
  clearTimeout(timer);
  attempt = 0;
  link.set({ phase: "connecting" });
  void again();
}

document.addEventListener("visibilitychange", () => {
  if (link.value.phase === "open") void look();
  else if (!document.hidden && link.value.phase === "waiting") reconnect();
});

/** Says something to the broker that it answers. */
export function request(message: Record<string, unknown>): Promise<Frame> {
  if (conversation) return conversation.request(message);
  const failure = {
    code: "unreachable",
    message: "There is no connection to the broker: see above.",
    retryable: true,
  };
  return Promise.reject(new Refused(0, failure));
}

/** Has these queues told in detail while a component is shown. */
export function useDetail(queue: string): void {
  useEffect(() => {
    detail = [queue];
    void look();
    return () => {
      detail = null;
      void look();
    };
  }, [queue]);
}

export function join(room: string, hear: Hear): void {
  rooms.set(room, new Set([hear]));
  request({ type: "join", room }).catch((error) => tell(rooms.get(room), error));
}

export function leave(room: string): void {
  rooms.delete(room);
  void request({ type: "leave", room }).catch(() => undefined);
}

/** Hears what happens to a task until the function that it returns is called. */
export function watch(task: string, hear: Hear): () => void {
  let found = watched.get(task);
  if (!found) watched.set(task, (found = { hear: new Set(), seq: 0 }));
  const { hear: set } = found;
  set.add(hear);
  request({ type: "watch", task }).catch((error) => tell(set, error));
  return () => {
    set.delete(hear);
    if (set.size > 0 || watched.get(task)?.hear !== set) return;
    watched.delete(task);
    void request({ type: "unwatch", task }).catch(() => undefined);
  };
}

/** How many a second, of what `pick` counts, between a look and the one `SMOOTH` before it. */
export function perSecond(kept: Sample[], pick: (sample: Sample) => number | undefined): number | null {
  const now = kept.at(-1);
  const then = kept.at(-1 - SMOOTH) ?? kept[0];
  if (!now || !then || now === then) return null;
  const [a, b] = [pick(then), pick(now)];
  return a === undefined || b === undefined ? null : ((b - a) * 1000) / (now.uptime - then.uptime);
}

/** The same for each look, for a plot. */
export function rates(kept: Sample[], pick: (sample: Sample) => number | undefined): (number | null)[] {
  return kept.map((now, at) => {
    const then = kept[at - 1];
    const [a, b] = [then && pick(then), pick(now)];
    if (!then || a === undefined || b === undefined) return null;
    return Math.max(0, ((b - a) * 1000) / (now.uptime - then.uptime));
  });
}

/** What a share of durations was shorter than, between two looks; null: there was none. */
export function quantile(then: Histogram, now: Histogram, bounds: number[], share: number): number | null {
  const counts = now.buckets.map((count, at) => count - (then.buckets[at] ?? 0));
  const all = counts.reduce((sum, count) => sum + count, 0);
  if (all <= 0) return null;
  let below = 0;
  for (const [at, count] of counts.entries()) {
    if (count > 0 && below + count >= all * share) {
      const low = bounds[at - 1] ?? 0;
      const high = bounds[at] ?? low;
      return low + ((high - low) * (all * share - below)) / count;
    }
    below += count;
  }
  return bounds.at(-1) ?? null;
}

/** A hop's quantile at each look, over the ten before it. */
export function quantiles(kept: Sample[], hop: Hop, bounds: number[], share: number): (number | null)[] {
  return kept.map((now, at) => {
    const then = kept[Math.max(0, at - 10)];
    const [a, b] = [then?.hops?.[hop], now.hops?.[hop]];
    return a && b && a !== b ? quantile(a, b, bounds, share) : null;
  });
}
