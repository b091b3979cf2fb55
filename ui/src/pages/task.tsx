// One task: where it is and why, what it carries, what has happened to it, and what is happening.

import { useEffect, useState } from "preact/hooks";
import { call, path, Refused, usePoll } from "../api";
import { clock, plural, span } from "../format";
import { watch } from "../live";
import { ask, attempt, Badge, Copy, Empty, Failed, Head, Loaded, Section, Table, Value } from "../parts";
import { to } from "../route";
import { may } from "../session";
import { fault } from "./tasks";
import { OPEN, type Explained, type Frame, type Json, type Payload, type Task } from "../types";

/** Of one task; more are remembered by nobody. */
const EVENTS_MAX = 256;

/** What comes so soon after a watch has happened before it. */
const PAST_MS = 1000;

function Event({ frame, at }: { frame: Frame; at: number | null }) {
  const said = frame as unknown as {
    seq: number;
    state: string;
    started?: boolean;
    worker?: string | null;
    percent?: number | null;
    data?: Json;
    data_b64?: string;
    error?: string | null;
    message?: string;
    attempts?: number;
  };
  if (frame.type === "error")
    return (
      <li>
        <span class="badge bad">error</span> {said.message}
      </li>
    );
  const data =
    said.data_b64 !== undefined
      ? `${said.data_b64.length} characters of base64`
      : said.data === null || said.data === undefined
        ? ""
        : JSON.stringify(said.data).slice(0, 200);
  return (
    <li>
      <span class="dim">
        {said.seq}. {at === null ? "earlier" : clock(at)}
      </span>{" "}
      <Badge word={said.state} /> {said.started && "started "}
      {said.worker && <>with {said.worker} </>}
      {said.percent !== null && said.percent !== undefined && (
        <>
          <progress max={100} value={said.percent} aria-label="Progress" /> {said.percent} %{" "}
        </>
      )}
      {data && <code>{data} </code>}
      {said.error && (
        <>
          <span class="error">{said.error}</span>{" "}
        </>
      )}
      {frame.type === "finished" && <span class="dim">after {plural(said.attempts ?? 0, "attempt")}</span>}
    </li>
  );
}

/** Whether of two events nothing but progress came in between. */
function isProgress(before: Frame, now: Frame): boolean {
  const same = (name: string) => before[name] === now[name];
  return before.type === "event" && ["type", "state", "started", "worker", "attempt", "error"].every(same);
}

