// The UI from outside: a browser, a broker, workers. See `run`.

import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { chromium } from "playwright-core";
import { Broker, until, workerInPage } from "./broker.mjs";
import { faults } from "./looks.mjs";

const { values: given } = parseArgs({
  options: { broker: { type: "string" }, screenshots: { type: "string" }, only: { type: "string" } },
});
const PATIENCE_MS = 10_000;

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  headless: true,
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
  ],
});

/** What the test at hand has opened. */
let tabs = [];

/** A page that is listened to: what it complains of fails the test, but what a test says is meant to be. */
async function open(broker, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  context.setDefaultTimeout(PATIENCE_MS);
  const page = await context.newPage();
  const tab = { page, context, broker, complaints: [], meant: [], sent: [] };
  tabs.push(tab);
  const complain = (text) => tab.meant.some((one) => one.test(text)) || tab.complaints.push(text);
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type()))
      complain(`${message.text()} (${message.location().url})`);
  });
  page.on("pageerror", (error) => complain(`uncaught: ${error.message}`));
  page.on("request", (request) => {
    if (!request.url().startsWith(broker.url) && !request.url().startsWith("data:"))
      complain(`asked for ${request.url()}`);
  });
  page.on("websocket", (socket) => socket.on("framesent", ({ payload }) => tab.sent.push(String(payload))));
  tab.go = async (hash) => {
    await page.goto(`${broker.url}/#/${hash}`);
    await page.locator("h1").waitFor();
  };
  tab.button = (name, where = page) => where.getByRole("button", { name, exact: true });
  tab.press = (name, where = page) => tab.button(name, where).click();
  tab.row = (id) => page.locator(`[data-row="${id}"]`);
  tab.dialog = page.getByRole("dialog");
  tab.shows = (text) => page.locator("main", { hasText: text }).waitFor();
  tab.notice = (text) => page.locator(".notice", { hasText: text }).first().waitFor();
  tab.fine = () => {
    if (tab.complaints.length > 0)
      throw new Error(`the browser complains:\n  ${tab.complaints.join("\n  ")}`);
  };
  return tab;
}

function same(got, wanted, what) {
  if (JSON.stringify(got) !== JSON.stringify(wanted)) {
    throw new Error(`${what}: expected ${JSON.stringify(wanted)}, got ${JSON.stringify(got)}`);
  }
}

function holds(value, what) {
  if (!value) throw new Error(`this should hold: ${what}`);
}

/** A broker at work: queues that flow, wait, fail, are paused; workers that work, fail and hold. */
async function populate(broker) {
  const context = await browser.newContext();
  const page = await context.newPage();
  await page.goto(`${broker.url}/healthz`);
  const work = (worker) =>
    page.evaluate(workerInPage, { groups: [], labels: {}, token: broker.token, ...worker });
  await work({
    name: "mailer-1",
    queue: "emails",
    credit: 8,
    groups: ["europe"],
    labels: { host: "a7", zone: "fra" },
    how: "ack",
    ms: 30,
  });
  await work({
    name: "mailer-2",
    queue: "emails",
    credit: 8,
    groups: ["europe", "spare"],
    labels: { host: "b2" },
    how: "ack",
    ms: 60,
  });
  await work({ name: "resizer", queue: "thumbnails", credit: 2, groups: ["gpu"], how: "hold" });
  await work({ name: "caller", queue: "webhooks", credit: 4, how: "fail" });
  broker.beside("work", "checksums", "--group", "batch", "--", "cksum");
  for (let nth = 0; nth < 3; nth++) {
    await broker.submit(
      "thumbnails",
      { image: `cat-${nth}.png`, sizes: [64, 256] },
      { headers: { trace: `t${nth}` } },
    );
  }
  for (let nth = 0; nth < 5; nth++) {
    await broker.submit(
      "webhooks",
      { url: `https://example.org/hook/${nth}` },
      {
        max_attempts: 2,
        headers: { customer: nth < 2 ? "acme" : "globex" },
        backoff: { initial_ms: 10, max_ms: 10, factor: 1 },
      },
    );
  }
  for (let nth = 0; nth < 12; nth++) await broker.submit("reports", { month: nth + 1 });
  await broker.submit("reports", { month: 13 }, { delay_ms: 3_600_000 });
  await broker.call("POST", "/v1/queues/invoices/pause", { reason: "prices are being corrected" });
  for (let nth = 0; nth < 3; nth++) await broker.submit("invoices", { customer: nth });
  await broker.call("PUT", "/v1/queues/emails", {
    max_leased: 64,
    rate_per_s: 500,
    defaults: { max_attempts: 3 },
  });
  await broker.call("PUT", "/v1/schedules/nightly", {
    queue: "reports",
    cron: "30 2 * * *",
    tz: "Europe/Zurich",
    payload: { kind: "nightly" },
  });
  await broker.call("PUT", "/v1/schedules/heartbeat", {
    queue: "checksums",
    every_ms: 60_000,
    payload: "tick",
  });
  await until(
    "dead letters",
    async () => (await broker.call("GET", "/v1/queues/webhooks")).counts.dead === 5,
  );
  await until(
    "the worker of checksums",
    async () => (await broker.call("GET", "/v1/queues/checksums")).workers === 1,
  );
  // Something flows as long as the pages are looked at.
  let going = true;
  let turn = 0;
  const flow = (async () => {
    while (going) {
      const many = 6 + Math.round(5 * Math.sin(turn++ / 7));
      await Promise.all(
        Array.from({ length: many }, (_, nth) =>
          broker.submit("emails", { to: `user-${nth}@example.org` }).catch(() => undefined),
        ),
      );
      await new Promise((resolve) => setTimeout(resolve, 150));
    }
  })();
  return async () => {
    going = false;
    await flow;
    await context.close();
  };
}

