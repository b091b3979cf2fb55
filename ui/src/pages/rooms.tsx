// Rooms: listen to what is said, and say something. Nothing is stored: who is not there misses it.

import { clock, fromBase64, hexDump, plural } from "../format";
import { join, leave, request } from "../live";
import { Check, Empty, Field, Form, givenPayload, Head, note, origin, PayloadField, Section, useTail } from "../parts";
import { mayAny, whenLeft } from "../session";
import { Store, useStore } from "../store";
import type { Frame, Json } from "../types";

/** What was heard is kept as long as this page, and no more of it. */
const HEARD_MAX = 200;
/** Of each: one may have a mebibyte. */
const TEXT_MAX = 2000;

interface Heard {
  nth: number;
  at: number;
  frame: Frame;
  text: string;
}

const heard = new Store<Map<string, Heard[]>>(new Map());
whenLeft(() => heard.set(new Map()));
let count = 0;

/** What is kept of a message. */
function keep(frame: Frame): Heard {
  const { payload, payload_b64, ...rest } = frame as Frame & { payload?: Json; payload_b64?: string };
  const text =
    payload_b64 !== undefined
      ? hexDump(fromBase64(payload_b64), 256)
      : typeof payload === "string"
        ? payload
        : (JSON.stringify(payload) ?? "");
  const more = text.length - TEXT_MAX;
  const shown = more > 0 ? `${text.slice(0, TEXT_MAX)}… ${plural(more, "more character")}` : text;
  return { nth: count++, at: Date.now(), frame: { ...rest, plain: typeof payload === "string" }, text: shown };
}

function enter(room: string): void {
  if (heard.value.has(room)) return;
  heard.set(new Map(heard.value).set(room, []));
  join(room, (frame) => {
    const list = heard.value.get(room);
    if (list) heard.stream(new Map(heard.value).set(room, [...list, keep(frame)].slice(-HEARD_MAX)));
  });
}

function exit(room: string): void {
  const left = new Map(heard.value);
  left.delete(room);
  heard.set(left);
  leave(room);
}

function Line({ frame, at, text }: Heard) {
  const said = frame as unknown as {
    from: string;
    seq: number;
    plain?: boolean;
    missed?: number;
    message?: string;
  };
  if (frame.type === "lagged")
    return <li class="dim">{plural(said.missed ?? 0, "message was", "messages were")} missed</li>;
  if (frame.type === "error")
    return (
      <li>
        <span class="badge bad">error</span> {said.message}
      </li>
    );
  return (
    <li>
      <time class="dim">{clock(at)}</time> <span class="dim">{said.seq}</span> <b>{said.from}</b>{" "}
      <span class={said.plain ? "said" : "said mono"}>{text}</span>
    </li>
  );
}

function Room({ name, lines }: { name: string; lines: Heard[] }) {
  const tail = useTail(lines.at(-1)?.nth);
  return (
    <Section
      title={name}
      note={`${plural(lines.length, "message")}${lines.length < HEARD_MAX ? "" : ", the latest"}`}
      actions={
        <button type="button" class="small" onClick={() => exit(name)} aria-label={`Leave ${name}`}>
          Leave
        </button>
      }
    >
      <div class="heard" {...tail} tabIndex={0} role="log" aria-label={`What is said in ${name}`}>
        <ol>
          {lines.map((line) => (
            <Line key={line.nth} {...line} />
          ))}
        </ol>
        {lines.length === 0 && <p class="dim">Nothing yet.</p>}
      </div>
    </Section>
  );
}

export function Rooms() {
  const rooms = useStore(heard);
  return (
    <>
      <Head title="Rooms" />
      {mayAny("consume") && (
        <Form
          class="filters"
          onSend={async (given) => enter(given.text("room"))}
          buttons={<button class="primary">Join</button>}
        >
          <Field
            label="Room"
            name="room"
            required
            maxLength={128}
            pattern="[A-Za-z0-9_\-][A-Za-z0-9_.\-]*"
            title="Letters, digits, _, - and ., not beginning with ."
          />
        </Form>
      )}
      {rooms.size === 0 && mayAny("consume") && (
        <Empty command={`curl --json '{"payload":"hello"}' ${origin()}/v1/rooms/lobby`}>
          You are in no room. Join one to hear what is said in it, then speak here or with:
        </Empty>
      )}
      <div class="rooms">
        {[...rooms].map(([name, lines]) => (
          <Room key={name} name={name} lines={lines} />
        ))}
      </div>
      {mayAny("submit") && (
        <Section title="Publish" note="To whoever is in the room at the moment.">
          <Form
            class="grid"
            onSend={async (given) => {
              const payload = await givenPayload(given, "payload");
              await request({
                type: "publish",
                room: given.text("to"),
                exclude_self: given.has("exclude_self"),
                ...payload,
              });
              note(`Said in ${given.text("to")}.`);
            }}
            buttons={<button class="primary">Publish</button>}
          >
            <Field label="To room" name="to" required maxLength={128} defaultValue={[...rooms.keys()][0]} />
            <PayloadField name="payload" label="Message" rows={3} />
            <Check label="Not to me" name="exclude_self" />
          </Form>
        </Section>
      )}
    </>
  );
}
