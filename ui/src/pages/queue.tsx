// One queue: what happens in it now, who works on it, and all its settings.

import { useMemo, useState } from "preact/hooks";
import { call, path, usePoll } from "../api";
import { count, plural, rate, span } from "../format";
import { overview, samples, useDetail } from "../live";
import {
  Badge,
  Empty,
  Failed,
  Field,
  Form,
  Head,
  Loaded,
  note,
  options,
  origin,
  Section,
  Table,
  Tile,
  whole,
} from "../parts";
import { Plot } from "../plot";
import { to } from "../route";
import { may } from "../session";
import { useStore } from "../store";
import { EVENTS, type Queue, type Settings, type State, type Worker } from "../types";
import { flow } from "./overview";
import { Pause, purge, unpause } from "./queues";

function SettingsForm({ queue, onDone }: { queue: Queue; onDone: () => void }) {
  const { settings } = queue;
  const { defaults } = settings;
  const aged = settings.order === "strict" ? null : settings.order.aged.headstart_ms;
  const [order, setOrder] = useState(aged === null ? "strict" : "aged");
  const text = (value: number | null) => (value === null ? "" : String(value));
  return (
    <Form
      class="grid"
      onSend={async (given) => {
        const backoff = {
          initial_ms: given.number("initial_ms"),
          max_ms: given.number("max_ms"),
          factor: given.number("factor"),
        };
        const some = Object.values(backoff).some((value) => value !== null);
        await call<Queue>("PUT", path`v1/queues/${queue.queue}`, {
          assign: given.text("assign"),
          deliver: given.text("deliver"),
          order:
            given.text("order") === "aged"
              ? { aged: { headstart_ms: given.number("headstart_ms") ?? 60_000 } }
              : "strict",
          max_tasks: given.number("max_tasks"),
          max_bytes: given.number("max_bytes"),
          max_leased: given.number("max_leased"),
          rate_per_s: given.number("rate_per_s"),
          keep_result_ms: given.number("keep_result_ms"),
          defaults: {
            priority: given.number("priority"),
            ttl_ms: given.number("ttl_ms"),
            ack_timeout_ms: given.number("ack_timeout_ms"),
            timeout_ms: given.number("timeout_ms"),
            max_attempts: given.number("max_attempts"),
            backoff: some ? backoff : null,
          },
        });
        note(`The settings of ${queue.queue} hold from now on.`);
        onDone();
      }}
      buttons={<button class="primary">Save settings</button>}
    >
      <fieldset>
        <legend>Delivery</legend>
        <Field label="Assign" name="assign" hint="How a worker is chosen, for tasks that do not say">
          {options(settings.assign, [
            ["round_robin", "round robin"],
            ["least_loaded", "least loaded"],
            ["sticky", "sticky"],
          ])}
        </Field>
        <Field
          label="Deliver"
          name="deliver"
          hint="Early is faster: a worker may then hold a task that a power cut takes"
        >
          {options(settings.deliver, [
            ["durable", "once it is durable"],
            ["early", "early"],
          ])}
        </Field>
        <Field
          label="Priorities"
          name="order"
          onChange={(event) => setOrder((event.currentTarget as HTMLSelectElement).value)}
          hint="Aged: a step of priority is a head start, so that low ones come too"
        >
          {options(order, [
            ["strict", "strict"],
            ["aged", "aged"],
          ])}
        </Field>
        {order === "aged" &&
          whole(
            "headstart_ms",
            "Head start, ms",
            aged ?? 60_000,
            "Of each step of priority",
            1,
            31_536_000_000,
          )}
      </fieldset>
      <fieldset>
        <legend>Limits</legend>
        {whole(
          "max_tasks",
          "Tasks",
          settings.max_tasks,
          "Unfinished ones; one more is refused. Empty: none",
          1,
          1e9,
        )}
        {whole("max_bytes", "Bytes", settings.max_bytes, "Of their payloads. Empty: none", 1, 2 ** 53 - 1)}
        {whole("max_leased", "With workers", settings.max_leased, "At a time. Empty: none", 1, 1e9)}
        <Field
          label="Tasks a second"
          name="rate_per_s"
          type="number"
          min="0.000001"
          max="1000000"
          step="any"
          defaultValue={text(settings.rate_per_s)}
          hint="Handed out, evenly. Empty: none"
        />
        {whole(
          "keep_result_ms",
          "Keep results, ms",
          settings.keep_result_ms,
          "Empty: 600000, ten minutes",
          0,
          2_592_000_000,
        )}
      </fieldset>
      <fieldset>
        <legend>For submits that do not say</legend>
        {whole("priority", "Priority", defaults.priority, "0 to 9. Empty: 4", 0, 9)}
        {whole(
          "ttl_ms",
          "Of use for, ms",
          defaults.ttl_ms,
          "Then expired. Empty: for ever",
          1,
          31_536_000_000,
        )}
        {whole(
          "ack_timeout_ms",
          "Ack timeout, ms",
          defaults.ack_timeout_ms,
          "How long a worker may be silent. Empty: 30000",
          100,
          86_400_000,
        )}
        {whole(
          "timeout_ms",
          "Run limit, ms",
          defaults.timeout_ms,
          "Of one attempt. Empty: none",
          100,
          86_400_000,
        )}
        {whole("max_attempts", "Attempts", defaults.max_attempts, "Empty: 5", 1, 1000)}
      </fieldset>
      <fieldset>
        <legend>Back-off between attempts</legend>
        {whole("initial_ms", "First, ms", defaults.backoff?.initial_ms ?? null, "Empty: 1000", 0, 86_400_000)}
        {whole("max_ms", "At most, ms", defaults.backoff?.max_ms ?? null, "Empty: 300000", 0, 86_400_000)}
        <Field
          label="Times each"
          name="factor"
          type="number"
          min="1"
          max="10"
          step="any"
          defaultValue={text(defaults.backoff?.factor ?? null)}
          hint="Empty: 2"
        />
      </fieldset>
    </Form>
  );
}

