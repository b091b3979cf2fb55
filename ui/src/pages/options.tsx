// The options of a submit, for the console and for schedules.

import { useState } from "preact/hooks";
import { Area, Field, Given, options, whole } from "../parts";

const NUMBERS = ["priority", "delay_ms", "ttl_ms", "ack_timeout_ms", "timeout_ms", "max_attempts"];
const TEXTS = ["assign", "sticky_key", "order_key", "fair_key", "dedup_id"];

/** What a schedule keeps of a submit, as the fields start with. */
export type Was = { [option: string]: unknown };

export function SubmitOptions({
  was = {},
  once,
}: {
  was?: Was;
  /** With what makes sense for one submit alone. */
  once: boolean;
}) {
  const target = (was["to"] ?? {}) as { worker?: string; group?: string; all?: boolean; if_absent?: string };
  const [to, setTo] = useState(
    target.worker
      ? "worker"
      : target.group
        ? target.all
          ? "group_all"
          : "group"
        : target.all
          ? "all"
          : "any",
  );
  const complete = was["complete"] as string | { quorum: number } | null | undefined;
  const text = (name: string) => (was[name] === undefined || was[name] === null ? "" : String(was[name]));
  const backoff = (was["backoff"] ?? {}) as Record<string, number | undefined>;
  const headers = Object.entries((was["headers"] ?? {}) as Record<string, string>).map(
    ([key, value]) => `${key}=${value}`,
  );
  const own = (name: string, label: string, hint: string, min: number, max: number) =>
    whole(name, label, was[name], hint, min, max);
  return (
    <>
      <fieldset>
        <legend>Who</legend>
        <Field
          label="To"
          name="to"
          onChange={(event) => setTo((event.currentTarget as HTMLSelectElement).value)}
        >
          {options(to, [
            ["any", "any worker"],
            ["worker", "one worker"],
            ["group", "one of a group"],
            ["all", "every worker"],
            ["group_all", "every worker of a group"],
          ])}
        </Field>
        {to === "worker" && (
          <>
            <Field label="Worker" name="to_worker" required defaultValue={target.worker} />
            <Field label="If it is absent" name="if_absent">
              {options(target.if_absent ?? "wait", [
                ["wait", "wait"],
                ["fail", "fail"],
                ["any", "any other"],
              ])}
            </Field>
          </>
        )}
        {to.startsWith("group") && (
          <Field label="Group" name="to_group" required defaultValue={target.group} />
        )}
        {to.includes("all") && (
          <Field
            label="Complete when acked by"
            name="complete"
            pattern="any|[1-9][0-9]{0,6}"
            title="a number, or any"
            hint="So many of them, or any. Empty: all"
            defaultValue={typeof complete === "object" ? complete?.quorum : complete === "any" ? "any" : ""}
          />
        )}
        <Field label="Assign" name="assign">
          {options(text("assign"), [
            ["", "as the queue says"],
            ["round_robin", "round robin"],
            ["least_loaded", "least loaded"],
            ["sticky", "sticky"],
          ])}
        </Field>
        <Field label="Sticky key" name="sticky_key" maxLength={256} defaultValue={text("sticky_key")} />
      </fieldset>
      <fieldset>
        <legend>When</legend>
        {own("priority", "Priority", "0 to 9. Empty: the queue's, else 4", 0, 9)}
        {own("delay_ms", "Delay, ms", "Before it is queued", 0, 31_536_000_000)}
        {once && (
          <Field
            label="Run at"
            name="run_at"
            type="datetime-local"
            step="1"
            hint="In this computer's time zone"
          />
        )}
        {own("ttl_ms", "Of use for, ms", "Then expired. Empty: for ever", 1, 31_536_000_000)}
        <Field
          label="Order key"
          name="order_key"
          maxLength={256}
          hint="One at a time, in order"
          defaultValue={text("order_key")}
        />
        <Field
          label="Fair key"
          name="fair_key"
          maxLength={256}
          hint="Keys take turns"
          defaultValue={text("fair_key")}
        />
        {once && <Field label="Dedup id" name="dedup_id" maxLength={256} hint="Said again: the same task" />}
      </fieldset>
      <fieldset>
        <legend>Attempts</legend>
        {own("ack_timeout_ms", "Ack timeout, ms", "Empty: the queue's, else 30000", 100, 86_400_000)}
        {own("timeout_ms", "Run limit, ms", "Empty: none", 100, 86_400_000)}
        {own("max_attempts", "Attempts", "Empty: the queue's, else 5", 1, 1000)}
        <Field
          label="First back-off, ms"
          name="initial_ms"
          type="number"
          min="0"
          max="86400000"
          step="1"
          defaultValue={backoff["initial_ms"]}
        />
        <Field
          label="Back-off at most, ms"
          name="max_ms"
          type="number"
          min="0"
          max="86400000"
          step="1"
          defaultValue={backoff["max_ms"]}
        />
        <Field
          label="Times each"
          name="factor"
          type="number"
          min="1"
          max="10"
          step="any"
          defaultValue={backoff["factor"]}
        />
      </fieldset>
      <Area
        label="Headers"
        name="headers"
        rows={2}
        placeholder="key=value, one a line"
        defaultValue={headers.join("\n")}
      />
    </>
  );
}

/** What was filled in, as fields of a submit. */
export function givenOptions(given: Given): Record<string, unknown> {
  const fields: Record<string, unknown> = {};
  for (const name of NUMBERS) {
    const value = given.number(name);
    if (value !== null) fields[name] = value;
  }
  for (const name of TEXTS) if (given.text(name)) fields[name] = given.text(name);
  if (given.text("run_at")) fields["run_at"] = new Date(given.text("run_at")).toISOString();
  const headers = given.pairs("headers");
  if (Object.keys(headers).length > 0) fields["headers"] = headers;
  const backoff = Object.fromEntries(
    ["initial_ms", "max_ms", "factor"]
      .map((name) => [name, given.number(name)])
      .filter(([, value]) => value !== null),
  );
  if (Object.keys(backoff).length > 0) fields["backoff"] = backoff;
  const to = given.text("to");
  if (to === "worker") fields["to"] = { worker: given.text("to_worker"), if_absent: given.text("if_absent") };
  if (to === "group") fields["to"] = { group: given.text("to_group") };
  if (to === "all") fields["to"] = { all: true };
  if (to === "group_all") fields["to"] = { group: given.text("to_group"), all: true };
  const complete = given.text("complete");
  if (complete) fields["complete"] = complete === "any" ? "any" : { quorum: Number(complete) };
  return fields;
}
