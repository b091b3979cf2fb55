// Schedules: what is submitted again and again, and when next.

import { useEffect, useMemo, useState } from "preact/hooks";
import { call, path, usePoll } from "../api";
import { count, DASH, span } from "../format";
import {
  ask,
  attempt,
  Dialog,
  Empty,
  Field,
  Form,
  givenPayload,
  Head,
  Loaded,
  note,
  options,
  origin,
  PayloadField,
  Table,
  type Column,
} from "../parts";
import { to } from "../route";
import { may, mayAny } from "../session";
import type { Schedule } from "../types";
import { givenOptions, SubmitOptions } from "./options";

function Edit({ was, onClose }: { was: Schedule | null; onClose: (done: boolean) => void }) {
  const [by, setBy] = useState(was?.every_ms !== undefined ? "every" : "cron");
  const zones = useMemo(() => Intl.supportedValuesOf("timeZone"), []);
  const bytes = was?.payload_b64 !== undefined;
  return (
    <Dialog title={was ? `Schedule ${was.name}` : "New schedule"} onClose={() => onClose(false)} wide>
      <Form
        class="grid"
        onSend={async (given) => {
          const name = was?.name ?? given.text("name");
          const when =
            by === "cron"
              ? { cron: given.text("cron"), tz: given.text("tz") || "UTC" }
              : { every_ms: given.number("every_ms") };
          // Bytes are not written anew by hand: they stay as they are.
          const payload =
            bytes && given.text("payload_kind") === "json" && given.text("payload") === ""
              ? { payload_b64: was.payload_b64 }
              : await givenPayload(given, "payload");
          await call("PUT", path`v1/schedules/${name}`, {
            queue: given.text("queue"),
            ...when,
            missed: given.text("missed"),
            ...payload,
            ...givenOptions(given),
          });
          note(`Schedule ${name} is in force.`);
          onClose(true);
        }}
        buttons={
          <>
            <button type="button" onClick={() => onClose(false)}>
              Cancel
            </button>
            <button class="primary">{was ? "Save" : "Make the schedule"}</button>
          </>
        }
      >
        <fieldset class="full spread">
          <legend>What and when</legend>
          {!was && <Field label="Name" name="name" required maxLength={128} autofocus />}
          <Field label="Queue" name="queue" required maxLength={128} defaultValue={was?.queue} />
          <Field
            label="By"
            name="by"
            onChange={(event) => setBy((event.currentTarget as HTMLSelectElement).value)}
          >
            {options(by, [
              ["cron", "a cron pattern"],
              ["every", "a period"],
            ])}
          </Field>
          {by === "cron" ? (
            <>
              <Field
                label="Pattern"
                name="cron"
                class="mono"
                required
                defaultValue={was?.cron ?? "30 2 * * *"}
                hint="minute hour day month weekday; six fields with seconds in front; or @daily, @hourly …"
              />
              <Field label="Time zone" name="tz" list="zones" defaultValue={was?.tz ?? "UTC"} />
              <datalist id="zones">
                {zones.map((zone) => (
                  <option key={zone} value={zone} />
                ))}
              </datalist>
            </>
          ) : (
            <Field
              label="Every, ms"
              name="every_ms"
              type="number"
              min="100"
              max="31536000000"
              step="1"
              required
              defaultValue={was?.every_ms ?? 60_000}
            />
          )}
          <Field label="Times that were missed" name="missed" hint="While the broker was away">
            {options(was?.missed ?? "one", [
              ["one", "one task for the latest"],
              ["none", "none"],
            ])}
          </Field>
        </fieldset>
        <PayloadField
          name="payload"
          label={bytes ? "Payload (empty: the bytes that it has)" : "Payload"}
          value={was && !bytes ? JSON.stringify(was.payload ?? null, null, 2) : ""}
        />
        <details class="full">
          <summary>Options of each submit</summary>
          <div class="grid">
            <SubmitOptions was={was ?? {}} once={false} />
          </div>
        </details>
      </Form>
    </Dialog>
  );
}