const PAGES = (some) => [
  ["overview", "overview", "Largest queues"],
  ["queues", "queues", "invoices"],
  ["queue", "queue/emails", "Back-off"],
  ["tasks", "tasks?queue=reports&state=queued,scheduled", "scheduled"],
  ["task", `task/${some.held}`, "Events"],
  ["task-dead", `task/${some.dead}`, "Failed attempts"],
  ["workers", "workers", "resizer"],
  ["dead", "dead/webhooks", "550"],
  ["dead-all", "dead", "webhooks"],
  ["schedules", "schedules", "nightly"],
  ["rooms", "rooms", "Publish"],
  ["console", "console", "Submitted here"],
  ["console-worker", "console?queue=reports&do=work", "Which tasks"],
];

/** What opens over a page. */
const DIALOGS = [
  ["dialog-pause", "queues?name=re", "reports", (tab) => tab.press("Pause reports")],
  ["dialog-purge", "queues?name=re&again", "reports", (tab) => tab.press("Purge reports")],
  ["dialog-schedule", "schedules", "nightly", (tab) => tab.press("Edit nightly")],
  [
    "working",
    "console?queue=reports&do=work&again",
    "Which tasks",
    async (tab) => {
      await tab.press("Start working");
      await tab.page.locator(".held").waitFor();
    },
  ],
];

/** Ends what was opened so. */
async function over(tab, name) {
  if (name === "working") await tab.press("Stop working");
  else await tab.page.keyboard.press("Escape");
}

async function pagesOf(broker) {
  const {
    tasks: [held],
  } = await broker.call("GET", "/v1/queues/thumbnails/tasks?state=leased");
  const {
    tasks: [dead],
  } = await broker.call("GET", "/v1/queues/webhooks/dead");
  return PAGES({ held: held.task, dead: dead.task });
}

/** What a page shows when it is there: a heading or a word of its own. */
async function settled(tab, word) {
  await tab.page.getByText(word).first().waitFor();
  await tab.page.getByText("Loading…").waitFor({ state: "detached" });
}

