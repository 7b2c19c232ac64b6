// A conversation that the server keeps. It goes both ways at once, which browsers do not offer: for Node, over HTTP/2.
import { Code, ConnectError, type Client } from "@connectrpc/connect";
import type { MessageInitShape } from "@bufbuild/protobuf";
import {
  type Chat,
  type Opened,
  type SessionError,
  SessionOpenSchema,
  SessionRequestSchema,
  type SessionResponse,
  type TurnDone,
  UserTurnSchema,
} from "./gen/candlewick/v1/chat_pb.js";
import type { Delta } from "./gen/candlewick/v1/common_pb.js";

type Said = MessageInitShape<typeof SessionRequestSchema>;

const REFUSALS = 16;

/** The deltas of one turn; `done` after the last one. */
export interface Turn extends AsyncIterable<Delta> {
  done: TurnDone | undefined;
}

/** What is yet to be said, for the transport to take. */
class Outbox implements AsyncIterable<Said> {
  private waiting: Said[] = [];
  private wake: (() => void) | undefined;
  private over = false;

  put(said: Said): void {
    this.waiting.push(said);
    this.wake?.();
  }

  end(): void {
    this.over = true;
    this.wake?.();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Said> {
    for (;;) {
      const said = this.waiting.shift();
      if (said !== undefined) yield said;
      else if (this.over) return;
      else await new Promise<void>((resolve) => (this.wake = resolve));
    }
  }
}

/** One connection to a session. After it broke, `Session.open` with `sessionId` and `afterSeq` goes on where it was. */
export class Session {
  /** The number of the last event. */
  lastSeq = 0n;
  /** Cancels and grants that came too late or were wrong; the last 16. */
  readonly refusals: ConnectError[] = [];
  // Another client of this session has ids of its own.
  private nextId = BigInt(Math.floor(Math.random() * Number.MAX_SAFE_INTEGER));
  private readonly outbox = new Outbox();
  private readonly events: AsyncIterator<SessionResponse>;

  private constructor(chat: Client<typeof Chat>, open: MessageInitShape<typeof SessionOpenSchema>, signal?: AbortSignal) {
    this.outbox.put({ event: { case: "open", value: open } });
    this.events = chat.session(this.outbox, { signal })[Symbol.asyncIterator]();
  }

  /** Opens a session: a new one with its `opened`, or, with a `sessionId`, one that is there. */
  static async open(
    chat: Client<typeof Chat>,
    open: MessageInitShape<typeof SessionOpenSchema> = {},
    signal?: AbortSignal,
  ): Promise<{ session: Session; opened: Opened | undefined }> {
    const session = new Session(chat, open, signal);
    session.lastSeq = open.afterSeq ?? 0n;
    if (open.sessionId) return { session, opened: undefined };
    const opened = await session.until("opened");
    return { session, opened };
  }

  /** A turn of the user's; read it to its end before the next one. */
  say(content: string, turn: Omit<MessageInitShape<typeof UserTurnSchema>, "content" | "$typeName"> = {}): Turn {
    const id = this.tell({ case: "user", value: { ...turn, content } });
    const session = this;
    return {
      done: undefined,
      async *[Symbol.asyncIterator]() {
        for (;;) {
          const { event, answers } = await session.hear();
          if (event.case === "error") session.refuse(event.value, event.value.turnIndex !== undefined || answers === id);
          if (event.case === "delta") yield event.value;
          if (event.case === "turnDone") {
            this.done = event.value;
            // The server need not keep what was read.
            session.tell({ case: "ack", value: { seq: session.lastSeq } });
            return;
          }
        }
      },
    };
  }

  /** Ends the turn under way; what was said so far stays. */
  cancel(): void {
    this.tell({ case: "cancel", value: {} });
  }

  /** Allows so many tokens more, where the session was opened with credits. */
  grant(tokens: bigint): void {
    this.tell({ case: "grant", value: { tokens } });
  }

  /** Goes back to before a turn. */
  async rewind(turnIndex: number): Promise<void> {
    await this.until("rewound", this.tell({ case: "rewind", value: { turnIndex } }));
  }

  /** Makes a session that begins like this one; open it by this id. */
  async fork(turnIndex?: number): Promise<string> {
    return (await this.until("forked", this.tell({ case: "fork", value: { turnIndex } }))).sessionId;
  }

  /** Ends the session, on the server too. */
  async close(): Promise<void> {
    this.outbox.put({ event: { case: "close", value: {} } });
    this.outbox.end();
    while (!(await this.events.next()).done);
  }

  private async hear(): Promise<SessionResponse> {
    const next = await this.events.next();
    if (next.done) throw new ConnectError("the session has ended", Code.Aborted);
    this.lastSeq = next.value.seq;
    return next.value;
  }

  /** Says something; its id, which comes back with what answers it. */
  private tell(event: Said["event"]): bigint {
    const id = this.nextId++;
    this.outbox.put({ event, id });
    return id;
  }

  /** Throws an error where it is of what is waited for, and keeps it where it is of something else. */
  private refuse(error: SessionError, isWaitedFor: boolean): void {
    if (isWaitedFor) throw failure(error);
    this.refusals.push(failure(error));
    if (this.refusals.length > REFUSALS) this.refusals.shift();
  }

  private async until<Case extends "opened" | "rewound" | "forked">(wanted: Case, id?: bigint) {
    type Wanted = Extract<SessionResponse["event"], { case: Case }>["value"];
    for (;;) {
      const { event, answers } = await this.hear();
      if (event.case === "error") this.refuse(event.value, answers === id);
      if (event.case === wanted && answers === id) return event.value as Wanted;
    }
  }
}

/** What one event asked for and could not be done; the session goes on. */
function failure(error: SessionError): ConnectError {
  const fields = error.fields.map(({ field, description }) => `${field} ${description}`);
  return new ConnectError([`${error.event}: ${error.message}`, ...fields].join("; "), error.code as Code);
}
