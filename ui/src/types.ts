// What the broker says, as far as the UI reads it: see proto/PROTOCOL.md.

export type State =
  "scheduled" | "queued" | "leased" | "retrying" | "done" | "dead" | "cancelled" | "expired";
export const STATES: State[] = [
  "scheduled",
  "queued",
  "leased",
  "retrying",
  "done",
  "dead",
  "cancelled",
  "expired",
];
/** Those that a task may leave again by `cancel`. */
export const OPEN: State[] = ["scheduled", "queued", "leased", "retrying"];

export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

export interface Failure {
  code: string;
  message: string;
  retryable: boolean;
  retry_after_ms?: number;
  field?: string;
}

export type Action = "submit" | "consume" | "observe" | "manage";

/** `GET /v1/me` */
export interface Me {
  account: string;
  auth: boolean;
  allow: string[];
  expires_in_ms: number | null;
  /** By this computer's clock, counted from when it was told. */
  ends_at?: number | null;
}

export interface Backoff {
  initial_ms: number;
  max_ms: number;
  factor: number;
}

export interface Settings {
  assign: string;
  deliver: string;
  order: "strict" | { aged: { headstart_ms: number } };
  max_tasks: number | null;
  max_bytes: number | null;
  max_leased: number | null;
  rate_per_s: number | null;
  keep_result_ms: number | null;
  defaults: {
    priority: number | null;
    ttl_ms: number | null;
    ack_timeout_ms: number | null;
    timeout_ms: number | null;
    max_attempts: number | null;
    backoff: Backoff | null;
  };
}

export interface Queue {
  queue: string;
  counts: Record<State, number>;
  oldest_ms: number | null;
  rates: { accepted: number; delivered: number; settled: number };
  workers: number;
  in_flight: number;
  credit_free: number;
  declared: boolean;
  settings: Settings;
  paused: { by: string | null; reason: string | null; in_ms: number | null } | null;
}

export interface Attempt {
  attempt: number;
  worker: string | null;
  reason: string;
  error: string | null;
}

/** A value, or bytes. */
export interface Result {
  result?: Json;
  result_b64?: string;
}

export interface Payload {
  payload?: Json;
  payload_b64?: string;
}

export interface Task extends Result, Payload {
  task: string;
  queue: string;
  state: State;
  attempt: number;
  max_attempts: number;
  age_ms: number;
  worker: string | null;
  error: string | null;
  history: Attempt[];
  headers?: Record<string, string>;
}

export interface Tasks {
  tasks: Task[];
  next: string | null;
}

export interface Explained {
  state: State;
  reasons: { code: string; message: string }[];
}

export interface Worker {
  worker: string;
  session: string;
  groups: string[];
  labels: Record<string, string>;
  client: string | null;
  connected_ms: number;
  in_flight: number;
  draining: boolean;
  silent: boolean;
  away: boolean;
  subscriptions: { queue: string; credit: number; unsettled: number }[];
}

export interface Schedule extends Payload {
  name: string;
  queue: string;
  cron?: string;
  tz?: string;
  every_ms?: number;
  missed: "one" | "none";
  next_run_at: string | null;
  next_in_ms: number | null;
  fired: number;
  last: { run_at: string; task: string } | null;
  last_error: { code: string; message: string } | null;
  [option: string]: unknown;
}

export const EVENTS = [
  "accepted",
  "duplicate",
  "refused",
  "delivered",
  "redelivered",
  "acked",
  "nacked",
  "released",
  "timed_out",
  "worker_lost",
  "dead",
  "cancelled",
  "expired",
] as const;
export type Counter = (typeof EVENTS)[number];

/** What an overview tells of all queues together. */
export interface Totals {
  counts: Record<"scheduled" | "queued" | "leased" | "retrying" | "dead", number>;
  oldest_ms: number | null;
  workers: number;
  in_flight: number;
  credit_free: number;
  events: Record<Counter, number>;
}

export interface QueueNow extends Totals {
  queue: string;
  paused: boolean;
}

export interface Histogram {
  count: number;
  sum_us: number;
  buckets: number[];
}

export const HOPS = [
  "accepted_to_durable",
  "durable_to_assigned",
  "assigned_to_sent",
  "sent_to_settled",
] as const;
export type Hop = (typeof HOPS)[number];

export interface Overview {
  at_ms: number;
  uptime_ms: number;
  version: string;
  engine: string;
  durable: boolean;
  draining: boolean;
  queues_total: number;
  totals: Totals;
  queues: QueueNow[];
  workers: number;
  connections: number;
  schedules: number;
  hops?: Record<Hop, Histogram>;
  hop_bounds_us?: number[];
  log?: {
    bytes: number;
    live_bytes: number;
    segments: number;
    sync: Histogram;
    batch_records_avg: number;
  } | null;
  process?: {
    rss_bytes: number | null;
    cpu_ms: number | null;
    open_fds: number | null;
    threads: number | null;
  } | null;
}

/** A frame from the broker; which fields are there depends on `type`. */
export interface Frame {
  type: string;
  ref?: number | string;
  [field: string]: unknown;
}
