// All queues: how deep, how fast, how old; pause, purge, and the way to their settings.

import { useMemo, useState } from "preact/hooks";
import { call, path, usePoll } from "../api";
import { count, plural, rate, span } from "../format";
import {
  ask,
  attempt,
  Badge,
  Dialog,
  Empty,
  Field,
  Form,
  Head,
  Loaded,
  note,
  origin,
  Table,
  type Column,
} from "../parts";
import { go, refine, route, to } from "../route";
import { may, mayAny } from "../session";
import { useStore } from "../store";
import type { Queue } from "../types";

/** More rows than a page draws smoothly. */
const SHOWN = 100;

export function Pause({ queue, onClose }: { queue: string; onClose: (done: boolean) => void }) {
  return (
    <Dialog title={`Pause ${queue}`} onClose={() => onClose(false)}>
      <p>It goes on accepting tasks and delivers none. What is with workers goes on.</p>
      <Form
        onSend={async (given) => {
          const minutes = given.number("minutes");
          await call("POST", path`v1/queues/${queue}/pause`, {
            reason: given.text("reason") || null,
            for_ms: minutes === null ? null : Math.round(minutes * 60_000),
          });
          note(`${queue} is paused.`);
          onClose(true);
        }}
        buttons={
          <>
            <button type="button" onClick={() => onClose(false)}>
              Cancel
            </button>
            <button class="primary">Pause</button>
          </>
        }
      >
        <Field
          label="Reason"
          name="reason"
          maxLength={256}
          hint="For whoever wonders. Shown here and by explain."
        />
        <Field
          label="For how many minutes"
          name="minutes"
          type="number"
          min="0.001"
          step="any"
          hint="Empty: until somebody ends it"
        />
      </Form>
    </Dialog>
  );
}

export async function unpause(queue: string): Promise<boolean> {
  return attempt(async () => {
    await call("POST", path`v1/queues/${queue}/unpause`, {});
    return `${queue} delivers again.`;
  });
}

export async function purge(queue: Queue): Promise<boolean> {
  const { scheduled, queued, retrying } = queue.counts;
  const waiting = scheduled + queued + retrying;
  const yes = await ask({
    title: `Purge ${queue.queue}?`,
    text: (
      <p>
        Cancels all that waits: {plural(waiting, "task")} at the moment ({count(queued)} queued,{" "}
        {count(scheduled)} scheduled, {count(retrying)} retrying). What is with workers and dead letters stay.
        This cannot be undone.
      </p>
    ),
    verb: `Purge ${plural(waiting, "task")}`,
    danger: true,
  });
  if (!yes) return false;
  return attempt(async () => {
    const { purged } = await call<{ purged: number }>("POST", path`v1/queues/${queue.queue}/purge`, {});
    return `${plural(purged, "task")} of ${queue.queue} cancelled.`;
  });
}

function Declare({ onClose }: { onClose: () => void }) {
  return (
    <Dialog title="Declare a queue" onClose={onClose}>
      <p>The first submit makes a queue too. One that is declared shows in metrics by its name.</p>
      <Form
        onSend={async (given) => {
          const name = given.text("queue");
          await call("PUT", path`v1/queues/${name}`, {});
          onClose();
          go(to("queue", name));
        }}
        buttons={
          <>
            <button type="button" onClick={onClose}>
              Cancel
            </button>
            <button class="primary">Declare</button>
          </>
        }
      >
        <Field
          label="Name"
          name="queue"
          required
          maxLength={128}
          pattern="[A-Za-z0-9_\-][A-Za-z0-9_.\-]*"
          title="Letters, digits, _, - and ., not beginning with ."
          autofocus
        />
      </Form>
    </Dialog>
  );
}

