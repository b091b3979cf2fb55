// By hand: submit tasks, and be a worker. To see how things go before a line of code is written.

import { useReducer, useState } from "preact/hooks";
import { words } from "../api";
import { clock, plural } from "../format";
import { request, watch } from "../live";
import {
  attempt,
  Badge,
  Check,
  Empty,
  Field,
  Form,
  Given,
  givenPayload,
  Head,
  note,
  options,
  PayloadField,
  Section,
  useTail,
  Value,
} from "../parts";
import { refine, route, to } from "../route";
import { mayAny, whenLeft } from "../session";
import { Store, useStore } from "../store";
import type { Frame, Json } from "../types";
import { Conversation } from "../wire";
import { givenOptions, SubmitOptions } from "./options";

/** Of the tasks that were submitted here. */
const SUBMITTED_MAX = 50;
const FRAMES_MAX = 200;
const FRAME_SHOWN = 2000;
/** Of the tasks that are held. */
const HELD_SHOWN = 20;

interface Submitted {
  task: string;
  queue: string;
  state: string;
  percent: number | null;
  said: Frame | null;
}

const submitted = new Store<Submitted[]>([]);
/** How each of them that has not ended is left alone again. */
const following = new Map<string, () => void>();

/** Those that are shown; the others are watched no longer. */
function show(list: Submitted[]): void {
  const shown = list.slice(0, SUBMITTED_MAX);
  submitted.set(shown);
  const ids = new Set(shown.map((one) => one.task));
  for (const task of [...following.keys()]) if (!ids.has(task)) unfollow(task);
}

function unfollow(task: string): void {
  following.get(task)?.();
  following.delete(task);
}

function follow(task: string, queue: string): void {
  if (submitted.value.some((one) => one.task === task)) return;
  const heard = (frame: Frame) => {
    const over = frame.type === "finished" || frame.type === "error";
    submitted.set(
      submitted.value.map((one) =>
        one.task !== task
          ? one
          : {
              ...one,
              state: frame.type === "error" ? "not followed" : String(frame["state"]),
              percent: (frame["percent"] as number | null) ?? one.percent,
              said: over ? (frame.type === "error" ? { ...frame, error: frame["message"] } : frame) : null,
            },
      ),
    );
    if (over) unfollow(task);
  };
  following.set(task, watch(task, heard));
  show([{ task, queue, state: "accepted", percent: null, said: null }, ...submitted.value]);
}

async function submit(given: Given): Promise<void> {
  const queue = given.text("queue");
  const payload = await givenPayload(given, "payload");
  const times = given.number("times") ?? 1;
  const message = { type: "submit", queue, ...payload, ...givenOptions(given) };
  const answers = await Promise.allSettled(Array.from({ length: times }, () => request(message)));
  const taken = answers.filter((one) => one.status === "fulfilled").map((one) => one.value);
  // Of very many the last ones are watched.
  taken.slice(-SUBMITTED_MAX).forEach((frame) => follow(String(frame["task"]), queue));
  const failed = answers.find((one) => one.status === "rejected");
  if (failed) {
    if (taken.length > 0) note(`${plural(taken.length, "task")} accepted.`);
    throw failed.reason;
  }
  const again = taken.filter((frame) => frame["duplicate"] === true).length;
  note(again > 0 ? "Accepted before: this is the same task." : `${plural(taken.length, "task")} accepted.`);
}

function Submit({ queue }: { queue: string }) {
  const list = useStore(submitted);
  return (
    <>
      <Form class="grid" onSend={submit} buttons={<button class="primary">Submit</button>}>
        <Field label="Queue" name="queue" required maxLength={128} defaultValue={queue || "demo"} />
        <Field
          label="How many times"
          name="times"
          type="number"
          min="1"
          max="1000"
          step="1"
          defaultValue="1"
        />
        <PayloadField name="payload" label="Payload" value={'{"hello":"world"}'} />
        <details class="full">
          <summary>Options</summary>
          <div class="grid">
            <SubmitOptions once />
          </div>
        </details>
      </Form>
      <Section
        title="Submitted here"
        actions={
          list.length > 0 && (
            <button type="button" class="small" onClick={() => show([])}>
              Clear
            </button>
          )
        }
      >
        {list.length === 0 ? (
          <p class="dim">Nothing yet. What is submitted is followed here to its end.</p>
        ) : (
          <ul class="worries" aria-live="polite">
            {list.map((one) => (
              <li key={one.task}>
                <Badge word={one.state} />
                <span>
                  <a class="mono" href={to("task", one.task)}>
                    {one.task}
                  </a>{" "}
                  <span class="dim">in {one.queue}</span>{" "}
                  {one.percent !== null && !one.said && (
                    <progress max={100} value={one.percent} aria-label="Progress" />
                  )}
                  {one.said &&
                    (one.said["error"] ? (
                      <span class="error">{String(one.said["error"])}</span>
                    ) : (
                      <code>
                        {String(one.said["result_b64"] ?? JSON.stringify(one.said["result"])).slice(0, 300)}
                      </code>
                    ))}
                </span>
              </li>
            ))}
          </ul>
        )}
      </Section>
    </>
  );
}

