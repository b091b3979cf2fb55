// Who is connected: what they hold, and how much more they would take.

import { useMemo } from "preact/hooks";
import { call, path, usePoll } from "../api";
import { count, plural, span } from "../format";
import { session } from "../live";
import {
  ask,
  attempt,
  Badge,
  Empty,
  Field,
  Head,
  Loaded,
  origin,
  Section,
  Table,
  type Column,
} from "../parts";
import { refine, route, to } from "../route";
import { mayEvery } from "../session";
import { useStore } from "../store";
import type { Worker } from "../types";

/** More rows than a page draws smoothly. */
const SHOWN = 200;

function states(worker: Worker): string[] {
  const found = [worker.away && "away", worker.silent && "silent", worker.draining && "draining"];
  return found.filter((word): word is string => Boolean(word));
}

function Subscriptions({ worker }: { worker: Worker }) {
  return (
    <ul class="plain">
      {worker.subscriptions.map((one) => (
        <li key={one.queue}>
          <a href={to("queue", one.queue)}>{one.queue}</a>{" "}
          <span class="dim">
            {count(one.unsettled)} of {count(one.credit)}
          </span>
        </li>
      ))}
    </ul>
  );
}

export function Workers() {
  const { search } = useStore(route);
  const find = search.get("find") ?? "";
  const list = usePoll<{ workers: Worker[] }>("v1/workers", 2000);
  const mine = useStore(session);
  const { reload } = list;
  const manage = mayEvery("manage");

  const columns = useMemo<Column<Worker>[]>(() => {
    const drain = async (worker: Worker) => {
      const yes = await ask({
        title: `Drain ${worker.worker}?`,
        text: (
          <p>It is asked to finish what it holds ({plural(worker.in_flight, "task")}) and gets no more.</p>
        ),
        verb: "Drain 1 worker",
      });
      if (yes) {
        await attempt(async () => {
          await call("POST", path`v1/workers/${worker.worker}/drain`, {});
          reload();
          return `${worker.worker} was asked to finish.`;
        });
      }
    };
    const remove = async (worker: Worker) => {
      const yes = await ask({
        title: `Disconnect ${worker.worker}?`,
        text: (
          <p>
            Its connection is closed, and the {plural(worker.in_flight, "task")} that it holds go to others at
            once. What it was doing may be done twice.
          </p>
        ),
        verb: "Disconnect 1 worker",
        danger: true,
      });
      if (yes) {
        await attempt(async () => {
          await call("DELETE", path`v1/workers/${worker.worker}`);
          reload();
          return `${worker.worker} is disconnected.`;
        });
      }
    };
    return [
      {
        head: "Worker",
        main: true,
        sort: (w) => w.worker,
        cell: (w) => (
          <>
            {w.worker}
            {w.session === mine && <span class="dim"> this page</span>}{" "}
            {states(w).map((word) => (
              <Badge key={word} word={word} />
            ))}
          </>
        ),
      },
      { head: "Takes from", cell: (w) => (w.subscriptions.length > 0 ? <Subscriptions worker={w} /> : "–") },
      { head: "In flight", num: true, cell: (w) => count(w.in_flight), sort: (w) => w.in_flight },
      {
        head: "Credit",
        num: true,
        sort: (w) => w.subscriptions.reduce((sum, one) => sum + one.credit, 0),
        cell: (w) => count(w.subscriptions.reduce((sum, one) => sum + one.credit, 0)),
      },
      { head: "Groups", cell: (w) => w.groups.join(", ") || "–", sort: (w) => w.groups.join() },
      {
        head: "Labels",
        cell: (w) =>
          Object.keys(w.labels).length === 0
            ? "–"
            : Object.entries(w.labels).map(([key, value]) => (
                <span key={key} class="tag" title={`${key}=${value}`}>
                  {key}={value}
                </span>
              )),
      },
      {
        head: "Connected for",
        sort: (w) => w.connected_ms,
        cell: (w) => (
          <>
            {span(w.connected_ms)} {w.client && <span class="dim wraps">by {w.client}</span>}
          </>
        ),
      },
      {
        head: "",
        class: "row-actions",
        cell: (w) =>
          manage &&
          w.session !== mine && (
            <>
              {!w.draining && (
                <button type="button" class="small" aria-label={`Drain ${w.worker}`} onClick={() => drain(w)}>
                  Drain
                </button>
              )}
              <button
                type="button"
                class="small"
                aria-label={`Disconnect ${w.worker}`}
                onClick={() => remove(w)}
              >
                Disconnect
              </button>
            </>
          ),
      },
    ];
  }, [mine, reload, manage]);

  return (
    <>
      <Head title="Workers" />
      <Loaded from={list}>
        {({ workers }) => {
          const words = (w: Worker) =>
            [
              w.worker,
              ...w.groups,
              ...w.subscriptions.map((one) => one.queue),
              ...Object.values(w.labels),
            ].join("\n");
          const found = workers.filter((worker) => words(worker).includes(find));
          const working = found.filter((worker) => worker.subscriptions.length > 0);
          const others = found.filter((worker) => worker.subscriptions.length === 0);
          const clients = columns.filter(({ head }) => !["Takes from", "In flight", "Credit"].includes(head));
          return (
            <>
              <form class="filters" role="search" onSubmit={(event) => event.preventDefault()}>
                <Field
                  label="Name, group, queue or label"
                  type="search"
                  value={find}
                  onInput={(event) => refine({ find: event.currentTarget.value })}
                />
                <p class="dim" role="status">
                  {plural(working.length, "worker")}, {plural(others.length, "other connection")}
                </p>
              </form>
              {working.length === 0 ? (
                <Empty command={`taskyard work demo --url ${origin()} -- cat`}>
                  {find
                    ? "No worker is like that."
                    : "Nobody works at the moment. Any command can be a worker:"}
                </Empty>
              ) : (
                <Table
                  caption="Workers"
                  columns={columns}
                  rows={working}
                  most={SHOWN}
                  id={(w) => w.session}
                />
              )}
              {working.length > SHOWN && (
                <p class="dim">The first {SHOWN} are shown: find the others by name.</p>
              )}
              {others.length > 0 && (
                <Section title="Other connections" note="They submit, watch or listen, and take no tasks.">
                  <Table
                    caption="Other connections"
                    columns={clients}
                    rows={others}
                    most={SHOWN}
                    id={(w) => w.session}
                  />
                  {others.length > SHOWN && (
                    <p class="dim">The first {SHOWN} are shown: find the others by name.</p>
                  )}
                </Section>
              )}
            </>
          );
        }}
      </Loaded>
    </>
  );
}