export function OneTask({ id }: { id: string }) {
  const found = usePoll<Task>(path`v1/tasks/${id}`, 2000, true);
  const task = found.value;
  const open = task !== null && OPEN.includes(task.state);
  const explained = usePoll<Explained>(
    open && task.state !== "leased" ? path`v1/tasks/${id}/explain` : null,
    2000,
  );
  const [events, setEvents] = useState<{ frame: Frame; at: number | null }[]>([]);
  const [content, setContent] = useState<{
    value?: Payload & { headers?: Record<string, string> };
    error?: unknown;
  }>({});
  const known = task !== null;
  const { reload } = found;
  useEffect(() => {
    if (!known) return;
    // What a payload is does not change: it is asked for once, as it may be large.
    call<Task>("GET", path`v1/tasks/${id}` + "?payload=true", undefined, undefined, true).then(
      (value) => setContent({ value }),
      (error: unknown) => setContent({ error }),
    );
    const begun = Date.now();
    let state: unknown = null;
    return watch(id, (frame) => {
      const at = Date.now() - begun < PAST_MS ? null : Date.now();
      setEvents((old) => {
        // Of progress the latest is enough.
        const kept = old.length > 0 && isProgress(old.at(-1)!.frame, frame) ? old.slice(0, -1) : old;
        return [...kept, { frame, at }].slice(-EVENTS_MAX);
      });
      // Progress can come often; the rest of the page does not change by it.
      if (frame["state"] !== state) reload();
      state = frame["state"];
    });
  }, [id, known, reload]);

  const cancel = async () => {
    const leased = task?.state === "leased";
    const yes = await ask({
      title: "Cancel this task?",
      text: (
        <p>
          {leased
            ? `${task.worker ?? "Its worker"} is asked to stop, and has ten seconds.`
            : "It ends at once."}{" "}
          This cannot be undone.
        </p>
      ),
      verb: "Cancel the task",
      danger: true,
    });
    if (yes) {
      await attempt(async () => {
        const { state } = await call<{ state: string }>("DELETE", path`v1/tasks/${id}`);
        reload();
        return state === "cancelled" ? "The task is cancelled." : "Its worker was asked to stop.";
      });
    }
  };
  const redrive = () =>
    attempt(async () => {
      await call("POST", path`v1/queues/${task!.queue}/dead/redrive`, { tasks: [id] });
      reload();
      return "It has all its attempts anew.";
    });
  const forget = async () => {
    const yes = await ask({
      title: "Delete this dead letter?",
      text: <p>The task and its payload are forgotten. This cannot be undone.</p>,
      verb: "Delete 1 dead letter",
      danger: true,
    });
    if (yes) {
      await attempt(async () => {
        await call("DELETE", path`v1/queues/${task!.queue}/dead/${id}`);
        reload();
        return "The dead letter is deleted.";
      });
    }
  };
  const gone = found.error instanceof Refused && found.error.failure.code === "not_found";
  return (
    <>
      <Head
        title={`Task ${id.slice(0, 8)}…${id.slice(-4)}`}
        crumbs={<a href={to("tasks", "", { queue: task?.queue })}>Tasks</a>}
      >
        {task && open && (may("submit", task.queue) || may("manage", task.queue)) && (
          <button type="button" class="danger" onClick={cancel}>
            Cancel
          </button>
        )}
        {task?.state === "dead" && may("manage", task.queue) && (
          <>
            <button type="button" onClick={redrive}>
              Redrive
            </button>
            <button type="button" class="danger" onClick={forget}>
              Delete
            </button>
          </>
        )}
      </Head>
      <p class="id">
        <code>{id}</code> <Copy text={id} what="id" />
      </p>
      {gone && events.length === 0 ? (
        <Empty>
          There is no such task: it never was, or it ended longer ago than finished tasks are kept.
        </Empty>
      ) : (
        <Loaded from={found}>
          {(seen) => (
            <>
              <dl class="facts">
                <div>
                  <dt>State</dt>
                  <dd aria-live="polite">
                    <Badge word={seen.state} />
                  </dd>
                </div>
                <div>
                  <dt>Queue</dt>
                  <dd>
                    <a href={to("queue", seen.queue)}>{seen.queue}</a>
                  </dd>
                </div>
                <div>
                  <dt>Attempt</dt>
                  <dd>
                    {seen.attempt} of {seen.max_attempts}
                  </dd>
                </div>
                <div>
                  <dt>Accepted</dt>
                  <dd>{span(seen.age_ms)} ago</dd>
                </div>
                <div>
                  <dt>Worker</dt>
                  <dd>{seen.worker ?? "–"}</dd>
                </div>
                {seen.error && (
                  <div>
                    <dt>Last error</dt>
                    <dd class="error">{seen.error}</dd>
                  </div>
                )}
              </dl>
              {open && seen.state !== "leased" && (
                <Section title="Why it waits">
                  <Failed error={explained.error} />
                  {explained.value &&
                    (explained.value.reasons.length === 0 ? (
                      <p class="box good">Nothing holds it up.</p>
                    ) : (
                      <ul class="worries">
                        {explained.value.reasons.map((reason) => (
                          <li key={reason.code}>
                            <span class="badge warn">{reason.code.replaceAll("_", " ")}</span>{" "}
                            <span>{reason.message}</span>
                          </li>
                        ))}
                      </ul>
                    ))}
                </Section>
              )}
              {!open && seen.state === "done" && (
                <Section title="Result">
                  <Value value={seen.result} b64={seen.result_b64} what="result" />
                </Section>
              )}
              <Section title="Payload">
                <Failed error={content.error} />
                {content.value &&
                  (content.value.payload === undefined && content.value.payload_b64 === undefined ? (
                    <p class="dim">
                      {open ? "The broker does not tell it." : "It was forgotten when the task ended."}
                    </p>
                  ) : (
                    <Value value={content.value.payload} b64={content.value.payload_b64} what="payload" />
                  ))}
              </Section>
              {content.value?.headers && Object.keys(content.value.headers).length > 0 && (
                <Section title="Headers">
                  <dl class="facts">
                    {Object.entries(content.value.headers).map(([key, value]) => (
                      <div key={key}>
                        <dt>{key}</dt>
                        <dd>
                          <code>{value}</code>
                        </dd>
                      </div>
                    ))}
                  </dl>
                </Section>
              )}
              <Section title="Failed attempts">
                {seen.history.length === 0 ? (
                  <p class="dim">None so far.</p>
                ) : (
                  <Table
                    caption="Failed attempts"
                    rows={seen.history}
                    id={(one) => `${one.attempt} ${one.worker ?? ""}`}
                    columns={[
                      { head: "Attempt", main: true, cell: (one) => one.attempt },
                      { head: "Worker", cell: (one) => one.worker ?? "–" },
                      { head: "Failed by", cell: (one) => one.reason.replaceAll("_", " ") },
                      { head: "Error", cell: (one) => fault(one.error, true) },
                    ]}
                  />
                )}
              </Section>
              <Section title="Events" note="As they happen, from the moment somebody watched">
                <ol class="events">
                  {events.map(({ frame, at }, nth) => (
                    <Event key={nth} frame={frame} at={at} />
                  ))}
                </ol>
                {events.length === 0 && <p class="dim">None yet.</p>}
              </Section>
            </>
          )}
        </Loaded>
      )}
    </>
  );
}
