// At a glance: how much comes and goes, how fast, what waits, and what wants somebody's attention.

import type { ComponentChildren } from "preact";
import { useMemo, useState } from "preact/hooks";
import { bytes, count, DASH, latency, plural, rate, span } from "../format";
import { blind, EVERY_MS, link, overview, perSecond, quantiles, rates, samples, type Sample } from "../live";
import { mayAny, mayEvery } from "../session";
import { Badge, Empty, Head, origin, Section, Table, Tile, type Column } from "../parts";
import { Plot } from "../plot";
import { to } from "../route";
import { useStore } from "../store";
import { HOPS, type Hop, type Overview as Seen, type QueueNow } from "../types";

/** A task that has waited so long for a worker is worth a look. */
const OLD_MS = 60_000;
const ATTENTION_MAX = 8;

const HOP_NAMES: Record<Hop, string> = {
  accepted_to_durable: "accepted → durable",
  durable_to_assigned: "durable → assigned",
  assigned_to_sent: "assigned → sent",
  sent_to_settled: "sent → settled",
};

interface Worry {
  key: string;
  tone: "bad" | "warn";
  word: string;
  text: ComponentChildren;
}

const queueLink = (name: string) => <a href={to("queue", name)}>{name}</a>;

function worries(now: Seen): Worry[] {
  const found: Worry[] = [];
  if (now.draining) {
    found.push({
      key: "drain",
      tone: "bad",
      word: "draining",
      text: "The broker is shutting down: nothing is delivered.",
    });
  }
  for (const q of now.queues) {
    const waits = q.counts.queued;
    if (q.counts.dead > 0) {
      found.push({
        key: `dead ${q.queue}`,
        tone: "bad",
        word: "dead",
        text: (
          <>
            <a href={to("dead", q.queue)}>{plural(q.counts.dead, "dead letter")}</a> in {queueLink(q.queue)}
          </>
        ),
      });
    }
    if (q.paused) {
      found.push({
        key: `paused ${q.queue}`,
        tone: "warn",
        word: "paused",
        text: (
          <>
            {queueLink(q.queue)} is paused, {plural(waits, "task waits", "tasks wait")}
          </>
        ),
      });
    } else if (waits > 0 && q.workers === 0) {
      found.push({
        key: `none ${q.queue}`,
        tone: "bad",
        word: "no workers",
        text: (
          <>
            {plural(waits, "task waits", "tasks wait")} in {queueLink(q.queue)}, and nobody is subscribed
          </>
        ),
      });
    } else if ((q.oldest_ms ?? 0) > OLD_MS) {
      found.push({
        key: `old ${q.queue}`,
        tone: "warn",
        word: "late",
        text: (
          <>
            the oldest task in {queueLink(q.queue)} has waited for {span(q.oldest_ms)}
            {q.credit_free === 0 ? `: all of ${plural(q.workers, "worker")} are busy` : ""}
          </>
        ),
      });
    }
  }
  return found.sort((a, b) => Number(a.tone === "warn") - Number(b.tone === "warn"));
}

function Attention({ now }: { now: Seen }) {
  const [all, setAll] = useState(false);
  const found = worries(now);
  const shown = all ? found : found.slice(0, ATTENTION_MAX);
  return (
    <Section
      title="Needs attention"
      note={
        now.queues.length < now.queues_total &&
        `Looked at: the ${now.queues.length} largest of ${now.queues_total} queues`
      }
    >
      {
        // Said when it changes; how long something waits changes all the time.
        <p class="hidden" role="status">
          {found.length > 0 && `${plural(found.length, "thing needs", "things need")} attention`}
        </p>
      }
      {found.length === 0 ? (
        <p class="box good">Nothing: no dead letters, no queue is paused, late or without workers.</p>
      ) : (
        <ul class="worries">
          {shown.map((worry) => (
            <li key={worry.key}>
              <span class={`badge ${worry.tone}`}>{worry.word}</span> <span>{worry.text}</span>
            </li>
          ))}
        </ul>
      )}
      {shown.length < found.length && (
        <button type="button" class="small" onClick={() => setAll(true)}>
          Show all {found.length}
        </button>
      )}
    </Section>
  );
}