const TESTS = {
  async "every page is in order, wide and narrow, light and dark"(broker) {
    for (const [width, scheme] of [
      [1280, "light"],
      [1280, "dark"],
      [1024, "light"],
      [768, "light"],
      [360, "light"],
      [360, "dark"],
    ]) {
      const tab = await open(broker, { viewport: { width, height: 800 }, colorScheme: scheme });
      for (const [name, hash, word, act] of [...(await pagesOf(broker)), ...DIALOGS]) {
        await tab.go(hash);
        await settled(tab, word);
        if (act) await act(tab);
        const found = await tab.page.evaluate(faults);
        holds(found.length === 0, `${name}, ${width} wide, ${scheme}, is in order:\n  ${found.join("\n  ")}`);
        if (act) await over(tab, name);
      }
      tab.fine();
      await tab.context.close();
    }
  },

  async "the overview is live, and names what wants attention"(broker) {
    const tab = await open(broker);
    await tab.go("overview");
    const figure = (name) =>
      tab.page
        .locator(".tile")
        .filter({
          has: tab.page.locator("dt", { hasText: new RegExp(`^${name}$`) }),
        })
        .locator(".figure");
    await until("a rate", async () => parseFloat(await figure("Acked").innerText()) > 1);
    for (const text of [
      "5 dead letters in webhooks",
      "invoices is paused, 3 tasks wait",
      "12 tasks wait in reports",
    ]) {
      await tab.shows(text);
    }
    same(await figure("Dead letters").innerText(), "5", "dead letters");
    await tab.page.locator(".plot canvas").nth(2).waitFor();
    const legend = tab.page.locator(".plot", { hasText: "Latency by hop" }).locator("dd").first();
    await until("a latency", async () => /[µm]?s$/.test(await legend.innerText()));
    await tab.page.getByRole("radio", { name: "p50" }).check();
    await tab.page.getByRole("radio", { name: "p50", checked: true }).waitFor();
    // What it leads to.
    await tab.page.getByRole("link", { name: "5 dead letters" }).click();
    await tab.page.getByRole("heading", { name: "Dead letters of webhooks" }).waitFor();
    tab.fine();
  },

  async "nothing is sampled while nobody looks"(broker) {
    const tab = await open(broker);
    await tab.go("overview");
    await tab.page.locator(".live.good").waitFor();
    const hide = (hidden) =>
      tab.page.evaluate((hidden) => {
        Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
      }, hidden);
    const observes = () =>
      tab.sent.filter((frame) => frame.includes('"observe"')).map((frame) => JSON.parse(frame).every_ms);
    await hide(true);
    await until("the end of overviews", () => observes().at(-1) === 0);
    await hide(false);
    await until("overviews again", () => observes().at(-1) === 1000);
    holds(!tab.sent.some((frame) => frame.includes("subscribe")), "a page that looks takes no tasks");
    tab.fine();
  },

  async "a queue is declared, set, paused, unpaused and purged"(broker) {
    const tab = await open(broker);
    await tab.go("queues");
    await tab.press("Declare a queue");
    await tab.dialog.getByLabel("Name").fill("made.here");
    await tab.press("Declare", tab.dialog);
    await tab.page.getByRole("heading", { name: "made.here" }).waitFor();
    await tab.page.getByLabel("Assign").selectOption("least_loaded");
    await tab.page.getByLabel("Deliver").selectOption("early");
    await tab.page.getByLabel("Priorities").selectOption("aged");
    const wanted = {
      "Head start, ms": "5000",
      Tasks: "1000",
      Bytes: "1000000",
      "With workers": "7",
      "Tasks a second": "2.5",
      "Keep results, ms": "60000",
      Priority: "6",
      "Of use for, ms": "3600000",
      "Ack timeout, ms": "5000",
      "Run limit, ms": "9000",
      Attempts: "2",
      "First, ms": "10",
      "At most, ms": "20",
      "Times each": "1.5",
    };
    for (const [label, value] of Object.entries(wanted))
      await tab.page.getByLabel(label, { exact: true }).fill(value);
    await tab.press("Save settings");
    await tab.notice("hold from now on");
    const { settings } = await broker.call("GET", "/v1/queues/made.here");
    same(
      settings,
      {
        assign: "least_loaded",
        deliver: "early",
        order: { aged: { headstart_ms: 5000 } },
        max_tasks: 1000,
        max_bytes: 1000000,
        max_leased: 7,
        rate_per_s: 2.5,
        keep_result_ms: 60000,
        defaults: {
          priority: 6,
          ttl_ms: 3600000,
          ack_timeout_ms: 5000,
          timeout_ms: 9000,
          max_attempts: 2,
          backoff: { initial_ms: 10, max_ms: 20, factor: 1.5 },
        },
      },
      "settings",
    );
    // What is emptied is reset; what the broker refuses is said in its words.
    for (const label of ["Tasks", "First, ms", "At most, ms", "Times each"])
      await tab.page.getByLabel(label, { exact: true }).fill("");
    await tab.press("Save settings");
    await until("the reset", async () => {
      const { settings } = await broker.call("GET", "/v1/queues/made.here");
      return settings.max_tasks === null && settings.defaults.backoff === null;
    });
    await tab.press("Pause");
    await tab.dialog.getByLabel("Reason").fill("a look at the data");
    await tab.dialog.getByLabel("For how many minutes").fill("5");
    await tab.press("Pause", tab.dialog);
    await tab.shows("a look at the data");
    const { paused } = await broker.call("GET", "/v1/queues/made.here");
    holds(
      paused.reason === "a look at the data" && paused.in_ms > 200_000 && paused.in_ms <= 300_000,
      "it is paused",
    );
    await broker.submit("made.here", 1);
    await broker.submit("made.here", 2);
    await tab.go("queues");
    await tab.page.getByLabel("Name contains").fill("made");
    await until("the filter", async () => (await tab.page.locator("tbody tr").count()) === 1);
    await tab.press("Unpause made.here");
    await tab.notice("delivers again");
    await tab.row("made.here").getByText("2", { exact: true }).first().waitFor();
    await tab.press("Purge made.here");
    await tab.dialog.getByText("2 tasks at the moment").waitFor();
    await tab.page.keyboard.press("Escape");
    same(
      (await broker.call("GET", "/v1/queues/made.here")).counts.queued,
      2,
      "tasks after a purge that was called off",
    );
    await tab.press("Purge made.here");
    await tab.press("Purge 2 tasks", tab.dialog);
    await tab.notice("2 tasks of made.here cancelled");
    same((await broker.call("GET", "/v1/queues/made.here")).counts.queued, 0, "tasks after the purge");
    tab.fine();
  },

  async "a queue's own page shows it live"(broker) {
    const tab = await open(broker);
    await tab.go("queue/emails");
    const legend = tab.page.locator(".plot", { hasText: "Tasks per second" }).locator("dd").first();
    await until("a rate", async () => parseFloat(await legend.innerText()) > 1);
    await tab
      .row("mailer-1")
      .or(tab.page.getByRole("link", { name: "mailer-1" }))
      .first()
      .waitFor();
    holds(
      tab.sent.some((frame) => frame.includes('"queues":["emails"]')),
      "it is asked for by name",
    );
    tab.meant.push(/404/);
    await tab.go("queue/none-such");
    await tab.shows("there is no queue none-such");
    tab.fine();
  },

  async "tasks are found by id, by state and by filter, and cancelled"(broker) {
    const tab = await open(broker);
    const ids = [];
    for (const [nth, customer] of ["acme", "acme", "globex", "initech"].entries()) {
      const { task } = await broker.submit(
        "sorting",
        { nth },
        { headers: { customer }, order_key: `k${nth}` },
      );
      ids.push(task);
    }
    await tab.go("tasks");
    await tab.page.getByLabel("Task by its id").fill("no id");
    await tab.press("Find");
    await tab.shows("has 36 characters");
    await tab.page.getByLabel("Task by its id").fill(ids[0]);
    await tab.press("Find");
    await tab.shows(ids[0]);
    await tab.shows("nobody is subscribed to the queue");
    await tab.page.locator("pre", { hasText: '"nth": 0' }).waitFor();
    await tab.shows("customer");
    await tab.go("tasks");
    await tab.page.getByLabel("Queue", { exact: true }).selectOption("sorting");
    await tab.page.getByLabel("queued", { exact: true }).check();
    await tab.press("More filters");
    await tab.page.getByLabel("Headers").fill("customer=acme");
    await tab.press("Show");
    await until("the two of acme", async () => (await tab.page.locator("tbody tr").count()) === 2);
    await tab.press("Cancel all that match");
    await tab.press("Cancel 2 tasks", tab.dialog);
    await tab.notice("2 tasks cancelled");
    same(
      await Promise.all(ids.map((id) => broker.state(id))),
      ["cancelled", "cancelled", "queued", "queued"],
      "states",
    );
    await tab.press("Clear");
    await tab.row(ids[2]).getByRole("checkbox").check();
    await tab.press("Cancel the 1 chosen");
    await tab.press("Cancel 1 task", tab.dialog);
    await until("the end of the third", async () => (await broker.state(ids[2])) === "cancelled");
    await tab.go(`task/${ids[3]}`);
    await tab.press("Cancel");
    await tab.press("Cancel the task", tab.dialog);
    await tab.page.locator(".facts", { hasText: "cancelled" }).first().waitFor();
    same(await broker.state(ids[3]), "cancelled", "the fourth");
    tab.meant.push(/404/);
    await tab.go("task/0198c0de-0000-7000-8000-000000000001");
    await tab.shows("There is no such task");
    tab.fine();
  },

  async "a task is followed while a worker has it"(broker) {
    const tab = await open(broker);
    const {
      tasks: [held],
    } = await broker.call("GET", "/v1/queues/thumbnails/tasks?state=leased");
    await tab.go(`task/${held.task}`);
    await tab.shows("resizer");
    await tab.page.locator(".events progress").first().waitFor();
    await tab.shows('{"step":"resize"}');
    await tab.press("Cancel");
    await tab.dialog.getByText("resizer is asked to stop").waitFor();
    await tab.press("Cancel the task", tab.dialog);
    await until("its end", async () => (await broker.state(held.task)) === "cancelled");
    await tab.page.locator(".events .badge", { hasText: "cancelled" }).waitFor();
    await broker.submit("thumbnails", { image: "another.png" });
    tab.fine();
  },

  async "workers are found, drained and disconnected"(broker) {
    const tab = await open(broker);
    await tab.page.goto(`${broker.url}/healthz`);
    for (const name of ["temp-1", "temp-2"]) {
      await tab.page.evaluate(workerInPage, {
        name,
        queue: "temp",
        credit: 3,
        groups: ["temps"],
        labels: { host: "x9" },
        how: "hold",
      });
    }
    const other = await open(broker);
    await other.go("workers?find=temps");
    await until(
      "both",
      async () => (await other.page.locator("table").first().locator("tbody tr").count()) === 2,
    );
    await other.shows("host=x9");
    await other.press("Drain temp-1");
    await other.press("Drain 1 worker", other.dialog);
    await other.notice("temp-1 was asked to finish");
    await other.page.locator("tr", { hasText: "temp-1" }).getByText("draining").waitFor();
    await broker.submit("temp", 1);
    await other.page.locator("tr", { hasText: "temp-2" }).getByText("1 of 3").waitFor();
    await other.press("Disconnect temp-2");
    await other.dialog.getByText("the 1 task that it holds").waitFor();
    await other.press("Disconnect 1 worker", other.dialog);
    await other.notice("temp-2 is disconnected");
    await until(
      "its end",
      async () => !(await broker.call("GET", "/v1/workers")).workers.some((one) => one.worker === "temp-2"),
    );
    other.fine();
    await tab.context.close();
  },

  async "dead letters are redriven and deleted, one, some and all"(broker) {
    const tab = await open(broker);
    const dead = async () => (await broker.call("GET", "/v1/queues/graves")).counts.dead;
    const socket = await open(broker);
    await socket.page.goto(`${broker.url}/healthz`);
    await socket.page.evaluate(workerInPage, {
      name: "digger",
      queue: "graves",
      credit: 9,
      groups: [],
      labels: {},
      how: "fail",
      ms: 0,
    });
    for (let nth = 0; nth < 6; nth++) {
      await broker.submit("graves", nth, {
        max_attempts: 1,
        headers: { customer: nth < 2 ? "acme" : "globex" },
      });
    }
    await until("six dead", async () => (await dead()) === 6);
    await socket.context.close();
    await until("no worker", async () => (await broker.call("GET", "/v1/queues/graves")).workers === 0);
    await tab.go("dead");
    await tab.page.getByRole("link", { name: "graves" }).click();
    await until("six rows", async () => (await tab.page.locator("tbody tr").count()) === 6);
    await tab.page.locator("tbody tr").nth(0).getByRole("checkbox").check();
    await tab.press("Redrive the 1 chosen");
    await tab.press("Redrive 1 dead letter", tab.dialog);
    await tab.notice("1 dead letter of graves redriven");
    same(await dead(), 5, "left");
    await until("five rows", async () => (await tab.page.locator("tbody tr").count()) === 5);
    await tab.page.locator("tbody tr").nth(4).getByRole("checkbox").check();
    await tab.press("Delete the 1 chosen");
    await tab.press("Delete 1 dead letter", tab.dialog);
    await until("four", async () => (await dead()) === 4);
    await tab.press("Filter");
    await tab.page.getByLabel("Headers").fill("customer=acme");
    await tab.press("Show");
    await until("one of acme", async () => (await tab.page.locator("tbody tr").count()) === 1);
    await tab.press("Redrive all that match");
    await tab.dialog.getByLabel("At most so many a second").fill("100");
    await tab.press("Redrive 1 dead letter", tab.dialog);
    await until("three", async () => (await dead()) === 3);
    await tab.press("Clear");
    await until("three rows", async () => (await tab.page.locator("tbody tr").count()) === 3);
    const {
      tasks: [one],
    } = await broker.call("GET", "/v1/queues/graves/dead");
    await tab.go(`task/${one.task}`);
    await tab.shows("smtp: 550");
    await tab.press("Redrive");
    await until("two", async () => (await dead()) === 2);
    await tab.go("dead/graves");
    await tab.page.getByRole("checkbox", { name: "Choose all that are shown" }).check();
    await tab.button("Delete the 2 chosen").waitFor();
    await tab.press("Delete all");
    await tab.press("Delete 2 dead letters", tab.dialog);
    await until("none", async () => (await dead()) === 0);
    tab.fine();
  },

  async "schedules are made, changed and deleted"(broker) {
    const tab = await open(broker);
    await tab.go("schedules");
    await tab.press("New schedule");
    await tab.dialog.getByLabel("Name").fill("weekly");
    await tab.dialog.getByLabel("Queue").fill("reports");
    await tab.dialog.getByLabel("Pattern").fill("not a pattern");
    await tab.dialog.getByLabel("Time zone").fill("Asia/Tokyo");
    await tab.dialog.getByRole("textbox", { name: "Payload" }).fill('{"kind":"weekly"}');
    tab.meant.push(/400/);
    await tab.press("Make the schedule", tab.dialog);
    await tab.dialog.getByRole("alert").waitFor();
    await tab.dialog.getByLabel("Pattern").fill("0 6 * * 1");
    await tab.dialog.getByText("Options of each submit").click();
    await tab.dialog.getByLabel("Priority", { exact: true }).fill("7");
    await tab.press("Make the schedule", tab.dialog);
    await tab.notice("weekly is in force");
    const made = await broker.call("GET", "/v1/schedules/weekly");
    same(
      [made.cron, made.tz, made.payload, made.priority],
      ["0 6 * * 1", "Asia/Tokyo", { kind: "weekly" }, 7],
      "the schedule",
    );
    await tab.row("weekly").getByText("Asia/Tokyo").waitFor();
    await tab.press("Edit weekly");
    await tab.dialog.getByLabel("By", { exact: true }).selectOption("every");
    await tab.dialog.getByLabel("Every, ms").fill("250");
    await tab.press("Save", tab.dialog);
    await until("a task of it", async () => (await broker.call("GET", "/v1/schedules/weekly")).fired > 0);
    const changed = await broker.call("GET", "/v1/schedules/weekly");
    same(
      [changed.every_ms, changed.priority, changed.payload],
      [250, 7, { kind: "weekly" }],
      "what was changed, and what stays",
    );
    await tab.press("Delete weekly");
    await tab.press("Delete 1 schedule", tab.dialog);
    await tab.notice("weekly is deleted");
    await tab.row("weekly").waitFor({ state: "detached" });
    // What is not touched stays as it was: every option, every digit.
    const whole = {
      queue: "reports",
      every_ms: 3_600_000,
      headers: { list: "a=1, b=2" },
      to: { all: true },
      complete: { quorum: 2 },
    };
    const text = JSON.stringify({ ...whole, payload: 0 }).replace('"payload":0', '"payload":9007199254740993');
    const address = `${broker.url}/v1/schedules/whole`;
    await fetch(address, { method: "PUT", headers: { "Content-Type": "application/json" }, body: text });
    await tab.go("schedules");
    await tab.press("Edit whole");
    await tab.press("Save", tab.dialog);
    await tab.notice("Schedule whole is in force");
    const kept = await (await fetch(address)).text();
    holds(kept.includes("9007199254740993"), `every digit is kept: ${kept}`);
    const { headers, complete } = JSON.parse(kept);
    same({ headers, complete }, { headers: whole.headers, complete: whole.complete }, "what was not touched");
    await broker.call("DELETE", "/v1/schedules/whole");
    tab.fine();
  },

  async "rooms are heard, and spoken in"(broker) {
    const [anna, berta] = [await open(broker), await open(broker)];
    for (const tab of [anna, berta]) {
      await tab.go("rooms");
      await tab.page.locator(".live.good").waitFor();
      await tab.page.getByLabel("Room", { exact: true }).fill("lobby");
      await tab.press("Join");
      await tab.page.getByRole("heading", { name: "lobby" }).waitFor();
    }
    await until("both in the room", async () => {
      await broker.call("POST", "/v1/rooms/lobby", { payload: { from: "outside" } });
      return (await Promise.all([anna, berta].map((tab) => tab.page.getByText("outside").count()))).every(
        (count) => count > 0,
      );
    });
    await anna.page.getByLabel("To room").fill("lobby");
    await anna.page.getByRole("radio", { name: "Text" }).check();
    await anna.page.getByRole("textbox", { name: "Message" }).fill("hello <b>all</b>");
    await anna.press("Publish");
    await berta.shows("hello <b>all</b>");
    await anna.page.getByRole("radio", { name: "Bytes, as hex" }).check();
    await anna.page.getByRole("textbox", { name: "Message" }).fill("00 ff 41");
    await anna.page.getByLabel("Not to me").check();
    await anna.press("Publish");
    await berta.shows("00 ff 41");
    same(
      await anna.page.locator(".heard", { hasText: "00 ff 41" }).count(),
      0,
      "what was not for the speaker",
    );
    await berta.press("Leave lobby");
    await berta.shows("You are in no room");
    anna.fine();
    berta.fine();
  },

  async "the console submits text and bytes, and works by hand"(broker) {
    const tab = await open(broker);
    await tab.go("console?queue=bench");
    await tab.page.locator(".live.good").waitFor();
    await tab.page.getByRole("textbox", { name: "Payload" }).fill("{not json");
    await tab.press("Submit");
    await tab.shows("is not JSON");
    await tab.page.getByRole("textbox", { name: "Payload" }).fill('{"n":1}');
    await tab.page.getByText("Options", { exact: true }).click();
    await tab.page.getByLabel("Priority", { exact: true }).fill("8");
    await tab.page.getByLabel("Headers").fill("trace=abc");
    await tab.press("Submit");
    await tab.notice("1 task accepted");
    await tab.page.getByRole("radio", { name: "Text" }).check();
    await tab.page.getByRole("textbox", { name: "Payload" }).fill("plain words");
    await tab.press("Submit");
    await tab.page.getByRole("radio", { name: "Bytes, as hex" }).check();
    await tab.page.getByRole("textbox", { name: "Payload" }).fill("cafe 00");
    await tab.page.getByLabel("How many times").fill("3");
    await tab.press("Submit");
    await tab.notice("3 tasks accepted");
    await tab.page.getByRole("radio", { name: "File" }).check();
    await tab.page
      .getByLabel("Payload: file")
      .setInputFiles({ name: "a.bin", mimeType: "application/octet-stream", buffer: Buffer.from([1, 2, 3]) });
    await tab.page.getByLabel("How many times").fill("1");
    await tab.press("Submit");
    await until("all six", async () => (await broker.call("GET", "/v1/queues/bench")).counts.queued === 6);

    await tab.press("Be a worker");
    await tab.page.getByLabel("Name").fill("by-hand");
    await tab.page.getByLabel("Groups").fill("humans");
    await tab.page.getByLabel("Credit").fill("2");
    await tab.press("Start working");
    const held = tab.page.locator(".held");
    await until("two tasks", async () => (await held.count()) === 2);
    const { workers } = await broker.call("GET", "/v1/workers");
    same(workers.find((one) => one.worker === "by-hand")?.groups, ["humans"], "groups");
    await held.first().locator("pre", { hasText: '"n": 1' }).waitFor();
    await tab.shows("trace=abc");
    const first = await held.first().locator("a").innerText();
    await held.first().getByLabel("Percent").fill("35");
    await tab.press("Tell progress", held.first());
    await tab.press("Extend", held.first());
    await tab.press("Start", held.first());
    await tab.press("Ack with a result…", held.first());
    await held.first().getByRole("textbox", { name: "Result" }).fill('{"ok":true}');
    await tab.press("Ack", held.first());
    await until("its end", async () => (await broker.state(first)) === "done");
    same((await broker.call("GET", `/v1/tasks/${first}`)).result, { ok: true }, "the result");
    const second = held.filter({ hasText: "plain words" });
    const refused = await second.locator("a").innerText();
    await tab.press("Nack…", second);
    await second.getByLabel("Error").fill("not today");
    await second.getByLabel("No further attempt").check();
    await tab.press("Nack", second);
    await until("its death", async () => (await broker.state(refused)) === "dead");
    same((await broker.call("GET", `/v1/tasks/${refused}`)).error, "not today", "the error");
    await held.first().locator("pre", { hasText: "ca fe 00" }).waitFor();
    await tab.press("Release", held.first());
    await tab.page.getByLabel("Then").selectOption("ack");
    await until("a second one", async () => (await held.count()) > 0);
    await tab.press("Ack", held.first());
    await until("the rest", async () => {
      if ((await held.count()) > 0)
        await tab
          .button("Ack", held.first())
          .click({ timeout: 500 })
          .catch(() => undefined);
      return (await broker.call("GET", "/v1/queues/bench")).counts.done === 5;
    });
    await tab.page.locator(".heard", { hasText: '"type":"settled"' }).waitFor();
    await tab.press("Stop working");
    await tab.button("Start working").waitFor();
    await tab.press("Submit tasks");
    await tab.page.locator(".worries li", { hasText: "done" }).first().waitFor();
    await tab.page.locator(".worries li", { hasText: "not today" }).waitFor();
    await tab.press("Be a worker");
    await tab.page.getByLabel("What to do with them").selectOption("slow");
    await tab.press("Start working");
    const { task } = await broker.submit("bench", "slowly");
    await tab.page.locator(".held progress").waitFor();
    await tab.page.getByText("holds 1").waitFor();
    await broker.call("DELETE", `/v1/tasks/${task}`);
    await tab.shows("stop: cancelled");
    await tab.press("Broken off");
    await until("its end", async () => (await broker.state(task)) === "cancelled");
    await tab.press("Stop working");
    // What is shown no longer is watched no longer.
    await tab.press("Submit tasks");
    await tab.page.getByLabel("Queue", { exact: true }).fill("nobody-works-here");
    await tab.press("Submit");
    await tab.page.locator(".worries li", { hasText: "nobody-works-here" }).waitFor();
    await tab.press("Clear");
    await until("the end of the watch", () => tab.sent.some((frame) => frame.includes('"unwatch"')));
    tab.fine();
  },

  async "the keyboard is enough, and the theme can be chosen"(broker) {
    const tab = await open(broker);
    await tab.go("queues");
    await tab.row("invoices").waitFor();
    const focus = () => tab.page.evaluate(() => document.activeElement?.textContent?.trim());
    await tab.page.keyboard.press("Tab");
    same(await focus(), "Skip to the page", "the first stop");
    await tab.page.keyboard.press("Enter");
    same(await focus(), "Queues", "where it skips to");
    await tab.button("Pause reports").focus();
    await tab.page.keyboard.press("Enter");
    await tab.dialog.waitFor();
    const within = await tab.page.evaluate(() => Boolean(document.activeElement?.closest("dialog")));
    holds(within, "the focus is in the dialog");
    await tab.page.keyboard.press("Escape");
    await tab.dialog.waitFor({ state: "detached" });
    await until("the focus where it was", () =>
      tab.page.evaluate(() => document.activeElement?.getAttribute("aria-label") === "Pause reports"),
    );
    await tab.button("Queued").focus();
    await tab.page.keyboard.press("Enter");
    same(
      await tab.page.locator('th[aria-sort="descending"] button').textContent(),
      "Queued▾",
      "the column that is sorted by",
    );
    await tab.page.getByRole("link", { name: "Workers", exact: true }).first().focus();
    await tab.page.keyboard.press("Enter");
    await tab.page.getByRole("heading", { name: "Workers" }).waitFor();
    same(await focus(), "Workers", "the focus on a new page");
    const theme = () => tab.page.evaluate(() => document.documentElement.dataset.theme);
    await tab.page.getByLabel("Theme").selectOption("dark");
    same(await theme(), "dark", "the theme");
    await tab.page.reload();
    await tab.page.locator("h1").waitFor();
    same(await theme(), "dark", "the theme after a reload");
    await tab.page.getByLabel("Theme").selectOption("auto");
    same(await theme(), "light", "the system's");
    tab.fine();
  },

  async "a broker that goes away and comes back is taken up again"() {
    const broker = await Broker.start(given.broker);
    const tab = await open(broker);
    try {
      await tab.go("rooms");
      await tab.page.locator(".live.good").waitFor();
      await tab.page.getByLabel("Room", { exact: true }).fill("lobby");
      await tab.press("Join");
      tab.meant.push(/ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE/);
      await broker.kill();
      await tab.page.getByText("Not connected").waitFor();
      await broker.run();
      await tab.page.locator(".live.good").waitFor();
      await until("the room again", async () => {
        await broker.call("POST", "/v1/rooms/lobby", { payload: "back again" });
        return (await tab.page.getByText("back again").count()) > 0;
      });
      await tab.go("overview");
      await tab.shows("Nothing here yet");
      await tab.go("queues");
      await tab.shows("There is no queue yet");
      tab.fine();
    } finally {
      await broker.end();
    }
  },

  async "what tasks and workers say of themselves stays text, and breaks no page"() {
    const broker = await Broker.start(given.broker);
    try {
      const markup = `"><img src=x onerror="window.ran=1"><script>window.ran=1</script>`;
      const turned = "\u202Eturned around\u2066";
      const worker = await open(broker);
      await worker.page.goto(`${broker.url}/healthz`);
      await worker.page.evaluate(workerInPage, {
        name: `w${"w".repeat(127)}`,
        queue: "hostile",
        credit: 1,
        groups: ["g".repeat(128)],
        labels: { [markup]: turned, long: "L".repeat(3000) },
        how: "fail",
        error: `${markup}\n${turned}\n${"E".repeat(3500)}`,
        ms: 0,
      });
      const carried = {
        max_attempts: 1,
        headers: { [markup]: markup, [`k${"k".repeat(500)}`]: turned, long: "v".repeat(2000) },
      };
      const { task } = await broker.submit("hostile", { [markup]: markup, turned }, carried);
      await until("its death", async () => (await broker.state(task)) === "dead");
      const name = "q".repeat(128);
      await broker.submit(name, "x".repeat(900_000));
      await broker.call("POST", `/v1/queues/${name}/pause`, { reason: `${markup}${turned}`.slice(0, 200) });
      for (const width of [1280, 360]) {
        const tab = await open(broker, { viewport: { width, height: 800 } });
        tab.meant.push(/40[04]/);
        for (const [hash, word] of [
          ["overview", name],
          ["queues", name],
          [`queue/${name}`, "onerror"],
          ["workers", "onerror"],
          ["dead/hostile", "onerror"],
          [`task/${task}`, "onerror"],
          ["queue/..", "is not a queue name"],
          ["task/%3Cscript%3E", "<script>"],
          ["%3Cscript%3E", "There is no page"],
        ]) {
          await tab.go(hash);
          await tab.shows(word);
          const found = await tab.page.evaluate(faults);
          holds(found.length === 0, `${hash}, ${width} wide, is in order:\n  ${found.join("\n  ")}`);
          same(await tab.page.evaluate(() => window.ran ?? null), null, "what ran");
        }
        await tab.go(`task/${task}`);
        await tab.page.locator("pre", { hasText: "\\u202eturned around\\u2066" }).waitFor();
        tab.fine();
        await tab.context.close();
      }
    } finally {
      await broker.end();
    }
  },

  async "of many queues the first are drawn, as they are sorted"() {
    const broker = await Broker.start(given.broker);
    const tab = await open(broker);
    try {
      const all = Array.from({ length: 150 }, (_, nth) => `many-${nth}`);
      await Promise.all(all.map((queue) => broker.submit(queue, 1)));
      await broker.submit("many-149", 2);
      await tab.go("queues");
      await tab.shows("150 queues");
      same(await tab.page.locator("tbody tr").count(), 100, "rows");
      await tab.press("Queued");
      await until(
        "the deepest",
        async () => (await tab.page.locator("tbody th a").first().innerText()) === "many-149",
      );
      tab.fine();
    } finally {
      await broker.end();
    }
  },

  async "a broker that stands still is not called live"() {
    const broker = await Broker.start(given.broker);
    const tab = await open(broker);
    try {
      await tab.go("overview");
      await tab.page.locator(".live.good").waitFor();
      broker.stall(true);
      await tab.page.locator(".live.warn", { hasText: "nothing comes from the broker" }).waitFor();
      broker.stall(false);
      await tab.page.locator(".live.good").waitFor();
      tab.fine();
    } finally {
      broker.stall(false);
      await broker.end();
    }
  },

  async "a token is asked for, kept in the tab, and what it may not do is not offered"() {
    const broker = await Broker.start(given.broker, { TASKYARD_ADMIN_TOKEN: "the-administrators-own-token" });
    broker.token = "the-administrators-own-token";
    try {
      await broker.submit("emails", 1);
      await broker.submit("mail.in", 2);
      const tab = await open(broker);
      tab.meant.push(/401/);
      await tab.page.goto(broker.url);
      await tab.dialog.waitFor();
      for (let nth = 0; nth < 3; nth++) await tab.page.keyboard.press("Escape");
      await tab.dialog.getByLabel("Token").fill("guessed");
      await tab.press("Log in", tab.dialog);
      await tab.dialog.getByRole("alert").waitFor();
      await tab.dialog.getByLabel("Token").fill(broker.token);
      await tab.press("Log in", tab.dialog);
      await tab.page.locator(".live.good").waitFor();
      await tab.shows("Largest queues");
      const kept = await tab.page.evaluate(() => [
        Object.values(sessionStorage),
        JSON.stringify(localStorage),
        document.cookie,
      ]);
      same(kept, [[broker.token], "{}", ""], "where the token is kept");
      await tab.page.reload();
      await tab.page.locator(".live.good").waitFor();
      // Whoever comes after a logout finds nothing of what was done before.
      await tab.go("rooms");
      await tab.page.getByLabel("Room", { exact: true }).fill("secret.room");
      await tab.press("Join");
      await tab.go("console?queue=emails&do=work");
      await tab.press("Start working");
      await tab.page.locator(".held").waitFor();
      holds(!(await tab.page.content()).includes(broker.token), "the token stands nowhere in the page");
      await tab.press("Log out");
      await tab.dialog.waitFor();
      await until("the end of its sessions", async () => {
        const { workers } = await broker.call("GET", "/v1/workers");
        return workers.length === 0 && (await broker.call("GET", "/v1/queues/emails")).counts.leased === 0;
      });
      same(await tab.page.evaluate(() => Object.values(sessionStorage)), [], "what is kept after a logout");

      await tab.dialog.getByLabel("Token").fill(broker.token);
      await tab.press("Log in", tab.dialog);
      await tab.button("Start working").waitFor();
      await tab.go("rooms");
      await tab.shows("You are in no room");

      const enter = async (name, ...allow) => {
        const token = await broker.makeToken(name, ...allow);
        await until(
          "the token to be known",
          async () =>
            (await fetch(`${broker.url}/v1/me`, { headers: { Authorization: `Bearer ${token}` } })).ok,
        );
        const other = await open(broker);
        other.meant.push(/401/);
        await other.page.goto(broker.url);
        await other.dialog.getByLabel("Token").fill(token);
        await other.press("Log in", other.dialog);
        await other.dialog.waitFor({ state: "detached" });
        return other;
      };
      const places = async (other) =>
        (await other.page.locator("#pages li").allInnerTexts()).map((text) => text.trim());
      const looker = await enter("looker", "observe:*");
      same(
        await places(looker),
        ["Overview", "Queues", "Tasks", "Workers", "Dead letters", "Schedules"],
        "what a looker is offered",
      );
      await looker.go("queues");
      await looker.row("emails").waitFor();
      same(await looker.button("Pause emails").count(), 0, "pause, for a looker");
      await looker.go("queue/emails");
      await looker.shows("round_robin");
      same(await looker.button("Save settings").count(), 0, "settings, for a looker");
      looker.fine();

      const mail = await enter("mail", "manage:mail.*", "submit:mail.*");
      await mail.go("queues");
      await mail.row("mail.in").waitFor();
      same(await mail.row("emails").count(), 0, "a queue that may not be seen");
      await mail.button("Pause mail.in").waitFor();
      await mail.go("overview");
      await mail.shows("observe:*");
      // What it may not see is asked for once, and what comes is said as the broker says it.
      let asked = 0;
      mail.page.on("request", (request) => (asked += request.url().endsWith("/v1/queues/emails") ? 1 : 0));
      mail.meant.push(/403/);
      await mail.go("queue/emails");
      await mail.shows("takes the permission observe:emails");
      let looks = 0;
      mail.page.on("response", (answer) => (looks += answer.url().endsWith("/v1/workers") ? 1 : 0));
      await until("another look at the workers", () => looks > 1);
      same(asked, 1, "requests for what is refused");
      mail.fine();

      const producer = await enter("producer", "submit:emails");
      await producer.page.getByRole("heading", { name: "Tasks" }).waitFor();
      same(await places(producer), ["Tasks", "Rooms", "Console"], "what a producer is offered");
      await producer.go("console?queue=mail.in");
      await producer.press("Submit");
      await producer.shows("submit:mail.in");
      await producer.page.getByLabel("Queue").fill("emails");
      await producer.press("Submit");
      await producer.notice("1 task accepted");
      await broker.says(
        "token",
        "revoke",
        "producer",
        "--tokens-file",
        `${broker.directory}/data/tokens.toml`,
      );
      await producer.dialog.getByText("does not take this token").waitFor();
      producer.fine();
    } finally {
      await broker.end();
    }
  },
};

