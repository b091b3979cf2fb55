// The frame around the pages: who is in, whether it is live, and where one can go.

import { Fragment, render } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { Refused, whoLooks, words } from "./api";
import { count, moment, span } from "./format";
import { blind, link, overview, reconnect, start, stop } from "./live";
import { Dialog, Field, Form, Head, Notices, Questions } from "./parts";
import { go, route, to } from "./route";
import { forgetToken, keepToken, leave, login, mayAny, me, token } from "./session";
import { Store, useStore } from "./store";
import { choice, choose, type Theme } from "./theme";
import { Console } from "./pages/console";
import { Dead } from "./pages/dead";
import { OneQueue } from "./pages/queue";
import { Overview } from "./pages/overview";
import { Queues } from "./pages/queues";
import { Rooms } from "./pages/rooms";
import { Schedules } from "./pages/schedules";
import { OneTask } from "./pages/task";
import { Tasks } from "./pages/tasks";
import { Workers } from "./pages/workers";
import "./styles.css";

/** What keeps the page from beginning, other than a missing token. */
const trouble = new Store<string | null>(null);

async function begin(): Promise<void> {
  try {
    me.set(await whoLooks());
    trouble.set(null);
    start();
  } catch (error) {
    if (error instanceof Refused && error.status === 401) return;
    trouble.set(words(error));
    if (error instanceof Refused && error.failure.retryable) setTimeout(begin, 2000);
  }
}

interface Place {
  page: string;
  name: string;
  shown: () => boolean;
  draw: (name: string) => preact.ComponentChildren;
  /** Pages that belong to it. */
  of?: string;
}

const look = () => mayAny("observe");
const PLACES: Place[] = [
  { page: "overview", name: "Overview", shown: look, draw: () => <Overview /> },
  { page: "queues", name: "Queues", shown: look, draw: () => <Queues /> },
  { page: "queue", name: "", of: "queues", shown: look, draw: (name) => <OneQueue key={name} name={name} /> },
  { page: "tasks", name: "Tasks", shown: () => look() || mayAny("submit"), draw: () => <Tasks /> },
  {
    page: "task",
    name: "",
    of: "tasks",
    shown: () => look() || mayAny("submit"),
    draw: (name) => <OneTask key={name} id={name} />,
  },
  { page: "workers", name: "Workers", shown: look, draw: () => <Workers /> },
  { page: "dead", name: "Dead letters", shown: look, draw: (name) => <Dead key={name} queue={name} /> },
  { page: "schedules", name: "Schedules", shown: look, draw: () => <Schedules /> },
  { page: "rooms", name: "Rooms", shown: () => mayAny("consume") || mayAny("submit"), draw: () => <Rooms /> },
  {
    page: "console",
    name: "Console",
    shown: () => mayAny("submit") || mayAny("consume"),
    draw: () => <Console />,
  },
];

function Live() {
  const state = useStore(link);
  const why = useStore(blind);
  const [, tick] = useState(0);
  useEffect(() => {
    if (state.phase !== "waiting") return;
    const timer = setInterval(() => tick((n) => n + 1), 1000);
    return () => clearInterval(timer);
  }, [state]);
  if (state.phase === "open") {
    return why ? (
      <p class="live warn" role="status">
        Not live: {why}
      </p>
    ) : (
      <p class="live good" role="status">
        <span aria-hidden="true">●</span> Live
      </p>
    );
  }
  if (state.phase === "closed") {
    return (
      <p class="live bad" role="status">
        Not connected ({state.why}){" "}
        <button type="button" class="small" onClick={reconnect}>
          Connect
        </button>
      </p>
    );
  }
  if (state.phase === "waiting") {
    return (
      <p class="live warn" role="status">
        Not connected: {state.why}.{" "}
        <span aria-hidden="true">Again in {span(Math.max(0, Math.ceil((state.until - Date.now()) / 1000)) * 1000)}</span>{" "}
        <button type="button" class="small" onClick={reconnect}>
          Now
        </button>
      </p>
    );
  }
  if (state.phase === "idle") return <p class="live">Not connected</p>;
  return (
    <p class="live" role="status">
      Connecting…
    </p>
  );
}

function Themes() {
  const chosen = useStore(choice);
  const names: [Theme, string][] = [
    ["auto", "System"],
    ["light", "Light"],
    ["dark", "Dark"],
  ];
  return (
    <label class="themes">
      <span>Theme</span>{" "}
      <select value={chosen} onChange={(event) => choose(event.currentTarget.value as Theme)}>
        {names.map(([word, name]) => (
          <option key={word} value={word}>
            {name}
          </option>
        ))}
      </select>
    </label>
  );
}

function Account() {
  const who = useStore(me);
  if (!who) return null;
  if (!who.auth) return <p class="dim">No authentication</p>;
  const logout = () => {
    stop();
    forgetToken();
    login.set({ why: "" });
  };
  return (
    <div class="account">
      <p title={who.allow.join("\n")}>
        <span class="hidden">Logged in as </span>
        <b>{who.account}</b>
        {typeof who.ends_at === "number" && <span class="dim"> · token ends {moment(who.ends_at)}</span>}
      </p>
      <button type="button" class="small" onClick={logout}>
        Log out
      </button>
    </div>
  );
}

