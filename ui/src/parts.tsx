// What pages are made of.

import type { ComponentChildren, JSX } from "preact";
import { useEffect, useId, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { words, type Polled } from "./api";
import { bytes, fromBase64, hexDump, parseExact, toBase64, wouldRound } from "./format";
import { route } from "./route";
import { whenLeft } from "./session";
import { Store, useStore } from "./store";
import type { Json, State } from "./types";

/** A page's head: its name, and what can be done with all of it. */
export function Head({
  title,
  children,
  crumbs,
}: {
  title: string;
  children?: ComponentChildren;
  crumbs?: ComponentChildren;
}) {
  const ref = useRef<HTMLHeadingElement>(null);
  useEffect(() => {
    document.title = `${title} · Taskyard`;
  }, [title]);
  return (
    <div class="head">
      <div>
        {crumbs && <p class="crumbs">{crumbs}</p>}
        <h1 ref={ref} tabIndex={-1} id="title">
          {title}
        </h1>
      </div>
      {children && <div class="actions">{children}</div>}
    </div>
  );
}

export function Section({
  title,
  note,
  children,
  actions,
}: {
  title: string;
  note?: ComponentChildren;
  children: ComponentChildren;
  actions?: ComponentChildren;
}) {
  const id = useId();
  return (
    <section aria-labelledby={id}>
      <div class="head">
        <div>
          <h2 id={id}>{title}</h2>
          {note && <p class="dim">{note}</p>}
        </div>
        {actions && <div class="actions">{actions}</div>}
      </div>
      {children}
    </section>
  );
}

const TONES: Record<string, string> = {
  done: "good",
  leased: "info",
  retrying: "warn",
  dead: "bad",
  paused: "warn",
  draining: "warn",
  away: "warn",
  silent: "warn",
  expired: "warn",
  connected: "good",
};

/** A state, by its word; the colour only helps. */
export function Badge({ word }: { word: State | string }) {
  return <span class={`badge ${TONES[word] ?? ""}`}>{word}</span>;
}

export function Failed({ error, what }: { error: unknown; what?: string }) {
  return error ? (
    <p class="box bad" role="alert">
      {what && `${what}: `}
      {words(error)}
    </p>
  ) : null;
}

/** What to see instead of nothing, and what to do about it. */
export function Empty({ children, command }: { children: ComponentChildren; command?: string }) {
  return (
    <div class="empty">
      <p>{children}</p>
      {command && <Command text={command} />}
    </div>
  );
}

export function Command({ text }: { text: string }) {
  return (
    <div class="command">
      <code>{text}</code>
      <Copy text={text} what="command" />
    </div>
  );
}

export function Copy({ text, what }: { text: string; what: string }) {
  const [done, setDone] = useState(false);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      setDone(true);
      setTimeout(() => setDone(false), 1500);
    } catch {
      // Without TLS browsers keep the clipboard to themselves.
      note(`This browser does not let a page copy here. Mark the ${what} and copy it by hand.`, "bad");
    }
  };
  return (
    <button type="button" class="small" onClick={copy} aria-label={`Copy the ${what}`}>
      <span aria-live="polite">{done ? "Copied" : "Copy"}</span>
    </button>
  );
}

/** How this machine is reached on a command line. */
export function origin(): string {
  return new URL(".", document.baseURI).href.replace(/\/$/, "");
}

// Notices ---------------------------------------------------------------------------------

interface Notice {
  id: number;
  text: string;
  tone: "good" | "bad";
}

const notices = new Store<Notice[]>([]);
let noticed = 0;
whenLeft(() => notices.set([]));

export function note(text: string, tone: Notice["tone"] = "good"): void {
  const id = ++noticed;
  notices.set([...notices.value, { id, text, tone }].slice(-4));
  // What went wrong stays until it was read.
  if (tone === "good") setTimeout(() => dismiss(id), 6000);
}

function dismiss(id: number): void {
  notices.set(notices.value.filter((one) => one.id !== id));
}

export function Notices() {
  const list = useStore(notices);
  const shown = (tone: Notice["tone"]) =>
    list
      .filter((one) => one.tone === tone)
      .map((one) => (
        <div key={one.id} class={`notice ${one.tone}`}>
          <span>{one.text}</span>
          <button type="button" class="plain" aria-label="Dismiss" onClick={() => dismiss(one.id)}>
            ×
          </button>
        </div>
      ));
  return (
    <div class="notices">
      <div role="status">{shown("good")}</div>
      <div role="alert">{shown("bad")}</div>
    </div>
  );
}

