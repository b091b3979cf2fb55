// Numbers, times and bytes as people read them.

import type { Json } from "./types";

export const DASH = "–";

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export function count(value: number | null | undefined): string {
  return value === null || value === undefined ? DASH : WHOLE.format(value);
}

/** A number a second: few of them need their fraction. */
export function rate(value: number | null | undefined): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return DASH;
  if (value === 0) return "0";
  return value < 10 ? value.toFixed(1) : count(value);
}

/** How long, in at most two units. */
export function span(ms: number | null | undefined): string {
  if (ms === null || ms === undefined) return DASH;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const s = ms / 1000;
  if (s < 10) return `${Number(s.toFixed(1))} s`;
  if (s < 60) return `${Math.floor(s)} s`;
  const units: [number, string][] = [
    [86400, "d"],
    [3600, "h"],
    [60, "min"],
    [1, "s"],
  ];
  const at = units.findIndex(([size]) => s >= size);
  const [size, name] = units[at]!;
  const next = units[at + 1]!;
  const rest = Math.floor((s % size) / next[0]);
  return `${Math.floor(s / size)} ${name}${rest ? ` ${rest} ${next[1]}` : ""}`;
}

/** A latency, given in microseconds. */
export function latency(us: number | null | undefined): string {
  if (us === null || us === undefined || !Number.isFinite(us)) return DASH;
  if (us < 1000) return `${Math.round(us)} µs`;
  if (us < 10_000) return `${(us / 1000).toFixed(1)} ms`;
  if (us < 1_000_000) return `${Math.round(us / 1000)} ms`;
  return `${(us / 1_000_000).toFixed(us < 10_000_000 ? 1 : 0)} s`;
}

export function bytes(value: number | null | undefined): string {
  if (value === null || value === undefined) return DASH;
  if (value < 1024) return `${value} B`;
  let [size, at] = [value / 1024, 0];
  while (size >= 1024 && at < 3) [size, at] = [size / 1024, at + 1];
  return `${size < 10 ? size.toFixed(1) : Math.round(size)} ${["KiB", "MiB", "GiB", "TiB"][at]}`;
}

export function clock(at: number): string {
  return new Date(at).toLocaleTimeString("en-GB");
}

/** A time of any day, by this computer's clock. */
export function moment(at: number): string {
  return new Date(at).toLocaleString("en-GB");
}

export function plural(number: number, one: string, many = `${one}s`): string {
  return `${count(number)} ${number === 1 ? one : many}`;
}

const EXACT = JSON as unknown as {
  rawJSON?: (text: string) => Json;
  parse(text: string, revive: (key: string, value: Json, context?: { source?: string }) => Json): Json;
};
/** More digits than a number of JavaScript is sure to keep. */
const DIGITS_MAX = 15;

/** JSON whose long numbers are written again as they were read, where the browser can: the broker keeps them. */
export function parseExact(text: string): Json {
  const raw = EXACT.rawJSON;
  if (!raw) return JSON.parse(text) as Json;
  return EXACT.parse(text, (_, value, context) => {
    const source = context?.source;
    if (typeof value !== "number" || source === undefined) return value;
    const long = source.replace(/\D/g, "").length > DIGITS_MAX || !Number.isFinite(value);
    return long ? raw(source) : value;
  });
}

/** Whether this browser would change a number of this JSON. */
export function wouldRound(text: string): boolean {
  return !EXACT.rawJSON && /\d{16}/.test(text.replace(/"(?:[^"\\]|\\.)*"/g, ""));
}

export function fromBase64(text: string): Uint8Array {
  return Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
}

export function toBase64(data: Uint8Array): string {
  let text = "";
  // In parts: a call takes only so many arguments.
  for (let at = 0; at < data.length; at += 8192) text += String.fromCharCode(...data.subarray(at, at + 8192));
  return btoa(text);
}

/** Sixteen bytes a line: where, what, and as text where it is some. */
export function hexDump(data: Uint8Array, most: number): string {
  const lines: string[] = [];
  for (let at = 0; at < Math.min(data.length, most); at += 16) {
    const part = [...data.subarray(at, Math.min(at + 16, most))];
    const hex = part.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
    const text = part.map((byte) => (byte >= 32 && byte < 127 ? String.fromCharCode(byte) : ".")).join("");
    lines.push(`${at.toString(16).padStart(6, "0")}  ${hex.padEnd(47)}  ${text}`);
  }
  if (data.length > most) lines.push(`… ${bytes(data.length - most)} more`);
  return lines.join("\n");
}