function Nav() {
  const who = useStore(me);
  const here = useStore(route);
  const now = useStore(overview);
  const [open, setOpen] = useState(false);
  useEffect(() => setOpen(false), [here]);
  const current = PLACES.find((place) => place.page === here.page);
  const dead = now?.totals.counts.dead ?? 0;
  return (
    <nav aria-label="Pages" class={open ? "open" : ""}>
      <button
        type="button"
        class="menu"
        aria-expanded={open}
        aria-controls="pages"
        onClick={() => setOpen(!open)}
      >
        Menu
      </button>
      <div id="pages">
        <ul>
          {PLACES.filter((place) => place.name && place.shown()).map((place) => {
            const mine = (current?.of ?? current?.page) === place.page;
            return (
              <li key={place.page}>
                <a href={to(place.page)} aria-current={mine ? "page" : undefined}>
                  {place.name}
                  {place.page === "dead" && dead > 0 && (
                    <span class="count bad">
                      {count(dead)}
                      <span class="hidden"> dead</span>
                    </span>
                  )}
                </a>
              </li>
            );
          })}
        </ul>
        <div class="foot">
          <Account />
          <Themes />
          <p class="dim">
            {now ? `Taskyard ${now.version}` : ""}{" "}
            {
              // A link carries no token.
              who && !who.auth && <a href="openapi.json">API</a>
            }
          </p>
        </div>
      </div>
    </nav>
  );
}

function Login() {
  const asked = useStore(login);
  if (!asked) return null;
  const enter = async (text: string) => {
    if (!/^[\x21-\x7e]+$/.test(text))
      throw new Error("This is no token: there is a space in it, or a letter that none has.");
    const before = token.value;
    keepToken(text);
    try {
      const found = await whoLooks();
      // What the one before has looked at is not for everybody.
      if (me.value && me.value.account !== found.account) leave();
      login.set(null);
      stop();
      me.set(found);
      trouble.set(null);
      start();
    } catch (error) {
      if (before) keepToken(before);
      else forgetToken();
      login.set({ why: "" });
      if (error instanceof Refused && error.status === 401) {
        throw new Error("The broker does not take this token: it is wrong, revoked or has ended.");
      }
      throw error;
    }
  };
  return (
    <Dialog title="Log in to Taskyard">
      {asked.why && <p class="box warn">{asked.why}</p>}
      <p>
        This broker asks for a token. One that may look at everything:{" "}
        <code>taskyard token create NAME --allow 'observe:*'</code>
      </p>
      <Form onSend={(given) => enter(given.text("token"))} buttons={<button class="primary">Log in</button>}>
        <Field
          label="Token"
          name="token"
          type="password"
          required
          autofocus
          autocomplete="current-password"
          hint="It is kept in this tab until you log out or close it."
        />
      </Form>
    </Dialog>
  );
}

function Page() {
  const here = useStore(route);
  const who = useStore(me);
  const wrong = useStore(trouble);
  const first = useRef(true);
  const where = `${here.page}/${here.name}`;
  useEffect(() => {
    scrollTo(0, 0);
    // Whoever follows a link stands at the new page's title; not whoever has just arrived.
    if (!first.current) document.getElementById("title")?.focus();
    first.current = false;
  }, [where]);
  if (!who)
    return wrong ? (
      <p class="box bad" role="alert">
        {wrong}
      </p>
    ) : (
      <p class="dim" role="status">
        Connecting…
      </p>
    );
  let place = PLACES.find((one) => one.page === here.page);
  if (place?.of && here.name === "") place = PLACES.find((one) => one.page === place!.of);
  if (!place)
    return (
      <>
        <Head title="No such page" />
        <p class="box warn">
          There is no page “{here.page}”. <a href={to("overview")}>Overview</a>
        </p>
      </>
    );
  if (!place.shown()) {
    const other = PLACES.find((one) => one.name && one.shown());
    if (here.page === "overview" && other) {
      queueMicrotask(() => go(to(other.page)));
      return null;
    }
    return (
      <>
        <Head title={place.name || here.page} />
        <p class="box warn">
          The token of {who.account} does not allow this page. It allows {who.allow.join(", ") || "nothing"}.
        </p>
      </>
    );
  }
  // Another account begins with nothing of the one before.
  return <Fragment key={who.account}>{place.draw(here.name)}</Fragment>;
}

function App() {
  useStore(me);
  const skip = (event: Event) => {
    event.preventDefault();
    document.getElementById("title")?.focus();
  };
  return (
    <>
      <a class="skip" href="#main" onClick={skip}>
        Skip to the page
      </a>
      <header>
        <div class="side">
          <a class="brand" href={to("overview")}>
            <svg width="20" height="20" viewBox="0 0 16 16" aria-hidden="true">
              <rect width="16" height="16" rx="3.5" />
              <path d="M3.5 5h9M3.5 8h6M3.5 11h9" />
            </svg>
            Taskyard
          </a>
          <Live />
          <Nav />
        </div>
      </header>
      <main id="main">
        <Page />
      </main>
      <Login />
      <Questions />
      <Notices />
    </>
  );
}

render(<App />, document.getElementById("app")!);
void begin();