export function Schedules() {
  const list = usePoll<{ schedules: Schedule[] }>("v1/schedules", 3000);
  const [editing, setEditing] = useState<{ was: Schedule | null } | null>(null);
  const [, tick] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => tick((n) => n + 1), 1000);
    return () => clearInterval(timer);
  }, []);
  const { reload, at } = list;
  const edit = (name: string) =>
    attempt(async () => {
      // Lists leave payloads out.
      const was = await call<Schedule>("GET", path`v1/schedules/${name}`, undefined, undefined, true);
      setEditing({ was });
    });
  const end = async (name: string) => {
    const yes = await ask({
      title: `Delete schedule ${name}?`,
      text: <p>It submits nothing more. Tasks that it has made stay.</p>,
      verb: "Delete 1 schedule",
      danger: true,
    });
    if (yes) {
      await attempt(async () => {
        await call("DELETE", path`v1/schedules/${name}`);
        reload();
        return `Schedule ${name} is deleted.`;
      });
    }
  };
  const columns: Column<Schedule>[] = [
    { head: "Schedule", main: true, cell: (s) => s.name, sort: (s) => s.name },
    { head: "Queue", cell: (s) => <a href={to("queue", s.queue)}>{s.queue}</a>, sort: (s) => s.queue },
    {
      head: "When",
      cell: (s) =>
        s.cron ? (
          <>
            <code>{s.cron}</code> <span class="dim">{s.tz}</span>
          </>
        ) : (
          <>every {span(s.every_ms ?? 0)}</>
        ),
    },
    {
      head: "Next",
      num: true,
      sort: (s) => s.next_in_ms ?? Number.MAX_SAFE_INTEGER,
      cell: (s) =>
        s.next_in_ms === null ? (
          DASH
        ) : (
          <span title={s.next_run_at ?? ""}>
            in {span(Math.max(0, Math.round((s.next_in_ms - (Date.now() - at)) / 1000) * 1000))}
          </span>
        ),
    },
    { head: "Fired", num: true, cell: (s) => count(s.fired), sort: (s) => s.fired },
    {
      head: "Last",
      cell: (s) =>
        s.last_error ? (
          <span class="error">{s.last_error.message}</span>
        ) : s.last ? (
          <a href={to("task", s.last.task)}>{new Date(s.last.run_at).toLocaleString("en-GB")}</a>
        ) : (
          "not yet"
        ),
    },
    {
      head: "",
      class: "row-actions",
      cell: (s) =>
        may("manage", s.queue) && (
          <>
            <button type="button" class="small" aria-label={`Edit ${s.name}`} onClick={() => edit(s.name)}>
              Edit
            </button>
            <button type="button" class="small" aria-label={`Delete ${s.name}`} onClick={() => end(s.name)}>
              Delete
            </button>
          </>
        ),
    },
  ];
  return (
    <>
      <Head title="Schedules">
        {mayAny("manage") && (
          <button type="button" onClick={() => setEditing({ was: null })}>
            New schedule
          </button>
        )}
      </Head>
      <Loaded from={list}>
        {({ schedules }) =>
          schedules.length === 0 ? (
            <Empty
              command={`taskyard schedules put nightly --url ${origin()} --queue reports --cron '30 2 * * *' --payload '{"kind":"nightly"}'`}
            >
              There is no schedule. One submits its task again and again, and survives restarts:
            </Empty>
          ) : (
            <Table
              caption="Schedules"
              columns={columns}
              rows={schedules}
              id={(s) => s.name}
              start={{ head: "Next", down: false }}
            />
          )
        }
      </Loaded>
      {editing && (
        <Edit
          was={editing.was}
          onClose={(done) => {
            setEditing(null);
            if (done) reload();
          }}
        />
      )}
    </>
  );
}