function Shown({ settings }: { settings: Settings }) {
  const { defaults, ...own } = settings;
  const pairs = Object.entries({ ...own, ...defaults }).filter(([, value]) => value !== null);
  return (
    <dl class="facts">
      {pairs.map(([name, value]) => (
        <div key={name}>
          <dt>{name.replaceAll("_", " ")}</dt>
          <dd>{typeof value === "object" ? JSON.stringify(value) : String(value)}</dd>
        </div>
      ))}
    </dl>
  );
}

export function OneQueue({ name }: { name: string }) {
  useDetail(name);
  const found = usePoll<Queue>(path`v1/queues/${name}`, 2000);
  const workers = usePoll<{ workers: Worker[] }>("v1/workers", 3000);
  const kept = useStore(samples);
  const now = useStore(overview)?.queues.find((one) => one.queue === name);
  const [pausing, setPausing] = useState(false);
  const [saved, setSaved] = useState(0);
  const shown = useMemo(() => flow(kept, name), [kept, name]);
  const manage = may("manage", name);
  const mine =
    workers.value?.workers.flatMap((worker) =>
      worker.subscriptions.filter((one) => one.queue === name).map((one) => ({ ...worker, ...one })),
    ) ?? [];
  return (
    <>
      <Head title={name} crumbs={<a href={to("queues")}>Queues</a>}>
        {manage && found.value && (
          <>
            {found.value.paused ? (
              <button type="button" onClick={async () => (await unpause(name)) && found.reload()}>
                Unpause
              </button>
            ) : (
              <button type="button" onClick={() => setPausing(true)}>
                Pause
              </button>
            )}
            <button
              type="button"
              class="danger"
              onClick={async () => (await purge(found.value!)) && found.reload()}
            >
              Purge
            </button>
          </>
        )}
        <a class="button" href={to("tasks", "", { queue: name })}>
          Tasks
        </a>
        {may("submit", name) && (
          <a class="button" href={to("console", "", { queue: name })}>
            Submit
          </a>
        )}
      </Head>
      <Loaded from={found}>
        {(queue) => (
          <>
            {queue.paused && (
              <p class="box warn">
                <Badge word="paused" /> {queue.paused.by && `by ${queue.paused.by}`}
                {queue.paused.reason && `: ${queue.paused.reason}`}
                {queue.paused.in_ms === null
                  ? ", until somebody ends it"
                  : `, for ${span(queue.paused.in_ms)} more`}
              </p>
            )}
            <dl class="tiles">
              <Tile
                name="Queued"
                value={count(now?.counts.queued ?? queue.counts.queued)}
                href={to("tasks", "", { queue: name, state: "queued" })}
              />
              <Tile
                name="Leased"
                value={count(now?.counts.leased ?? queue.counts.leased)}
                note={`room for ${count(queue.credit_free)}`}
                href={to("tasks", "", { queue: name, state: "leased" })}
              />
              <Tile
                name="Scheduled"
                value={count(queue.counts.scheduled)}
                href={to("tasks", "", { queue: name, state: "scheduled" })}
              />
              <Tile
                name="Retrying"
                value={count(queue.counts.retrying)}
                href={to("tasks", "", { queue: name, state: "retrying" })}
              />
              <Tile
                name="Dead"
                value={count(queue.counts.dead)}
                tone={queue.counts.dead ? "bad" : ""}
                href={to("dead", name)}
              />
              <Tile name="Oldest waits" value={span(queue.oldest_ms)} />
              <Tile
                name="Workers"
                value={count(queue.workers)}
                tone={queue.workers === 0 && queue.counts.queued > 0 ? "bad" : ""}
              />
              <Tile
                name="In, out"
                value={`${rate(queue.rates.accepted)}, ${rate(queue.rates.settled)}`}
                note="per s"
              />
            </dl>
            {queue.counts.queued > 0 && queue.workers === 0 && (
              <Empty command={`taskyard work ${name} --url ${origin()} -- cat`}>
                Nobody works on this queue. Any command can: a task comes on its stdin, its stdout is the
                result.
              </Empty>
            )}
            <Section title="Now">
              <div class="plots">
                <Plot title="Tasks per second" times={shown.times} lines={shown.rates} format={rate} />
                <Plot title="Tasks by state" times={shown.times} lines={shown.depths} format={count} />
              </div>
            </Section>
            <Section title="Workers" note={mine.length > 0 ? plural(mine.length, "subscription") : undefined}>
              <Failed error={workers.error} />
              {mine.length === 0 ? (
                <p class="dim">Nobody is subscribed.</p>
              ) : (
                <Table
                  caption={`Workers of ${name}`}
                  rows={mine}
                  id={(worker) => worker.session}
                  columns={[
                    {
                      head: "Worker",
                      main: true,
                      cell: (w) => <a href={to("workers", "", { find: w.worker })}>{w.worker}</a>,
                    },
                    { head: "Groups", cell: (w) => w.groups.join(", ") || "–" },
                    { head: "Holds", num: true, cell: (w) => `${count(w.unsettled)} of ${count(w.credit)}` },
                    { head: "Connected for", cell: (w) => span(w.connected_ms) },
                  ]}
                />
              )}
            </Section>
            <Section title="Since the start">
              <dl class="facts narrow">
                {(["done", "cancelled", "expired"] as State[]).map((state) => (
                  <div key={state}>
                    <dt>ended {state}</dt>
                    <dd>{count(queue.counts[state])}</dd>
                  </div>
                ))}
                {now &&
                  EVENTS.map((event) => (
                    <div key={event}>
                      <dt>{event.replaceAll("_", " ")}</dt>
                      <dd>{count(now.events[event])}</dd>
                    </div>
                  ))}
              </dl>
            </Section>
            <Section
              title="Settings"
              note="They hold from the moment they are saved, also for tasks that wait."
            >
              {manage ? (
                <SettingsForm
                  key={saved}
                  queue={queue}
                  onDone={() => {
                    setSaved(saved + 1);
                    found.reload();
                  }}
                />
              ) : (
                <Shown settings={queue.settings} />
              )}
            </Section>
          </>
        )}
      </Loaded>
      {pausing && (
        <Pause
          queue={name}
          onClose={(done) => {
            setPausing(false);
            if (done) found.reload();
          }}
        />
      )}
    </>
  );
}