/** Each page as it looks: light and dark, wide and narrow. */
async function photograph(broker, folder) {
  await mkdir(folder, { recursive: true });
  for (const [size, width, height] of [
    ["wide", 1280, 860],
    ["narrow", 390, 844],
  ]) {
    for (const scheme of ["light", "dark"]) {
      const tab = await open(broker, { viewport: { width, height }, colorScheme: scheme });
      // A socket breaks with its page, and plots begin anew: they are given time to have something to show.
      await tab.go("overview");
      await tab.page.waitForFunction(
        (wanted) => Number(/(\d+) seconds seen/.exec(document.body.innerText)?.[1]) >= wanted,
        size === "wide" ? 40 : 20,
        { timeout: 60_000 },
      );
      for (const [name, hash, word, act] of [...(await pagesOf(broker)), ...DIALOGS]) {
        await tab.go(hash);
        await settled(tab, word);
        if (name === "queue") await tab.page.locator(".plot dd", { hasText: /\d/ }).first().waitFor();
        if (act) await act(tab);
        await tab.page.waitForTimeout(300);
        await tab.page.screenshot({ path: join(folder, `${name}-${size}-${scheme}.png`), fullPage: !act });
        if (act) await over(tab, name);
      }
      await tab.context.close();
    }
  }
}

let failed = 0;
const broker = await Broker.start(given.broker);
const rest = await populate(broker);
try {
  if (given.screenshots) await photograph(broker, given.screenshots);
  for (const [name, test] of Object.entries(TESTS)) {
    if (
      given.screenshots ? !given.only || !name.includes(given.only) : given.only && !name.includes(given.only)
    )
      continue;
    const begun = performance.now();
    try {
      await test(broker);
      console.log(`ok      ${name} (${((performance.now() - begun) / 1000).toFixed(1)} s)`);
    } catch (error) {
      failed++;
      console.log(`FAILED  ${name}\n${error.stack}`);
      for (const { page, complaints } of tabs) {
        if (page.isClosed()) continue;
        console.log(`  ${page.url()}: ${complaints.join("; ") || "no complaints"}`);
        if (given.screenshots)
          await page.screenshot({ path: join(given.screenshots, `failed-${failed}.png`), fullPage: true });
      }
    }
    for (const { context } of tabs) await context.close();
    tabs = [];
  }
} finally {
  await rest();
  await broker.end();
  await browser.close();
}
if (failed > 0) {
  console.log(`${failed} failed`);
  process.exitCode = 1;
}
