// One conversation with the broker over a WebSocket, in JSON: hello, requests and their answers, and the rest.

import { Refused } from "./api";
import { bytes, parseExact } from "./format";
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

/** Frames that carry what somebody wrote: long numbers in it stay as they are. */
const CARRIERS = ["task", "room_message", "finished"];

function parse(text: string): Frame {
  const frame = JSON.parse(text) as Frame;
  return CARRIERS.includes(frame.type) && /\d{16}/.test(text) ? (parseExact(text) as unknown as Frame) : frame;
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
  /** The longest message that the broker takes, once it has said so. */
  #longest = Infinity;

  constructor(
    hello: Record<string, unknown>,
    private readonly listener: Listener,
  ) {
    this.#socket = new WebSocket(socketAddress(), "taskyard.v1.json");
    this.#socket.onopen = () => {
      const auth = token.value ? { token: token.value } : {};
      this.request({ type: "hello", ...hello, ...auth }).then(
        (welcome) => {
          this.#longest = (welcome["limits"] as { message_bytes?: number } | undefined)?.message_bytes ?? Infinity;
          listener.open(welcome);
        },
        () => {
          // What is wrong with a hello ends the socket; `closed` tells of it.
        },
      );
    };
    this.#socket.onmessage = ({ data }) => {
      listener.trace?.("in", data);
      this.#take(parse(data as string));
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
    const text = JSON.stringify({ ...message, id });
    // One that is too long would end the connection, and all that waits with it.
    const long = text.length * 3 > this.#longest ? new Blob([text]).size : 0;
    if (long > this.#longest) {
      const said = `This message has ${bytes(long)}; the broker takes ${bytes(this.#longest)} at most.`;
      return Promise.reject(new Refused(0, { code: "too_large", message: said, retryable: false }));
    }
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.listener.trace?.("out", text.replace(/"token":"(?:[^"\\]|\\.)*"/, '"token":"…"'));
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