function Latencies({ now }: { now: Seen }) {
  const kept = useStore(samples);
  const [share, setShare] = useState(0.99);
  const bounds = now.hop_bounds_us;
  const lines = useMemo(
    () =>
      bounds === undefined
        ? []
        : HOPS.map((hop, at) => ({
            label: HOP_NAMES[hop],
            tone: at + 1,
            values: quantiles(kept, hop, bounds, share),
          })),
    [kept, share, bounds],
  );
  const times = useMemo(() => kept.map((sample) => sample.at), [kept]);
  if (!bounds)
    return (
      <p class="dim">
        Latencies take the permission <code>observe:*</code>.
      </p>
    );
  return (
    <Plot title="Latency by hop" times={times} lines={lines} format={latency} log>
      <span class="choices" role="radiogroup" aria-label="Share of tasks">
        {[0.5, 0.9, 0.99].map((one) => (
          <label key={one}>
            <input type="radio" name="share" checked={share === one} onChange={() => setShare(one)} /> p
            {one * 100}
          </label>
        ))}
      </span>
    </Plot>
  );
}

export function flow(kept: Sample[], queue?: string) {
  const of = (sample: Sample) =>
    queue === undefined ? sample.totals : sample.queues.find((one) => one.queue === queue);
  return {
    times: kept.map((sample) => sample.at),
    rates: [
      { label: "accepted", tone: 1, values: rates(kept, (sample) => of(sample)?.events.accepted) },
      { label: "delivered", tone: 2, values: rates(kept, (sample) => of(sample)?.events.delivered) },
      { label: "acked", tone: 3, values: rates(kept, (sample) => of(sample)?.events.acked) },
    ],
    depths: [
      { label: "queued", tone: 1, values: kept.map((sample) => of(sample)?.counts.queued ?? null) },
      { label: "leased", tone: 2, values: kept.map((sample) => of(sample)?.counts.leased ?? null) },
      { label: "scheduled", tone: 3, values: kept.map((sample) => of(sample)?.counts.scheduled ?? null) },
      { label: "retrying", tone: 4, values: kept.map((sample) => of(sample)?.counts.retrying ?? null) },
      { label: "dead", tone: 5, values: kept.map((sample) => of(sample)?.counts.dead ?? null) },
    ],
  };
}

