// Dead letters: why they died, and new attempts or an end for one, some or all of them.

import { useEffect, useMemo, useState } from "preact/hooks";
import { call, path, query, usePoll } from "../api";
import { count, plural, span } from "../format";
import {
  ask,
  attempt,
  Dialog,
  Empty,
  Field,
  Form,
  Head,
  Loaded,
  note,
  Pager,
  Table,
  type Column,
} from "../parts";
import { route, to } from "../route";
import { may } from "../session";
import { useStore } from "../store";
import type { Queue, Task, Tasks } from "../types";
import { FilterForm, filterBody, filterOf } from "./filter";
import { fault, taskLink } from "./tasks";

const LIMIT = 100;
const COUNTED = 1000;
/** More rows than a page draws smoothly. */
const SHOWN = 200;
/** How many ids one request takes. */
const IDS_MAX = 1024;

/** Redrives: at once, or so many a second. */
function Redrive({
  queue,
  number,
  body,
  onClose,
}: {
  queue: string;
  number: string;
  body: Record<string, unknown>;
  onClose: (done: boolean) => void;
}) {
  return (
    <Dialog title={`Redrive ${number} of ${queue}?`} onClose={() => onClose(false)}>
      <p>They are queued again with all their attempts anew. Mend what they died of first.</p>
      <Form
        onSend={async (given) => {
          const { redriven } = await call<{ redriven: number }>(
            "POST",
            path`v1/queues/${queue}/dead/redrive`,
            { ...body, rate_per_s: given.number("rate_per_s") },
          );
          note(`${plural(redriven, "dead letter")} of ${queue} redriven.`);
          onClose(true);
        }}
        buttons={
          <>
            <button type="button" onClick={() => onClose(false)}>
              Cancel
            </button>
            <button class="primary">Redrive {number}</button>
          </>
        }
      >
        <Field
          label="At most so many a second"
          name="rate_per_s"
          type="number"
          min="0.000001"
          step="any"
          hint="Empty: all at once"
        />
      </Form>
    </Dialog>
  );
}

function OfAll() {
  const list = usePoll<{ queues: Queue[] }>("v1/queues", 3000);
  return (
    <>
      <Head title="Dead letters" />
      <Loaded from={list}>
        {({ queues }) => {
          const found = queues.filter((queue) => queue.counts.dead > 0);
          if (found.length === 0) {
            return <p class="box good">There are none: no task has used up its attempts.</p>;
          }
          return (
            <>
              {found.length > SHOWN && (
                <p class="dim">
                  The first {SHOWN} of {plural(found.length, "queue")} are shown.
                </p>
              )}
              <Table
                caption="Queues with dead letters"
                rows={found}
                most={SHOWN}
                id={(q) => q.queue}
                start={{ head: "Dead letters", down: true }}
                columns={[
                  {
                    head: "Queue",
                    main: true,
                    cell: (q) => <a href={to("dead", q.queue)}>{q.queue}</a>,
                    sort: (q) => q.queue,
                  },
                  {
                    head: "Dead letters",
                    num: true,
                    cell: (q) => count(q.counts.dead),
                    sort: (q) => q.counts.dead,
                  },
                  {
                    head: "Queued",
                    num: true,
                    cell: (q) => count(q.counts.queued),
                    sort: (q) => q.counts.queued,
                  },
                  { head: "Workers", num: true, cell: (q) => count(q.workers), sort: (q) => q.workers },
                ]}
              />
            </>
          );
        }}
      </Loaded>
    </>
  );
}

export function Dead({ queue }: { queue: string }) {
  return queue === "" ? <OfAll /> : <OfQueue queue={queue} />;
}

