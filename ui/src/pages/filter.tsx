// Which tasks of a queue are meant: the fields that lists, cancels and redrives take alike.

import { useState } from "preact/hooks";
import { Field, Form, Given, options } from "../parts";
import { refine } from "../route";
import { STATES, type State } from "../types";

export const REASONS = ["nack", "ack_timeout", "run_limit", "worker_lost", "returned", "absent"];

/** The names that filters have in addresses, of this page and of the API. */
const NAMES = ["older_than_ms", "order_key", "fair_key", "reason", "error_contains"];

/** What a page's address says of the filter, as parameters of the API. */
export function filterOf(search: URLSearchParams): Record<string, string> {
  return Object.fromEntries(
    [...search].filter(
      ([name, value]) => value !== "" && (NAMES.includes(name) || name.startsWith("header.")),
    ),
  );
}

/** The same as fields of a body. */
export function filterBody(filter: Record<string, string>): Record<string, unknown> {
  const body: Record<string, unknown> = {};
  const headers: Record<string, string> = {};
  for (const [name, value] of Object.entries(filter)) {
    if (name.startsWith("header.")) headers[name.slice(7)] = value;
    else body[name] = name === "older_than_ms" ? Number(value) : value;
  }
  return Object.keys(headers).length > 0 ? { ...body, headers } : body;
}

export function FilterForm({
  search,
  queues,
  states,
  keep,
}: {
  search: URLSearchParams;
  /** Names to choose from; none: the queue is given. */
  queues?: string[];
  states?: boolean;
  /** What of the address stays. */
  keep?: Record<string, string>;
}) {
  const filter = filterOf(search);
  const headers = Object.entries(filter)
    .filter(([name]) => name.startsWith("header."))
    .map(([name, value]) => `${name.slice(7)}=${value}`)
    .join(", ");
  const more = Object.keys(filter).length > 0;
  const [open, setOpen] = useState(more);
  const chosen = (search.get("state") ?? "").split(",");
  const send = async (given: Given) => {
    const found: Record<string, string | undefined> = { ...keep };
    if (queues) found["queue"] = given.text("queue");
    if (states) found["state"] = STATES.filter((state: State) => given.has(`state_${state}`)).join(",");
    for (const name of NAMES) found[name] = given.text(name);
    for (const [key, value] of Object.entries(given.pairs("headers", ","))) found[`header.${key}`] = value;
    refine(found);
  };
  const known = queues && !queues.includes(search.get("queue") ?? "");
  return (
    <Form
      key={search.toString()}
      class="filters"
      onSend={send}
      buttons={
        <>
          {(open || queues) && <button class="primary">Show</button>}
          <button type="button" aria-expanded={open} onClick={() => setOpen(!open)}>
            {open ? "Fewer filters" : queues ? "More filters" : "Filter"}
          </button>
          {(more || search.get("state")) && (
            <button
              type="button"
              onClick={() => refine({ ...keep, ...(queues ? { queue: search.get("queue") ?? "" } : {}) })}
            >
              Clear
            </button>
          )}
        </>
      }
    >
      {queues && (
        <Field label="Queue" name="queue" required>
          {known && <option value="">choose one</option>}
          {options(
            search.get("queue") ?? "",
            queues.map((name) => [name, name]),
          )}
        </Field>
      )}
      {states && (
        <fieldset class="states">
          <legend>State</legend>
          <div class="choices">
            {STATES.map((state) => (
              <label key={state}>
                <input type="checkbox" name={`state_${state}`} defaultChecked={chosen.includes(state)} />{" "}
                {state}
              </label>
            ))}
          </div>
        </fieldset>
      )}
      <div class="more" hidden={!open}>
        <Field label="Error contains" name="error_contains" defaultValue={filter["error_contains"]} />
        <Field label="Last attempt failed by" name="reason">
          {options(filter["reason"] ?? "", [
            ["", "anything"],
            ...REASONS.map((word): [string, string] => [word, word.replace("_", " ")]),
          ])}
        </Field>
        <Field
          label="Older than, ms"
          name="older_than_ms"
          type="number"
          min="0"
          step="1"
          defaultValue={filter["older_than_ms"]}
        />
        <Field label="Order key" name="order_key" defaultValue={filter["order_key"]} />
        <Field label="Fair key" name="fair_key" defaultValue={filter["fair_key"]} />
        <Field label="Headers" name="headers" placeholder="key=value, key=value" defaultValue={headers} />
      </div>
    </Form>
  );
}
