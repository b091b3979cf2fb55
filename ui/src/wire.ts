// One conversation with the broker over a WebSocket, in JSON: hello, requests and their answers, and the rest.

import { Refused } from "./api";
import { token } from "./session";
import type { Failure, Frame } from "./types";

export interface Listener {
  /** The broker has said welcome. */
  open(welcome: Frame): void;
  /** A frame that answers no request. */
  frame(frame: Frame): void;
  closed(code: number, reason: string): void;
  /** Every frame as it is, for whoever wants to see the protocol. */
  trace?(direction: "in" | "out", text: string): void;
}

interface Waiting {
  resolve(frame: Frame): void;
  reject(error: Error): void;
}

const GONE: Failure = {
  code: "unreachable",
  message: "The connection to the broker ended before it answered: whether it was done is not known.",
  retryable: true,
};

export function socketAddress(): string {
  const address = new URL("ws", document.baseURI);
  address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
  return address.href;
}

export class Conversation {
  #socket: WebSocket;
  #waiting = new Map<number, Waiting>();
  #last = 0;

  constructor(
    hello: Record<string, unknown>,
    private readonly listener: Listener,
  ) {
    this.#socket = new WebSocket(socketAddress(), "taskyard.v1.json");
    this.#socket.onopen = () => {
      const auth = token.value ? { token: token.value } : {};
      this.request({ type: "hello", ...hello, ...auth }).then(
        (welcome) => listener.open(welcome),
        () => {
          // What is wrong with a hello ends the socket; `closed` tells of it.
        },
      );
    };
    this.#socket.onmessage = ({ data }) => {
      listener.trace?.("in", data);
      this.#take(JSON.parse(data) as Frame);
    };
    this.#socket.onclose = ({ code, reason }) => {
      for (const waiting of this.#waiting.values()) waiting.reject(new Refused(0, GONE));
      this.#waiting.clear();
      listener.closed(code, reason);
    };
  }

  #take(frame: Frame): void {
    const waiting = typeof frame.ref === "number" ? this.#waiting.get(frame.ref) : undefined;
    if (!waiting) return this.listener.frame(frame);
    this.#waiting.delete(frame.ref as number);
    if (frame.type === "error") waiting.reject(new Refused(0, frame as unknown as Failure));
    else waiting.resolve(frame);
  }

  /** Says something that is answered. */
  request(message: Record<string, unknown>): Promise<Frame> {
    if (this.#socket.readyState !== WebSocket.OPEN) return Promise.reject(new Refused(0, GONE));
    const id = ++this.#last;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      const text = JSON.stringify({ ...message, id });
      this.listener.trace?.("out", text.replace(/"token":"[^"]*"/, '"token":"…"'));
      this.#socket.send(text);
    });
  }

  /** Leaves: what is held goes back free of charge. */
  bye(): void {
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send('{"type":"bye"}');
    else this.#socket.close();
  }

  /** Ends the socket, and tells nobody. */
  drop(): void {
    this.#socket.onclose = null;
    this.#socket.onmessage = null;
    for (const waiting of this.#waiting.values()) waiting.reject(new Refused(0, GONE));
    this.#waiting.clear();
    this.#socket.close();
  }
}