// The worker ---------------------------------------------------------------------------------

interface Held {
  lease: string;
  frame: Frame;
  since: number;
  percent: number;
  /** The broker wants it broken off. */
  stop: string | null;
}

interface Traced {
  nth: number;
  direction: "in" | "out";
  text: string;
  at: number;
}

type How = "hand" | "ack" | "slow";

/** A session of its own, with its name and groups; it lives on while other pages are looked at. */
class ByHand {
  phase: "connecting" | "working" | "ended" = "connecting";
  why = "";
  held: Held[] = [];
  frames: Traced[] = [];
  done = 0;
  name = "";
  queue = "";
  #conversation: Conversation;
  #traced = 0;
  #timers = new Set<ReturnType<typeof setInterval>>();

  constructor(
    given: Given,
    private readonly changed: (streams?: boolean) => void,
    public how: How,
  ) {
    this.queue = given.text("queue");
    const groups = given
      .text("groups")
      .split(",")
      .map((group) => group.trim())
      .filter(Boolean);
    const name = given.text("worker");
    const hello = { client: "taskyard-ui console", groups, ...(name ? { worker: name } : {}) };
    const subscribe = {
      type: "subscribe",
      queue: this.queue,
      credit: given.number("credit") ?? 1,
      mode: given.text("mode"),
      explicit_start: given.has("explicit_start"),
    };
    this.#conversation = new Conversation(hello, {
      open: (welcome) => {
        this.name = String(welcome["worker"]);
        this.#conversation.request(subscribe).then(
          () => {
            this.phase = "working";
            this.changed();
          },
          (error) => this.end(words(error)),
        );
      },
      frame: (frame) => this.#take(frame),
      closed: (code, reason) => this.#over(code === 1000 ? "" : `closed: ${code} ${reason}`),
      trace: (direction, text) => {
        const traced = { nth: this.#traced++, direction, text: text.slice(0, FRAME_SHOWN), at: Date.now() };
        this.frames = [...this.frames, traced].slice(-FRAMES_MAX);
        this.changed(true);
      },
    });
  }

  #take(frame: Frame): void {
    const lease = frame["lease"] as string | null | undefined;
    if (frame.type === "task") {
      // In mode auto there is nothing to settle.
      if (lease) this.held = [...this.held, { lease, frame, since: Date.now(), percent: 0, stop: null }];
      else this.done++;
      if (lease && this.how === "ack") void this.settle(lease, { type: "ack" });
      if (lease && this.how === "slow") this.#slowly(lease);
    } else if (frame.type === "stop" && lease) {
      this.#mend(lease, { stop: String(frame["reason"]) });
    } else if (frame.type === "revoked" && lease) {
      this.#drop(lease);
      note(`A task was taken back: ${String(frame["reason"]).replaceAll("_", " ")}.`, "bad");
    } else if (frame.type === "going_away") {
      note(`The broker asks this worker to go: ${String(frame["reason"])}.`, "bad");
    }
    this.changed(this.how === "ack");
  }

  #mend(lease: string, with_: Partial<Held>): void {
    this.held = this.held.map((one) => (one.lease === lease ? { ...one, ...with_ } : one));
    this.changed();
  }

  #drop(lease: string): void {
    this.held = this.held.filter((one) => one.lease !== lease);
    this.changed(this.how === "ack");
  }

  /** Ten steps of half a second, each told as progress. */
  #slowly(lease: string): void {
    const timer = setInterval(() => {
      const one = this.held.find((held) => held.lease === lease);
      if (!one || one.percent >= 100) {
        clearInterval(timer);
        this.#timers.delete(timer);
        if (one) void this.settle(lease, { type: "ack", result: "done in the console" });
        return;
      }
      void this.say(lease, { type: "progress", percent: one.percent + 10 });
      this.#mend(lease, { percent: one.percent + 10 });
    }, 500);
    this.#timers.add(timer);
  }

  /** Something about a lease that goes on. */
  say(lease: string, message: Record<string, unknown>): Promise<boolean> {
    return attempt(async () => void (await this.#conversation.request({ ...message, lease })));
  }

  async settle(lease: string, message: Record<string, unknown>): Promise<boolean> {
    const said = await attempt(async () => void (await this.#conversation.request({ ...message, lease })));
    this.#drop(lease);
    if (said) this.done++;
    return said;
  }

  /** Stops, and gives back what is held. */
  end(why = ""): void {
    this.#conversation.bye();
    this.#over(why);
  }

  #over(why: string): void {
    if (this.phase === "ended") return;
    this.phase = "ended";
    this.why = why;
    this.held = [];
    this.#timers.forEach((timer) => clearInterval(timer));
    this.changed();
  }
}

const worker = new Store<ByHand | null>(null);
const moved = new Store(0);
whenLeft(() => {
  worker.value?.end();
  worker.set(null);
  show([]);
});

function HeldTask({ by, one }: { by: ByHand; one: Held }) {
  const task = one.frame as unknown as {
    task: string;
    attempt: number;
    max_attempts: number;
    redelivered: boolean;
    ack_timeout_ms: number;
    priority: number;
    headers: Record<string, string>;
    payload?: Json;
    payload_b64?: string;
  };
  const [verb, setVerb] = useState<"ack" | "nack" | null>(null);
  return (
    <li class="held">
      <p>
        <a class="mono" href={to("task", task.task)}>
          {task.task}
        </a>{" "}
        <span class="dim">
          attempt {task.attempt} of {task.max_attempts}, priority {task.priority}, ack timeout{" "}
          {task.ack_timeout_ms} ms
        </span>{" "}
        {task.redelivered && <span class="badge warn">redelivered</span>}{" "}
        {one.stop && <span class="badge bad">stop: {one.stop}</span>}
      </p>
      {Object.keys(task.headers).length > 0 && (
        <p>
          {Object.entries(task.headers).map(([key, value]) => (
            <span key={key} class="tag" title={`${key}=${value}`}>
              {key}={value}
            </span>
          ))}
        </p>
      )}
      <Value value={task.payload} b64={task.payload_b64} what="payload" />
      {by.how === "slow" && <progress max={100} value={one.percent} aria-label="Progress" />}
      {verb === null ? (
        <div class="buttons">
          <button type="button" class="primary" onClick={() => by.settle(one.lease, { type: "ack" })}>
            Ack
          </button>
          <button type="button" onClick={() => setVerb("ack")}>
            Ack with a result…
          </button>
          <button type="button" onClick={() => setVerb("nack")}>
            Nack…
          </button>
          <button type="button" onClick={() => by.settle(one.lease, { type: "release" })}>
            Release
          </button>
          <button type="button" onClick={() => by.say(one.lease, { type: "start" })}>
            Start
          </button>
          <button type="button" onClick={() => by.say(one.lease, { type: "extend" })}>
            Extend
          </button>
          <Form
            class="inline"
            onSend={async (given) => {
              await by.say(one.lease, { type: "progress", percent: given.number("percent") });
            }}
            buttons={<button>Tell progress</button>}
          >
            <Field
              label="Percent"
              name="percent"
              type="number"
              min="0"
              max="100"
              step="any"
              required
              defaultValue="50"
            />
          </Form>
          {one.stop && (
            <button type="button" class="danger" onClick={() => by.settle(one.lease, { type: "cancelled" })}>
              Broken off
            </button>
          )}
        </div>
      ) : (
        <Form
          onSend={async (given) => {
            const message =
              verb === "ack"
                ? { type: "ack", ...(await givenPayload(given, "result")) }
                : {
                    type: "nack",
                    error: given.text("error") || null,
                    retry: !given.has("final"),
                    delay_ms: given.number("delay_ms"),
                  };
            await by.settle(one.lease, message);
          }}
          buttons={
            <>
              <button type="button" onClick={() => setVerb(null)}>
                Back
              </button>
              <button class="primary">{verb === "ack" ? "Ack" : "Nack"}</button>
            </>
          }
        >
          {verb === "ack" ? (
            <PayloadField name="result" label="Result" rows={3} />
          ) : (
            <>
              <Field label="Error" name="error" hint="What went wrong" />
              <Field
                label="Delay, ms"
                name="delay_ms"
                type="number"
                min="0"
                max="31536000000"
                step="1"
                hint="Before the next attempt. Empty: the back-off"
              />
              <Check label="No further attempt: it is dead" name="final" />
            </>
          )}
        </Form>
      )}
    </li>
  );
}

function Work({ queue }: { queue: string }) {
  const by = useStore(worker);
  useStore(moved);
  const [, redraw] = useReducer((n: number) => n + 1, 0);
  const tail = useTail(by?.frames.at(-1)?.nth);
  const begin = async (given: Given) => {
    const how = given.text("how") as How;
    worker.set(new ByHand(given, (streams) => moved[streams ? "stream" : "set"](moved.value + 1), how));
  };
  if (!by || by.phase === "ended") {
    return (
      <>
        {by?.why && (
          <p class="box bad" role="alert">
            {by.why}
          </p>
        )}
        <Form class="grid" onSend={begin} buttons={<button class="primary">Start working</button>}>
          <fieldset>
            <legend>Which tasks</legend>
            <Field label="Queue" name="queue" required maxLength={128} defaultValue={queue || "demo"} />
            <Field
              label="Credit"
              name="credit"
              type="number"
              min="0"
              max="1024"
              step="1"
              defaultValue="1"
              hint="How many to hold at a time"
            />
            <Field label="What to do with them" name="how">
              {options("hand", [
                ["hand", "I settle them by hand"],
                ["ack", "ack at once"],
                ["slow", "five seconds of progress, then ack"],
              ])}
            </Field>
          </fieldset>
          <fieldset>
            <legend>Who works</legend>
            <Field label="Name" name="worker" maxLength={128} hint="Empty: made up" />
            <Field label="Groups" name="groups" hint="Apart by commas" />
            <Field label="Mode" name="mode" hint="Auto: settled as it is written, at most once">
              {options("manual", [
                ["manual", "manual"],
                ["auto", "auto"],
              ])}
            </Field>
            <Check label="An attempt is charged from start on" name="explicit_start" />
          </fieldset>
        </Form>
      </>
    );
  }
  return (
    <>
      <div class="bar">
        <p role="status">
          <Badge word={by.phase} />{" "}
          {by.name && (
            <>
              as <b>{by.name}</b>
            </>
          )}{" "}
          on <a href={to("queue", by.queue)}>{by.queue}</a>: holds {by.held.length}, settled {by.done}
        </p>
        <div class="actions">
          <label>
            Then{" "}
            <select
              value={by.how}
              onChange={(event) => {
                by.how = event.currentTarget.value as How;
                redraw(0);
              }}
            >
              {options(by.how, [
                ["hand", "by hand"],
                ["ack", "ack at once"],
                ["slow", "progress, then ack"],
              ])}
            </select>
          </label>
          <button type="button" class="danger" onClick={() => by.end()}>
            Stop working
          </button>
        </div>
      </div>
      {by.held.length === 0 ? (
        <Empty>No task is here. Submit one to {by.queue}, and it comes at once.</Empty>
      ) : (
        <ul class="plain">
          {by.held.slice(0, HELD_SHOWN).map((one) => (
            <HeldTask key={one.lease} by={by} one={one} />
          ))}
          {by.held.length > HELD_SHOWN && (
            <li class="dim">and {plural(by.held.length - HELD_SHOWN, "more task")}, shown when these are settled</li>
          )}
        </ul>
      )}
      <Section title="Frames" note="What goes over the socket, as it is">
        <div class="heard mono" {...tail} tabIndex={0} role="log" aria-label="Frames">
          <ol>
            {by.frames.map((frame) => (
              <li key={frame.nth}>
                <time class="dim">{clock(frame.at)}</time>{" "}
                <span class="dim">{frame.direction === "in" ? "←" : "→"}</span>
                <span class="hidden">{frame.direction}</span> {frame.text}
              </li>
            ))}
          </ol>
        </div>
      </Section>
    </>
  );
}

export function Console() {
  const { search } = useStore(route);
  const queue = search.get("queue") ?? "";
  const tab = mayAny("submit") && !(search.get("do") === "work" && mayAny("consume")) ? "submit" : "work";
  return (
    <>
      <Head title="Console" />
      <div class="tabs" role="group" aria-label="What to do">
        {mayAny("submit") && (
          <button type="button" aria-pressed={tab === "submit"} onClick={() => refine({ queue })}>
            Submit tasks
          </button>
        )}
        {mayAny("consume") && (
          <button type="button" aria-pressed={tab === "work"} onClick={() => refine({ queue, do: "work" })}>
            Be a worker
          </button>
        )}
      </div>
      {tab === "submit" ? <Submit queue={queue} /> : <Work queue={queue} />}
    </>
  );
}
