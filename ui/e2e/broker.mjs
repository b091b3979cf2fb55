// A real broker with a store of its own, and workers and producers that keep it busy.

import { spawn, execFile } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

const PATIENCE_MS = 15_000;

/** Waits until something holds, and says what did not. */
export async function until(what, look) {
  const end = Date.now() + PATIENCE_MS;
  let last;
  while (Date.now() < end) {
    try {
      last = await look();
      if (last) return last;
    } catch (error) {
      last = error;
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(
    `waited in vain for ${what}: ${last instanceof Error ? last.message : JSON.stringify(last)}`,
  );
}

function freePort() {
  return new Promise((resolve, reject) => {
    const server = createServer()
      .on("error", reject)
      .listen(0, "127.0.0.1", () => {
        const { port } = server.address();
        server.close(() => resolve(port));
      });
  });
}

function environment(more) {
  const ours = Object.entries(process.env).filter(([key]) => !key.startsWith("TASKYARD_"));
  return { ...Object.fromEntries(ours), ...more };
}

export class Broker {
  #child;
  #others = [];

  static async start(program, settings = {}) {
    const broker = new Broker();
    broker.program = program;
    broker.settings = settings;
    broker.directory = await mkdtemp(join(tmpdir(), "taskyard-ui-"));
    broker.port = await freePort();
    broker.url = `http://127.0.0.1:${broker.port}`;
    await broker.run();
    return broker;
  }

  async run() {
    const args = [
      "serve",
      "--listen",
      `127.0.0.1:${this.port}`,
      "--data-dir",
      join(this.directory, "data"),
      "--drain-ms",
      "100",
    ];
    this.#child = spawn(this.program, args, {
      env: environment(this.settings),
      stdio: ["ignore", "ignore", "pipe"],
    });
    let said = "";
    this.#child.stderr.on("data", (text) => (said = (said + text).slice(-4000)));
    await until("the broker to be ready", async () => {
      if (this.#child.exitCode !== null) throw new Error(`it ended: ${said}`);
      return (await fetch(`${this.url}/readyz`)).ok;
    });
  }

  /** Kills it, as a power cut would. */
  async kill() {
    const gone = new Promise((resolve) => this.#child.once("exit", resolve));
    this.#child.kill("SIGKILL");
    await gone;
  }

  /** Has it stand still, as a machine without memory does, or go on. */
  stall(still) {
    this.#child.kill(still ? "SIGSTOP" : "SIGCONT");
  }

  async end() {
    for (const other of this.#others) other.kill("SIGTERM");
    await this.kill();
    await rm(this.directory, { recursive: true, force: true });
  }

  /** A command beside it, until the end. */
  beside(...args) {
    const child = spawn(this.program, args, {
      env: environment({ TASKYARD_URL: this.url, ...(this.token ? { TASKYARD_TOKEN: this.token } : {}) }),
      stdio: "ignore",
    });
    this.#others.push(child);
    return child;
  }

  /** What a command prints. */
  async says(...args) {
    const { stdout } = await promisify(execFile)(this.program, args, { env: environment(this.settings) });
    return stdout.trim();
  }

  /** Makes a token by the file that the broker reads. */
  async makeToken(name, ...allow) {
    const file = join(this.directory, "data", "tokens.toml");
    return this.says(
      "token",
      "create",
      name,
      "--tokens-file",
      file,
      ...allow.flatMap((rule) => ["--allow", rule]),
    );
  }

  async call(method, path, body) {
    const headers = this.token ? { Authorization: `Bearer ${this.token}` } : {};
    if (body !== undefined) headers["Content-Type"] = "application/json";
    const answer = await fetch(`${this.url}${path}`, { method, headers, body: body && JSON.stringify(body) });
    const value = await answer.json();
    if (!answer.ok) throw new Error(`${method} ${path}: ${answer.status} ${value.message}`);
    return value;
  }

  submit(queue, payload, options = {}) {
    return this.call("POST", `/v1/queues/${queue}/tasks`, { payload, ...options });
  }

  async state(task) {
    return (await this.call("GET", `/v1/tasks/${task}`)).state;
  }
}

/** Runs in a page: a worker by the browser's own WebSocket. What it does with a task is said by `how`. */
export function workerInPage({ name, queue, credit, groups, labels, how, ms, token, error }) {
  const socket = new WebSocket(`${location.origin.replace(/^http/, "ws")}/ws`, "taskyard.v1.json");
  const say = (message) => socket.readyState === 1 && socket.send(JSON.stringify(message));
  socket.onopen = () => {
    say({ type: "hello", worker: name, groups, labels, client: "e2e", ...(token ? { token } : {}) });
    say({ type: "subscribe", queue, credit });
  };
  const left = new Set();
  socket.onmessage = ({ data }) => {
    const message = JSON.parse(data);
    if (message.type === "stop") {
      left.add(message.lease);
      say({ type: "cancelled", lease: message.lease, error: "stopped as asked" });
    }
    if (message.type !== "task") return;
    const { lease } = message;
    if (how === "hold") {
      let percent = 0;
      setInterval(
        () =>
          say({
            type: "progress",
            lease,
            percent: (percent = Math.min(95, percent + 5)),
            data: { step: "resize" },
          }),
        1000,
      );
      return;
    }
    setTimeout(() => {
      if (left.has(lease)) return;
      if (how === "fail") say({ type: "nack", lease, error: error ?? "smtp: 550 mailbox unavailable", delay_ms: 10 });
      else say({ type: "ack", lease, result: { sent: true } });
    }, ms);
  };
}