function OfQueue({ queue }: { queue: string }) {
  const { search } = useStore(route);
  const filter = filterOf(search);
  const [pages, setPages] = useState<string[]>([]);
  const [chosen, setChosen] = useState(new Set<string>());
  const [redriving, setRedriving] = useState<{ number: string; body: Record<string, unknown> } | null>(null);
  const where = search.toString();
  useEffect(() => {
    setPages([]);
    setChosen(new Set());
  }, [where]);
  const list = usePoll<Tasks>(
    path`v1/queues/${queue}/dead` + query({ ...filter, limit: LIMIT, after: pages.at(-1) }),
    3000,
  );
  const manage = may("manage", queue);
  const filtered = Object.keys(filter).length > 0;
  const columns = useMemo<Column<Task>[]>(
    () => [
      { head: "Task", main: true, cell: (task) => taskLink(task.task) },
      {
        head: "Failed by",
        cell: (task) => task.history.at(-1)?.reason.replaceAll("_", " ") ?? "–",
        sort: (task) => task.history.at(-1)?.reason ?? "",
      },
      { head: "Last error", cell: (task) => fault(task.error), sort: (task) => task.error ?? "" },
      {
        head: "Attempts",
        num: true,
        cell: (task) => `${task.attempt} of ${task.max_attempts}`,
        sort: (task) => task.attempt,
      },
      { head: "Last worker", cell: (task) => task.history.at(-1)?.worker ?? "–" },
      { head: "Age", num: true, cell: (task) => span(task.age_ms), sort: (task) => task.age_ms },
    ],
    [],
  );

  /** How many are meant; all of a queue is a number that the broker knows. */
  const number = async (): Promise<string> => {
    if (!filtered) {
      const found = await call<Queue>("GET", path`v1/queues/${queue}`);
      return plural(found.counts.dead, "dead letter");
    }
    const found = await call<Tasks>(
      "GET",
      path`v1/queues/${queue}/dead` + query({ ...filter, limit: COUNTED }),
    );
    return found.next ? `more than ${COUNTED} dead letters` : plural(found.tasks.length, "dead letter");
  };
  const done = () => {
    setChosen(new Set());
    list.reload();
  };
  const redriveAll = () =>
    attempt(async () => setRedriving({ number: await number(), body: filterBody(filter) }));
  const redriveChosen = () => {
    const tasks = [...chosen].slice(0, IDS_MAX);
    const number = plural(tasks.length, "dead letter");
    setRedriving({ number: tasks.length < chosen.size ? `the first ${number}` : number, body: { tasks } });
  };
  const sure = (what: string) =>
    ask({
      title: `Delete ${what} of ${queue}?`,
      text: <p>The tasks and their payloads are forgotten. This cannot be undone.</p>,
      verb: `Delete ${what}`,
      danger: true,
    });
  const deleteAll = () =>
    attempt(async () => {
      if (!(await sure(await number()))) return;
      const { deleted } = await call<{ deleted: number }>(
        "DELETE",
        path`v1/queues/${queue}/dead` + query(filtered ? filter : { all: "true" }),
      );
      done();
      return `${plural(deleted, "dead letter")} deleted.`;
    });
  const deleteChosen = () =>
    attempt(async () => {
      const ids = [...chosen];
      if (!(await sure(plural(ids.length, "dead letter")))) return;
      const all = await Promise.allSettled(
        ids.map((id) => call("DELETE", path`v1/queues/${queue}/dead/${id}`)),
      );
      const failed = all.filter((one) => one.status === "rejected");
      done();
      if (failed.length > 0) {
        throw new Error(
          `${failed.length} of ${ids.length} were not deleted: ${(failed[0]!.reason as Error).message}`,
        );
      }
      return `${plural(ids.length, "dead letter")} deleted.`;
    });
  return (
    <>
      <Head title={`Dead letters of ${queue}`} crumbs={<a href={to("dead")}>Dead letters</a>}>
        <a class="button" href={to("queue", queue)}>
          Queue
        </a>
      </Head>
      <FilterForm search={search} />
      <Loaded from={list}>
        {({ tasks, next }) => (
          <>
            <div class="bar">
              <p class="dim" role="status">
                {plural(tasks.length, "dead letter")} shown{next ? ", there are more" : ""}
                {chosen.size > 0 && `, ${chosen.size} chosen`}
              </p>
              {manage && tasks.length > 0 && (
                <div class="actions">
                  {chosen.size > 0 && (
                    <>
                      <button type="button" class="primary" onClick={redriveChosen}>
                        Redrive the {chosen.size} chosen
                      </button>
                      <button type="button" class="danger" onClick={deleteChosen}>
                        Delete the {chosen.size} chosen
                      </button>
                    </>
                  )}
                  <button type="button" onClick={redriveAll}>
                    Redrive all{filtered ? " that match" : ""}
                  </button>
                  <button type="button" class="danger" onClick={deleteAll}>
                    Delete all{filtered ? " that match" : ""}
                  </button>
                </div>
              )}
            </div>
            {tasks.length === 0 ? (
              <Empty>{filtered ? "No dead letter matches." : `There are none in ${queue}.`}</Empty>
            ) : (
              <Table
                caption={`Dead letters of ${queue}`}
                columns={columns}
                rows={tasks}
                id={(task) => task.task}
                chosen={manage ? { ids: chosen, set: setChosen } : undefined}
              />
            )}
            <Pager pages={pages} next={next} turn={setPages} />
          </>
        )}
      </Loaded>
      {redriving && (
        <Redrive
          queue={queue}
          {...redriving}
          onClose={(was) => {
            setRedriving(null);
            if (was) done();
          }}
        />
      )}
    </>
  );
}