export function Queues() {
  const { search } = useStore(route);
  const filter = search.get("name") ?? "";
  const list = usePoll<{ queues: Queue[] }>("v1/queues", 2000);
  const [open, setOpen] = useState<{ pause?: string; declare?: boolean }>({});
  const [shown, setShown] = useState(SHOWN);
  const columns = useMemo<Column<Queue>[]>(
    () => [
      {
        head: "Queue",
        main: true,
        sort: (q) => q.queue,
        cell: (q) => (
          <>
            <a href={to("queue", q.queue)}>{q.queue}</a> {q.paused && <Badge word="paused" />}{" "}
            {q.counts.queued > 0 && q.workers === 0 && <span class="badge bad">no workers</span>}
          </>
        ),
      },
      { head: "In/s", num: true, cell: (q) => rate(q.rates.accepted), sort: (q) => q.rates.accepted },
      { head: "Out/s", num: true, cell: (q) => rate(q.rates.settled), sort: (q) => q.rates.settled },
      { head: "Queued", num: true, cell: (q) => count(q.counts.queued), sort: (q) => q.counts.queued },
      { head: "Leased", num: true, cell: (q) => count(q.counts.leased), sort: (q) => q.counts.leased },
      {
        head: "Later",
        num: true,
        cell: (q) => count(q.counts.scheduled + q.counts.retrying),
        sort: (q) => q.counts.scheduled + q.counts.retrying,
      },
      {
        head: "Dead",
        num: true,
        sort: (q) => q.counts.dead,
        cell: (q) => (q.counts.dead > 0 ? <a href={to("dead", q.queue)}>{count(q.counts.dead)}</a> : "0"),
      },
      { head: "Oldest", num: true, cell: (q) => span(q.oldest_ms), sort: (q) => q.oldest_ms ?? -1 },
      { head: "Workers", num: true, cell: (q) => count(q.workers), sort: (q) => q.workers },
      {
        head: "",
        class: "row-actions",
        cell: (q) =>
          may("manage", q.queue) && (
            <>
              {q.paused ? (
                <button
                  type="button"
                  class="small"
                  aria-label={`Unpause ${q.queue}`}
                  onClick={async () => (await unpause(q.queue)) && list.reload()}
                >
                  Unpause
                </button>
              ) : (
                <button
                  type="button"
                  class="small"
                  aria-label={`Pause ${q.queue}`}
                  onClick={() => setOpen({ pause: q.queue })}
                >
                  Pause
                </button>
              )}
              <button
                type="button"
                class="small"
                aria-label={`Purge ${q.queue}`}
                onClick={async () => (await purge(q)) && list.reload()}
              >
                Purge
              </button>
            </>
          ),
      },
    ],
    [list.reload],
  );
  return (
    <>
      <Head title="Queues">
        {mayAny("manage") && (
          <button type="button" onClick={() => setOpen({ declare: true })}>
            Declare a queue
          </button>
        )}
      </Head>
      <Loaded from={list}>
        {({ queues }) => {
          if (queues.length === 0) {
            return (
              <Empty command={`curl --json '{"payload":{"hello":"world"}}' ${origin()}/v1/queues/demo/tasks`}>
                There is no queue yet. The first submit makes one:
              </Empty>
            );
          }
          const found = queues.filter((q) => q.queue.includes(filter));
          return (
            <>
              <form class="filters" role="search" onSubmit={(event) => event.preventDefault()}>
                <Field
                  label="Name contains"
                  type="search"
                  value={filter}
                  onInput={(event) => refine({ name: event.currentTarget.value })}
                />
                <p class="dim" role="status">
                  {found.length === queues.length
                    ? plural(queues.length, "queue")
                    : `${found.length} of ${queues.length}`}
                </p>
              </form>
              <Table caption="Queues" columns={columns} rows={found} most={shown} id={(q) => q.queue} />
              {found.length > shown && (
                <button type="button" onClick={() => setShown(shown + SHOWN)}>
                  Show {Math.min(SHOWN, found.length - shown)} more
                </button>
              )}
            </>
          );
        }}
      </Loaded>
      {open.pause && (
        <Pause
          queue={open.pause}
          onClose={(done) => {
            setOpen({});
            if (done) list.reload();
          }}
        />
      )}
      {open.declare && <Declare onClose={() => setOpen({})} />}
    </>
  );
}