function Broker({ now }: { now: Seen }) {
  const kept = useStore(samples);
  const sync = now.log?.sync;
  const rows: [string, string][] = [
    ["Version", `${now.version}, up for ${span(now.uptime_ms)}`],
    ["Engine", `${now.engine}${now.durable ? ", survives a power cut" : ", forgets all when it ends"}`],
    ["Queues", count(now.queues_total)],
    ["Schedules", count(now.schedules)],
    ["Connections", `${count(now.connections)}, ${count(now.workers)} of them work`],
  ];
  if (now.process) {
    rows.push(
      ["Memory", bytes(now.process.rss_bytes)],
      ["CPU so far", span(now.process.cpu_ms)],
      ["Open files, threads", `${count(now.process.open_fds)}, ${count(now.process.threads)}`],
    );
  }
  if (now.log) {
    rows.push(
      [
        "Log",
        `${bytes(now.log.bytes)} in ${plural(now.log.segments, "segment")}, ${bytes(now.log.live_bytes)} of it live`,
      ],
      [
        "Syncs",
        sync && sync.count > 0
          ? `mean ${latency(sync.sum_us / sync.count)}, ${rate(now.log.batch_records_avg)} records each`
          : DASH,
      ],
    );
  }
  return (
    <Section
      title="Broker"
      note={`${kept.length ? plural(Math.round(kept.at(-1)!.at - kept[0]!.at), "second") : "Nothing"} seen`}
    >
      <dl class="facts">
        {rows.map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
      </dl>
    </Section>
  );
}

export function Overview() {
  const now = useStore(overview);
  const kept = useStore(samples);
  const state = useStore(link);
  const why = useStore(blind);
  const shown = useMemo(() => flow(kept), [kept]);
  if (!now) {
    return (
      <>
        <Head title="Overview" />
        {why ? (
          <p class="box bad" role="alert">
            {why}
          </p>
        ) : (
          <p class="dim" role="status">
            {state.phase === "open" ? "Looking…" : "Waiting for the broker…"}
          </p>
        )}
      </>
    );
  }
  const { totals } = now;
  const per = (name: "accepted" | "acked" | "delivered") =>
    rate(perSecond(kept, (sample) => sample.totals.events[name]));
  const of = (queue: string, name: "accepted" | "acked") =>
    perSecond(kept, (sample) => sample.queues.find((one) => one.queue === queue)?.events[name]);
  const columns: Column<QueueNow>[] = [
    {
      head: "Queue",
      main: true,
      cell: (q) => (
        <>
          {queueLink(q.queue)} {q.paused && <Badge word="paused" />}
        </>
      ),
    },
    { head: "Accepted/s", num: true, cell: (q) => rate(of(q.queue, "accepted")) },
    { head: "Acked/s", num: true, cell: (q) => rate(of(q.queue, "acked")) },
    { head: "Queued", num: true, cell: (q) => count(q.counts.queued) },
    { head: "Leased", num: true, cell: (q) => count(q.counts.leased) },
    { head: "Dead", num: true, cell: (q) => count(q.counts.dead) },
    { head: "Oldest", num: true, cell: (q) => span(q.oldest_ms) },
    { head: "Workers", num: true, cell: (q) => count(q.workers) },
  ];
  return (
    <>
      <Head title="Overview" />
      {!now.durable && (
        <p class="box warn">
          This broker keeps tasks in memory: they are gone when it ends. Start it with{" "}
          <code>--engine embedded</code> to keep them.
        </p>
      )}
      <dl class="tiles">
        <Tile name="Accepted" value={per("accepted")} note="per s" />
        <Tile name="Delivered" value={per("delivered")} note="per s" />
        <Tile name="Acked" value={per("acked")} note="per s" />
        <Tile
          name="Waiting"
          value={count(totals.counts.queued)}
          href={to("queues")}
          note={
            totals.counts.scheduled + totals.counts.retrying > 0 &&
            `and ${count(totals.counts.scheduled + totals.counts.retrying)} later`
          }
        />
        <Tile
          name="With workers"
          value={count(totals.counts.leased)}
          note={`room for ${count(totals.credit_free)}`}
        />
        <Tile
          name="Oldest waits"
          value={span(totals.oldest_ms)}
          tone={(totals.oldest_ms ?? 0) > OLD_MS ? "warn" : ""}
        />
        <Tile
          name="Workers"
          value={count(now.workers)}
          href={to("workers")}
          tone={now.workers === 0 && totals.counts.queued > 0 ? "bad" : ""}
        />
        <Tile
          name="Dead letters"
          value={count(totals.counts.dead)}
          href={to("dead")}
          tone={totals.counts.dead > 0 ? "bad" : ""}
        />
      </dl>
      {now.queues_total === 0 ? (
        <Section title="Nothing here yet">
          <Empty command={`curl --json '{"payload":{"hello":"world"}}' ${origin()}/v1/queues/demo/tasks`}>
            A queue is there as soon as somebody submits to it, or works on it. Submit a first task
            {mayAny("submit") && (
              <>
                {" "}
                here, or in the <a href={to("console")}>console</a>
              </>
            )}
            :
          </Empty>
        </Section>
      ) : (
        <Attention now={now} />
      )}
      <Section
        title="Now"
        note={`Every ${span(EVERY_MS)} while this page is seen; latencies over the last ten seconds`}
      >
        <div class="plots">
          <Plot title="Tasks per second" times={shown.times} lines={shown.rates} format={rate} />
          <Plot title="Tasks by state" times={shown.times} lines={shown.depths} format={count} />
          <Latencies now={now} />
        </div>
      </Section>
      {now.queues.length > 0 && (
        <Section title="Largest queues" actions={<a href={to("queues")}>All {count(now.queues_total)}</a>}>
          <Table
            caption="The queues with most tasks"
            columns={columns}
            rows={now.queues.slice(0, 10)}
            id={(q) => q.queue}
          />
        </Section>
      )}
      {mayEvery("observe") && <Broker now={now} />}
    </>
  );
}
