// The client over any transport: node.ts and browser.ts make one.
import { type Client, Code, ConnectError, createClient, type Interceptor, type Transport } from "@connectrpc/connect";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { Chat, type CompleteStreamResponse, CompleteStreamRequestSchema, MessageSchema, Role } from "./gen/candlewick/v1/chat_pb.js";
import type { Delta, Finished, Started } from "./gen/candlewick/v1/common_pb.js";
import {
  Generation,
  type GenerateStreamResponse,
  GenerateStreamRequestSchema,
  PromptSchema,
  type ResumeResponse,
} from "./gen/candlewick/v1/generation_pb.js";
import { type LoadProgress, LoadRequestSchema, type Model, Models, type UnloadResponse } from "./gen/candlewick/v1/models_pb.js";
import { Tokens } from "./gen/candlewick/v1/tokens_pb.js";

export { Code, ConnectError } from "@connectrpc/connect";
export { FinishReason } from "./gen/candlewick/v1/common_pb.js";
export { Role } from "./gen/candlewick/v1/chat_pb.js";
export { type LoadProgress, type Model, ModelState } from "./gen/candlewick/v1/models_pb.js";
export { type Refusal, refusal } from "./refusal.js";
export { Session, type Turn } from "./session.js";

/** What a stream of tokens says, whichever call opened it. */
export type StreamEvent = GenerateStreamResponse | CompleteStreamResponse | ResumeResponse;

/** Of one call: how it is cancelled, and how long it may take. */
export interface CallOptions {
  signal?: AbortSignal;
  timeoutMs?: number;
}

type Asked<Schema extends typeof CompleteStreamRequestSchema | typeof GenerateStreamRequestSchema> = Omit<
  Extract<MessageInitShape<Schema>, { options?: unknown }>,
  "$typeName" | "messages" | "prompt"
>;

/** Deltas as they come. What else the stream says is in its fields, as soon as it was said. */
export class TokenStream implements AsyncIterable<Delta> {
  started: Started | undefined;
  finished: Finished[] = [];
  /** The number of the last event: what a resumable stream is resumed after. */
  lastSeq = 0n;

  constructor(private readonly events: AsyncIterable<StreamEvent>) {}

  async *[Symbol.asyncIterator](): AsyncGenerator<Delta> {
    for await (const { seq, event } of this.events) {
      this.lastSeq = seq;
      if (event.case === "started") this.started = event.value;
      if (event.case === "finished") this.finished.push(event.value);
      if (event.case === "delta") yield event.value;
    }
  }

  /** The text of the first sequence, as it comes. */
  async *text(): AsyncGenerator<string> {
    for await (const delta of this) if (delta.index === 0 && delta.text !== "") yield delta.text;
  }
}

/** A server. `chat`, `generation`, `models` and `tokens` are its services as they are. */
export class Candlewick {
  readonly chat: Client<typeof Chat>;
  readonly generation: Client<typeof Generation>;
  readonly models: Client<typeof Models>;
  readonly tokens: Client<typeof Tokens>;

  constructor(transport: Transport) {
    this.chat = createClient(Chat, transport);
    this.generation = createClient(Generation, transport);
    this.models = createClient(Models, transport);
    this.tokens = createClient(Tokens, transport);
  }

  /** Answers messages, or one thing that a user says, delta by delta. Leaving the loop cancels the request. */
  chatStream(
    said: string | MessageInitShape<typeof MessageSchema>[],
    asked: Asked<typeof CompleteStreamRequestSchema> = {},
    options?: CallOptions,
  ): TokenStream {
    const messages = typeof said === "string" ? [{ role: Role.USER, content: said }] : said;
    return new TokenStream(this.chat.completeStream({ ...asked, messages }, options));
  }

  /** Continues a prompt of text or token ids, delta by delta. */
  generateStream(
    prompt: string | number[],
    asked: Asked<typeof GenerateStreamRequestSchema> = {},
    options?: CallOptions,
  ): TokenStream {
    const given: MessageInitShape<typeof PromptSchema> =
      typeof prompt === "string"
        ? { prompt: { case: "text", value: prompt } }
        : { prompt: { case: "tokenIds", value: { ids: prompt } } };
    return new TokenStream(this.generation.generateStream({ ...asked, prompt: given }, options));
  }

  /** Reads a resumable stream on, after the last event that was read. */
  resume(streamId: string, afterSeq: bigint = 0n, options?: CallOptions): TokenStream {
    return new TokenStream(this.generation.resume({ streamId, afterSeq }, options));
  }

  /** What is served. */
  async list(options?: CallOptions): Promise<Model[]> {
    return (await this.models.list({}, options)).models;
  }

  /** Loads a model while others answer: how far it has come, and at the end the model. It goes on where nobody listens. */
  async *load(asked: MessageInitShape<typeof LoadRequestSchema>, options?: CallOptions): AsyncGenerator<LoadProgress, Model> {
    for await (const { event } of this.models.load(asked, options)) {
      if (event.case === "progress") yield event.value;
      if (event.case === "model") return event.value;
    }
    throw new ConnectError("the load ended without a word of the model: ask for it", Code.Unavailable);
  }

  /** Takes a model's name away, and its memory once its streams have ended; waits for that for `waitMs` at the most. */
  unload(name: string, waitMs = 0, options?: CallOptions): Promise<UnloadResponse> {
    return this.models.unload({ name, waitMs: BigInt(waitMs) }, options);
  }

  /** The list now and at every change, until the server goes down. Leaving the loop ends it. */
  async *watch(options?: CallOptions): AsyncGenerator<Model[]> {
    for await (const { models } of this.models.watch({}, options)) yield models;
  }
}

/** Sends a key with every call, where there is one. */
export function authorize(apiKey: string | undefined): Interceptor[] {
  if (apiKey === undefined) return [];
  return [
    (next) => (request) => {
      request.header.set("authorization", `Bearer ${apiKey}`);
      return next(request);
    },
  ];
}
