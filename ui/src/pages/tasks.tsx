// Tasks: one by its id, or those of a queue that a filter lets through.

import { useEffect, useMemo, useState } from "preact/hooks";
import { call, path, query, usePoll } from "../api";
import { plural, span } from "../format";
import {
  ask,
  attempt,
  Badge,
  Empty,
  Field,
  Form,
  Head,
  Loaded,
  origin,
  Pager,
  Table,
  type Column,
} from "../parts";
import { go, route, to } from "../route";
import { may, mayAny } from "../session";
import { useStore } from "../store";
import { OPEN, type Queue, type Task, type Tasks as Page } from "../types";
import { FilterForm, filterOf } from "./filter";

const LIMIT = 100;
/** How far is counted before many are cancelled. */
const COUNTED = 1000;

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;

export function taskLink(id: string) {
  return (
    <a class="mono" href={to("task", id)} title={id}>
      {id}
    </a>
  );
}

/** What an attempt failed of, if it did. */
export function fault(error: string | null, whole = false) {
  return error === null ? "–" : <span class={whole ? "error whole" : "error"}>{error}</span>;
}

function Find() {
  return (
    <Form
      class="filters"
      onSend={async (given) => {
        const id = given.text("id");
        if (!UUID.test(id))
          throw new Error("A task's id has 36 characters, as in 0198c0de-0000-7000-8000-000000000001.");
        go(to("task", id.toLowerCase()));
      }}
      buttons={<button>Find</button>}
    >
      <Field
        label="Task by its id"
        name="id"
        class="mono wide"
        required
        placeholder="0198c0de-0000-7000-8000-000000000001"
      />
    </Form>
  );
}

/** How many a filter lets through, as far as it is worth counting. */
export async function countOf(queue: string, search: Record<string, string>): Promise<string> {
  const { tasks, next } = await call<Page>(
    "GET",
    path`v1/queues/${queue}/tasks` + query({ ...search, limit: COUNTED }),
  );
  return next ? `more than ${COUNTED} tasks` : plural(tasks.length, "task");
}

export function Tasks() {
  const { search } = useStore(route);
  const queues = usePoll<{ queues: Queue[] }>(mayAny("observe") ? "v1/queues" : null, 10_000);
  const queue = search.get("queue") ?? "";
  const states = search.get("state") ?? "";
  const filter = filterOf(search);
  const [pages, setPages] = useState<string[]>([]);
  const [chosen, setChosen] = useState(new Set<string>());
  const where = search.toString();
  useEffect(() => {
    setPages([]);
    setChosen(new Set());
  }, [where]);
  const asked = { ...filter, ...(states ? { state: states } : {}) };
  const address =
    queue && path`v1/queues/${queue}/tasks` + query({ ...asked, limit: LIMIT, after: pages.at(-1) });
  const list = usePoll<Page>(address || null, 3000);
  const manage = queue !== "" && may("manage", queue);
  const columns = useMemo<Column<Task>[]>(
    () => [
      { head: "Task", main: true, cell: (task) => taskLink(task.task) },
      { head: "State", cell: (task) => <Badge word={task.state} />, sort: (task) => task.state },
      {
        head: "Attempt",
        num: true,
        cell: (task) => `${task.attempt} of ${task.max_attempts}`,
        sort: (task) => task.attempt,
      },
      { head: "Age", num: true, cell: (task) => span(task.age_ms), sort: (task) => task.age_ms },
      { head: "Worker", cell: (task) => task.worker ?? "–", sort: (task) => task.worker ?? "" },
      { head: "Last error", cell: (task) => fault(task.error), sort: (task) => task.error ?? "" },
    ],
    [],
  );

  const cancelChosen = async () => {
    const ids = [...chosen];
    const yes = await ask({
      title: `Cancel ${plural(ids.length, "task")}?`,
      text: (
        <p>Those that wait end at once; workers that hold one are asked to stop. This cannot be undone.</p>
      ),
      verb: `Cancel ${plural(ids.length, "task")}`,
      danger: true,
    });
    if (!yes) return;
    await attempt(async () => {
      const all = await Promise.allSettled(ids.map((id) => call("DELETE", path`v1/tasks/${id}`)));
      const failed = all.filter((one) => one.status === "rejected");
      setChosen(new Set());
      list.reload();
      if (failed.length > 0) {
        throw new Error(
          `${failed.length} of ${ids.length} were not cancelled: ${(failed[0]!.reason as Error).message}`,
        );
      }
      return `${plural(ids.length, "task")} cancelled, or being stopped.`;
    });
  };
  const cancelAll = async () => {
    await attempt(async () => {
      // What has ended already cannot be cancelled; a filter without a state means what has not.
      const which = { ...filter, state: states || OPEN.join(",") };
      const number = await countOf(queue, which);
      const yes = await ask({
        title: `Cancel ${number} of ${queue}?`,
        text: (
          <p>
            That is all that match now:{" "}
            {Object.entries(which)
              .map(([name, value]) => `${name} ${value}`)
              .join(", ")}
            . Those that wait end at once; workers that hold one are asked to stop. This cannot be undone.
          </p>
        ),
        verb: `Cancel ${number}`,
        danger: true,
      });
      if (!yes) return;
      const { cancelled, stopping } = await call<{ cancelled: number; stopping: number }>(
        "DELETE",
        path`v1/queues/${queue}/tasks` + query(which),
      );
      list.reload();
      return `${plural(cancelled, "task")} cancelled, ${stopping} being stopped by their workers.`;
    });
  };
  return (
    <>
      <Head title="Tasks" />
      <Find />
      {mayAny("observe") && (
        <FilterForm
          search={search}
          queues={(queues.value?.queues ?? []).map((one) => one.queue).sort()}
          states
        />
      )}
      {!queue ? (
        <Empty>Choose a queue to see its tasks, or look one up by its id.</Empty>
      ) : (
        <Loaded from={list}>
          {({ tasks, next }) => (
            <>
              <div class="bar">
                <p class="dim" role="status">
                  {plural(tasks.length, "task")} shown{next ? ", there are more" : ""}
                  {chosen.size > 0 && `, ${chosen.size} chosen`}
                </p>
                <div class="actions">
                  {chosen.size > 0 && (
                    <button type="button" class="danger" onClick={cancelChosen}>
                      Cancel the {chosen.size} chosen
                    </button>
                  )}
                  {manage && tasks.some((task) => OPEN.includes(task.state)) && (
                    <button type="button" onClick={cancelAll}>
                      Cancel all that match
                    </button>
                  )}
                </div>
              </div>
              {tasks.length === 0 ? (
                <Empty
                  command={`curl --json '{"payload":{"hello":"world"}}' ${origin()}/v1/queues/${queue}/tasks`}
                >
                  No task matches. Finished ones can be looked up for ten minutes, unless the queue says
                  otherwise.
                </Empty>
              ) : (
                <Table
                  caption={`Tasks of ${queue}`}
                  columns={columns}
                  rows={tasks}
                  id={(task) => task.task}
                  chosen={manage || may("submit", queue) ? { ids: chosen, set: setChosen } : undefined}
                />
              )}
              <Pager pages={pages} next={next} turn={setPages} />
            </>
          )}
        </Loaded>
      )}
    </>
  );
}