/** Does something for the user, and says what came of it. */
export async function attempt(work: () => Promise<string | void>): Promise<boolean> {
  try {
    const said = await work();
    if (said) note(said);
    return true;
  } catch (error) {
    note(words(error), "bad");
    return false;
  }
}

// Dialogs ---------------------------------------------------------------------------------

export function Dialog({
  title,
  children,
  onClose,
  wide,
}: {
  title: string;
  children: ComponentChildren;
  onClose?: () => void;
  wide?: boolean;
}) {
  const ref = useRef<HTMLDialogElement>(null);
  const id = useId();
  useLayoutEffect(() => {
    const dialog = ref.current;
    const before = document.activeElement;
    dialog?.showModal();
    return () => {
      dialog?.close();
      // A dialog that leaves the page does not always give the focus back.
      if (before instanceof HTMLElement) before.focus();
    };
  }, []);
  const cancel = (event: Event) => {
    event.preventDefault();
    onClose?.();
  };
  // A second Escape closes it though the first was called off. Not when it has left the page.
  const closed = () => {
    if (!ref.current?.isConnected) return;
    if (onClose) onClose();
    else ref.current.showModal();
  };
  return (
    <dialog ref={ref} class={wide ? "wide" : ""} aria-labelledby={id} onCancel={cancel} onClose={closed}>
      <h2 id={id}>{title}</h2>
      {children}
    </dialog>
  );
}

interface Question {
  title: string;
  text: ComponentChildren;
  /** What the button says: the verb. */
  verb: string;
  danger?: boolean;
  answer(yes: boolean): void;
}

const question = new Store<Question | null>(null);
// Whoever goes to another page means no.
route.watch(() => question.value?.answer(false));
whenLeft(() => question.value?.answer(false));

/** Asks before something that cannot be undone. */
export function ask(asked: Omit<Question, "answer">): Promise<boolean> {
  return new Promise((resolve) => {
    question.set({
      ...asked,
      answer: (yes) => {
        question.set(null);
        resolve(yes);
      },
    });
  });
}

export function Questions() {
  const asked = useStore(question);
  if (!asked) return null;
  return (
    <Dialog title={asked.title} onClose={() => asked.answer(false)}>
      <div>{asked.text}</div>
      <div class="buttons">
        <button type="button" onClick={() => asked.answer(false)}>
          Cancel
        </button>
        <button type="button" class={asked.danger ? "danger" : "primary"} onClick={() => asked.answer(true)}>
          {asked.verb}
        </button>
      </div>
    </Dialog>
  );
}

// Forms ---------------------------------------------------------------------------------

/** What fields here are told, of all that inputs could be. */
interface Input {
  name?: string;
  type?: string;
  class?: string;
  value?: string;
  defaultValue?: string | number;
  defaultChecked?: boolean;
  required?: boolean;
  autofocus?: boolean;
  autocomplete?: string;
  placeholder?: string;
  title?: string;
  pattern?: string;
  maxLength?: number;
  min?: number | string;
  max?: number | string;
  step?: string;
  list?: string;
  onInput?: (event: { currentTarget: HTMLInputElement }) => void;
  onChange?: (event: { currentTarget: EventTarget }) => void;
}

/** A labelled field; `hint` says what it means, and what leaving it empty does. */
export function Field({
  label,
  hint,
  children,
  ...input
}: Input & {
  label: string;
  hint?: ComponentChildren;
  children?: ComponentChildren;
}) {
  const id = useId();
  const described = hint ? `${id}-hint` : undefined;
  return (
    <div class="field">
      <label for={id}>{label}</label>
      {children ? (
        <select id={id} aria-describedby={described} {...(input as object)}>
          {children}
        </select>
      ) : (
        <input
          id={id}
          autocomplete="off"
          spellcheck={false}
          aria-describedby={described}
          {...(input as object)}
        />
      )}
      {hint && (
        <p class="hint" id={described}>
          {hint}
        </p>
      )}
    </div>
  );
}

/** A field for a whole number, which may be left empty. */
export function whole(
  name: string,
  label: string,
  value: unknown,
  hint: ComponentChildren,
  min: number,
  max: number,
) {
  const text = value === undefined || value === null ? "" : String(value);
  return (
    <Field
      label={label}
      name={name}
      type="number"
      min={min}
      max={max}
      step="1"
      hint={hint}
      defaultValue={text}
    />
  );
}

/** The options of a select. */
export function options(chosen: string, list: [string, string][]) {
  return list.map(([word, name]) => (
    <option key={word} value={word} selected={word === chosen}>
      {name}
    </option>
  ));
}

export function Area({
  label,
  hint,
  ...rest
}: Omit<JSX.IntrinsicElements["textarea"], "label" | "ref"> & {
  label: string;
  hint?: ComponentChildren;
}) {
  const id = useId();
  return (
    <div class="field full">
      <label for={id}>{label}</label>
      <textarea id={id} spellcheck={false} aria-describedby={hint ? `${id}-hint` : undefined} {...rest} />
      {hint && (
        <p class="hint" id={`${id}-hint`}>
          {hint}
        </p>
      )}
    </div>
  );
}

export function Check({ label, ...input }: Input & { label: string }) {
  return (
    <label class="check">
      <input type="checkbox" {...(input as object)} /> {label}
    </label>
  );
}

/** What a form holds, read when it is sent. */
export class Given {
  #data: FormData;

  constructor(form: HTMLFormElement) {
    this.#data = new FormData(form);
  }

  text(name: string): string {
    return String(this.#data.get(name) ?? "").trim();
  }

  /** As it was typed. */
  raw(name: string): string {
    return String(this.#data.get(name) ?? "");
  }

  file(name: string): File | null {
    const file = this.#data.get(name);
    return file instanceof File && file.size > 0 ? file : null;
  }

  has(name: string): boolean {
    return this.#data.has(name);
  }

  number(name: string): number | null {
    const text = this.text(name);
    return text === "" ? null : Number(text);
  }

  json(name: string): Json {
    if (wouldRound(this.raw(name)))
      throw new Error(
        `“${name.replaceAll("_", " ")}” has a number of more than 15 digits, which this browser rounds`,
      );
    try {
      return parseExact(this.raw(name));
    } catch (error) {
      throw new Error(`“${name.replaceAll("_", " ")}” is not JSON: ${words(error)}`);
    }
  }

  /** `key=value`, apart by commas; or one a line, where values may have commas. */
  pairs(name: string, apart: "\n" | "," = "\n"): Record<string, string> {
    const lines = this.text(name)
      .split(apart)
      .map((line) => line.trim())
      .filter(Boolean);
    return Object.fromEntries(
      lines.map((line) => {
        const at = line.indexOf("=");
        if (at < 1) throw new Error(`“${name}”: expected key=value, got “${line}”`);
        return [line.slice(0, at).trim(), line.slice(at + 1).trim()];
      }),
    );
  }
}

/** A form that says what was wrong with it, and leads to the field that the broker names. */
export function Form({
  onSend,
  children,
  buttons,
  class: name = "",
}: {
  onSend: (given: Given) => Promise<void>;
  children: ComponentChildren;
  buttons: ComponentChildren;
  class?: string;
}) {
  const [error, setError] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);
  const sending = useRef(false);
  const send = async (event: SubmitEvent) => {
    event.preventDefault();
    // A second click while the first is under way is no second wish.
    if (sending.current) return;
    sending.current = true;
    const form = event.currentTarget as HTMLFormElement;
    setBusy(true);
    setError(null);
    try {
      await onSend(new Given(form));
    } catch (failed) {
      setError(failed);
      const field = (failed as { failure?: { field?: string } }).failure?.field;
      const named = field ? form.elements.namedItem(field) : null;
      if (named instanceof HTMLElement) named.focus();
    } finally {
      sending.current = false;
      setBusy(false);
    }
  };
  return (
    <form class={name} onSubmit={send} aria-busy={busy}>
      {children}
      <Failed error={error} />
      <div class="buttons">{buttons}</div>
    </form>
  );
}

/** How a value is written: JSON, text, or bytes. */
export function PayloadField({
  name,
  label,
  value,
  rows = 5,
}: {
  name: string;
  label: string;
  value?: string;
  rows?: number;
}) {
  const [kind, setKind] = useState("json");
  const group = useId();
  const kinds: [string, string][] = [
    ["json", "JSON"],
    ["text", "Text"],
    ["hex", "Bytes, as hex"],
    ["file", "File"],
  ];
  return (
    <fieldset class="full payload">
      <legend>{label}</legend>
      <div class="choices">
        {kinds.map(([word, shown]) => (
          <label key={word}>
            <input
              type="radio"
              name={`${name}_kind`}
              value={word}
              checked={kind === word}
              onChange={() => setKind(word)}
            />{" "}
            {shown}
          </label>
        ))}
      </div>
      {kind === "file" ? (
        <input type="file" name={name} required aria-label={`${label}: file`} />
      ) : (
        <textarea
          name={name}
          id={group}
          rows={rows}
          spellcheck={false}
          aria-label={label}
          defaultValue={kind === "json" ? (value ?? "") : ""}
          key={kind}
          placeholder={
            {
              json: "null",
              text: "",
              hex: "00 01 fe ff",
            }[kind]
          }
        />
      )}
    </fieldset>
  );
}

/** What such a field holds, as fields of a message: `payload` or `payload_b64`. */
export async function givenPayload(given: Given, name: string): Promise<Record<string, unknown>> {
  switch (given.text(`${name}_kind`)) {
    case "text":
      return { [name]: given.raw(name) };
    case "hex": {
      const digits = given.raw(name).replace(/\s/g, "");
      if (!/^([0-9a-f]{2})*$/i.test(digits))
        throw new Error("Bytes as hex are pairs of the digits 0–9 and a–f.");
      const data = Uint8Array.from(digits.match(/../g) ?? [], (pair) => parseInt(pair, 16));
      return { [`${name}_b64`]: toBase64(data) };
    }
    case "file": {
      const file = given.file(name);
      if (!file) throw new Error("Choose a file.");
      return { [`${name}_b64`]: toBase64(new Uint8Array(await file.arrayBuffer())) };
    }
    default:
      return given.text(name) === "" ? {} : { [name]: given.json(name) };
  }
}

const SHOWN_MAX = 64 << 10;
/** Signs that nobody sees, and that turn around what stands beside them. */
const TURNS = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;
const escaped = (sign: string) => `\\u${sign.charCodeAt(0).toString(16).padStart(4, "0")}`;

/** A payload or a result: JSON set out, text as it is, bytes as a hex dump. */
export function Value({ value, b64, what }: { value?: Json; b64?: string; what: string }) {
  const shown = useMemo(() => {
    if (b64 !== undefined) {
      const data = fromBase64(b64);
      return { kind: `bytes, ${bytes(data.length)}`, text: hexDump(data, 4096), copy: b64 };
    }
    const text = typeof value === "string" ? value : JSON.stringify(value ?? null, null, 2);
    const kind = typeof value === "string" ? "text" : "JSON";
    const cut = text.length > SHOWN_MAX;
    return {
      kind: `${kind}, ${bytes(new Blob([text]).size)}${cut ? ", its beginning" : ""}`,
      // In JSON they have another way to be written.
      text: (cut ? text.slice(0, SHOWN_MAX) : text).replace(kind === "JSON" ? TURNS : /$^/, escaped),
      copy: text,
    };
  }, [value, b64]);
  return (
    <div class="value">
      <div class="value-head">
        <span class="dim">{shown.kind}</span>
        <Copy text={shown.copy} what={what} />
      </div>
      <pre tabIndex={0} aria-label={what}>
        {shown.text === "" ? " " : shown.text}
      </pre>
    </div>
  );
}

// Tables ---------------------------------------------------------------------------------

export interface Column<Row> {
  head: string;
  cell: (row: Row) => ComponentChildren;
  /** Numbers stand at the right. */
  num?: boolean;
  sort?: (row: Row) => number | string;
  /** Names the row. */
  main?: boolean;
  class?: string;
}

export interface Chosen {
  ids: Set<string>;
  set: (ids: Set<string>) => void;
}

/** `mail-2` stands before `mail-10`. */
const COLLATOR = new Intl.Collator("en", { numeric: true });

/** A table whose head stays in sight; on narrow screens each row is a card. The roles keep it a table there. */
export function Table<Row>({
  caption,
  columns,
  rows,
  id,
  chosen,
  start,
  most = Infinity,
}: {
  caption: string;
  columns: Column<Row>[];
  rows: Row[];
  id: (row: Row) => string;
  chosen?: Chosen;
  start?: { head: string; down: boolean };
  /** More rows than a page draws smoothly are not drawn: the first of them, as they are sorted. */
  most?: number;
}) {
  const [order, setOrder] = useState(start ?? null);
  const sorted = useMemo(() => {
    const by = columns.find((column) => column.head === order?.head)?.sort;
    if (!by) return rows;
    const signed = order?.down ? -1 : 1;
    return [...rows].sort((a, b) => {
      const [x, y] = [by(a), by(b)];
      return (
        signed * (typeof x === "number" && typeof y === "number" ? x - y : COLLATOR.compare(String(x), String(y)))
      );
    });
  }, [rows, order, columns]);
  const toggle = (row: string) => {
    const ids = new Set(chosen!.ids);
    if (!ids.delete(row)) ids.add(row);
    chosen!.set(ids);
  };
  const all = chosen !== undefined && rows.length > 0 && rows.every((row) => chosen.ids.has(id(row)));
  // What was chosen on other pages stays so.
  const toggleAll = () => {
    const ids = new Set(chosen!.ids);
    for (const row of rows) all ? ids.delete(id(row)) : ids.add(id(row));
    chosen!.set(ids);
  };
  const head = (column: Column<Row>) => {
    if (!column.sort) return column.head || <span class="hidden">Actions</span>;
    const mine = order?.head === column.head;
    const turn = () => setOrder({ head: column.head, down: mine ? !order!.down : column.num === true });
    return (
      <button type="button" class="sort" onClick={turn}>
        {column.head}
        <span aria-hidden="true">{mine ? (order!.down ? "▾" : "▴") : ""}</span>
      </button>
    );
  };
  return (
    <table role="table" class={chosen ? "choosing" : ""}>
      <caption class="hidden">{caption}</caption>
      <thead role="rowgroup">
        <tr role="row">
          {chosen && (
            <th role="columnheader" scope="col" class="choose">
              <input
                type="checkbox"
                checked={all}
                onChange={toggleAll}
                aria-label="Choose all that are shown"
              />
            </th>
          )}
          {columns.map((column) => (
            <th
              key={column.head}
              role="columnheader"
              scope="col"
              class={column.num ? "num" : ""}
              aria-sort={order?.head === column.head ? (order.down ? "descending" : "ascending") : undefined}
            >
              {head(column)}
            </th>
          ))}
        </tr>
      </thead>
      <tbody role="rowgroup">
        {sorted.slice(0, most).map((row) => (
          <tr key={id(row)} role="row" data-row={id(row)}>
            {chosen && (
              <td role="cell" class="choose">
                <input
                  type="checkbox"
                  checked={chosen.ids.has(id(row))}
                  onChange={() => toggle(id(row))}
                  aria-label={`Choose ${id(row)}`}
                />
              </td>
            )}
            {columns.map((column) => {
              const name = [column.num ? "num" : "", column.main ? "main" : "", column.class ?? ""]
                .join(" ")
                .trim();
              return column.main ? (
                <th key={column.head} role="rowheader" scope="row" class={name}>
                  {column.cell(row)}
                </th>
              ) : (
                <td key={column.head} role="cell" class={name} data-label={column.head}>
                  <div class="cell">{column.cell(row)}</div>
                </td>
              );
            })}
          </tr>
        ))}
      </tbody>
    </table>
  );
}

/** Leads through a list that comes in parts: `pages` are the marks behind which each part after the first begins. */
export function Pager({
  pages,
  next,
  turn,
}: {
  pages: string[];
  next: string | null;
  turn: (pages: string[]) => void;
}) {
  return (
    <div class="pages">
      {pages.length > 0 && (
        <button type="button" onClick={() => turn(pages.slice(0, -1))}>
          Page before
        </button>
      )}
      {next && (
        <button type="button" onClick={() => turn([...pages, next])}>
          Next page
        </button>
      )}
    </div>
  );
}

/** Keeps the end of a log in sight, unless somebody has scrolled away from it to read. */
export function useTail(last: unknown) {
  const log = useRef<HTMLDivElement>(null);
  const reading = useRef(false);
  useLayoutEffect(() => {
    if (!reading.current) log.current?.scrollTo(0, log.current.scrollHeight);
  }, [last]);
  // Lines that come and go scroll it too: only what a person does counts.
  const hold = () => void (reading.current = true);
  const check = () => {
    hold();
    setTimeout(() => {
      const { scrollHeight = 0, scrollTop = 0, clientHeight = 0 } = log.current ?? {};
      reading.current = scrollHeight - scrollTop - clientHeight > 40;
    }, 200);
  };
  return {
    ref: log,
    onWheel: check,
    onKeyDown: check,
    onPointerDown: hold,
    onPointerUp: check,
    onTouchStart: hold,
    onTouchEnd: check,
  };
}

/** A list that was asked for: the error, nothing yet, or what it holds. */
export function Loaded<T>({
  from,
  children,
}: {
  from: Polled<T>;
  children: (value: T) => ComponentChildren;
}) {
  return (
    <>
      <Failed error={from.error} />
      {from.value === null
        ? !from.error && (
            <p class="dim" role="status">
              Loading…
            </p>
          )
        : children(from.value)}
    </>
  );
}

/** A number that is looked at, with its name. */
export function Tile({
  name,
  value,
  note: beside,
  tone = "",
  href,
}: {
  name: string;
  value: string;
  note?: ComponentChildren;
  tone?: string;
  href?: string;
}) {
  return (
    <div class={`tile ${tone}`}>
      <dt>{href ? <a href={href}>{name}</a> : name}</dt>
      <dd>
        <span class={value.length > 8 ? "figure long" : "figure"}>{value}</span>
        {beside && <span class="dim">{beside}</span>}
      </dd>
    </div>
  );
}
