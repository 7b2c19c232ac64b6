// One answer: asked for, streamed in, timed, stopped, and taken up again where the connection breaks.
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { signal } from "@preact/signals";
import { chat, failure, type Failure } from "../api.js";
import {
  type CompleteStreamRequest,
  CompleteStreamRequestSchema,
  MessageSchema,
  Role,
  ToolSchema,
} from "../gen/candlewick/v1/chat_pb.js";
import { type Delta, type Finished, FinishReason, type Progress, type SamplingParams } from "../gen/candlewick/v1/common_pb.js";
import { ModelState } from "../gen/candlewick/v1/models_pb.js";
import { settings } from "../settings.js";
import { attend, look, model, reach } from "../status.js";
import { type Conversation, type Turn, upTo } from "./conversation.js";
import { keep, touch } from "./store.js";

/** Rivals of a token that are asked for. */
const RIVALS = 5;
/** Pauses before a broken answer is taken up again, in milliseconds; the last one is repeated. */
const PAUSES = [300, 600, 1200, 2500, 5000, 8000];
/** How often, before the person is asked. */
const ATTEMPTS = 20;

/** An answer under way. */
interface Run {
  turn: Turn;
  abort: AbortController;
  /** It broke off with something said, and no token has come since. */
  broken?: boolean;
  /** How far the server says it has come, before the first token. */
  progress?: string;
  /** It waits to ask again: why, until when, and what ends the wait. */
  waiting?: { why: string; kind: Failure["kind"]; until: number; now: () => void };
}

/** The answers under way in this tab, by conversation. */
export const runs = new Map<string, Run>();
/** What the server fills in where nothing is set, as it said last. */
export const effective = signal<SamplingParams | undefined>(undefined);

// Who waits for a server that has come back need not wait any longer.
reach.subscribe((now) => {
  if (now !== "there") return;
  for (const { waiting } of runs.values()) if (waiting?.kind === "lost") waiting.now();
});

export function stop(conversation: Conversation): void {
  const run = runs.get(conversation.id);
  run?.abort.abort();
  run?.waiting?.now();
}

/** Asks for the answer `turn`, or for the rest of it. */
export async function answer(conversation: Conversation, turn: Turn): Promise<void> {
  if (runs.has(conversation.id)) return;
  const run: Run = { turn, abort: new AbortController() };
  runs.set(conversation.id, run);
  change(conversation, turn, { state: "running" });
  delete turn.error;
  for (let attempt = 0; ; attempt++) {
    const before = length(turn);
    const failed = await ask(conversation, run);
    delete run.progress;
    if (!failed) break;
    if (length(turn) > before) attempt = 0;
    const again = (failed.kind === "lost" || failed.kind === "busy") && attempt < ATTEMPTS;
    if (!again) {
      Object.assign(turn, failed.kind === "stopped" ? { state: "stopped" } : { state: "failed", error: failed.message });
      break;
    }
    if (failed.kind === "lost") void look();
    await wait(run, failed, attempt);
    if (run.abort.signal.aborted) {
      turn.state = "stopped";
      break;
    }
    run.broken ||= failed.kind === "lost" && length(turn) > 0;
  }
  runs.delete(conversation.id);
  turn.rev += 1;
  keep(conversation);
}

function length(turn: Turn): number {
  return turn.text.length + (turn.reasoning?.length ?? 0);
}

function change(conversation: Conversation, turn: Turn, to: Partial<Turn>): void {
  Object.assign(turn, to);
  turn.rev += 1;
  keep(conversation, false);
}

/** Waits as long as the server says or the number of attempts suggests; less where the network comes back. */
async function wait(run: Run, failed: Failure, attempt: number): Promise<void> {
  const pause = PAUSES[Math.min(attempt, PAUSES.length - 1)]!;
  const length = Math.max(failed.retryAfter ?? 0, pause) * (1 + Math.random() / 5);
  const gone = new AbortController();
  await new Promise<void>((resolve) => {
    const timer = setTimeout(resolve, length);
    const now = (): void => {
      clearTimeout(timer);
      resolve();
    };
    run.waiting = { why: failed.message, kind: failed.kind, until: Date.now() + length, now };
    addEventListener("online", now, { once: true, signal: gone.signal });
    touch();
  });
  gone.abort();
  delete run.waiting;
  touch();
}

/** Asks once. Gives why it failed. */
async function ask(conversation: Conversation, run: Run): Promise<Failure | undefined> {
  const { turn, abort } = run;
  // A model that is idle is loaded first: how far that is can be seen until the answer begins.
  let seen = model.value?.state === ModelState.READY ? () => {} : attend();
  try {
    const request = prepare(conversation, turn);
    const clock = new Clock(turn);
    let ended = false;
    for await (const { event } of chat.completeStream(request, { signal: abort.signal })) {
      switch (event.case) {
        case "started":
          seen();
          seen = () => {};
          turn.model = event.value.model;
          effective.value = event.value.effective;
          clock.prompt(event.value.promptTokens);
          break;
        case "progress":
          run.progress = told(event.value);
          break;
        case "delta":
          delete run.progress;
          clock.tokens(event.value.tokenIds.length);
          if (run.broken) turn.resumed = (turn.resumed ?? 0) + 1;
          run.broken = false;
          take(turn, event.value);
          break;
        case "finished":
          clock.end(event.value);
          finish(turn, event.value);
          ended = true;
          break;
      }
      change(conversation, turn, {});
    }
    return ended || abort.signal.aborted ? (ended ? undefined : { kind: "stopped", message: "" }) : lost();
  } catch (error) {
    return failure(error, abort.signal);
  } finally {
    seen();
  }
}

/** The server's heartbeat in words. */
function told({ stage }: Progress): string {
  switch (stage.case) {
    case "queued": {
      const { position } = stage.value;
      return position === 0 ? "Next in the queue" : `In the queue, ${position} before this one`;
    }
    case "prefill":
      return `Reading the conversation, ${stage.value.doneTokens} of ${stage.value.totalTokens} tokens`;
    default:
      return "";
  }
}

function lost(): Failure {
  return { kind: "lost", message: "The connection to the server is lost." };
}

/** Adds what is new. */
function take(turn: Turn, delta: Delta): void {
  turn.text += delta.text;
  if (delta.reasoning) turn.reasoning = (turn.reasoning ?? "") + delta.reasoning;
  for (const part of delta.toolCalls) {
    const calls = (turn.calls ??= []);
    const call = (calls[part.index] ??= { id: "", name: "", arguments: "" });
    if (part.id) call.id = part.id;
    if (part.name) call.name = part.name;
    call.arguments += part.arguments;
  }
  for (const { chosen, top } of delta.logprobs) {
    if (!chosen) continue;
    const rivals = top.map(({ tokenId, logprob }): [number, number] => [tokenId, round(logprob)]);
    (turn.chances ??= []).push({ id: chosen.tokenId, logprob: round(chosen.logprob), top: rivals });
  }
}

/** Few digits: they are kept in little room. JSON has no infinities. */
function round(logprob: number): number {
  return Number.isFinite(logprob) ? Math.round(logprob * 1e4) / 1e4 : -9999;
}

function finish(turn: Turn, { finish }: Finished): void {
  const reasons = { [FinishReason.LENGTH]: "length", [FinishReason.TOOL_CALLS]: "tool_calls" } as const;
  turn.finish = reasons[(finish?.reason ?? 0) as keyof typeof reasons] ?? "stop";
  turn.state = "done";
}

/** Times an answer; one that is taken up again goes on counting. */
class Clock {
  private readonly sent = performance.now();
  private first?: number;
  private readonly before: { completion: number; decoding: number };
  private count = 0;

  constructor(private readonly turn: Turn) {
    const stats = turn.stats;
    this.before = { completion: stats?.completionTokens ?? 0, decoding: stats?.decoding ?? 0 };
  }

  prompt(tokens: number): void {
    const stats = (this.turn.stats ??= { promptTokens: tokens, cachedTokens: 0, completionTokens: 0, decoding: 0 });
    stats.promptTokens = tokens - this.before.completion;
  }

  tokens(count: number): void {
    const stats = this.turn.stats;
    if (!stats || count === 0) return;
    const now = performance.now();
    this.first ??= now;
    stats.firstToken ??= now - this.sent;
    this.count += count;
    stats.completionTokens = this.before.completion + this.count;
    stats.decoding = this.before.decoding + now - this.first;
  }

  end({ usage }: Finished): void {
    const stats = this.turn.stats;
    if (!stats || !usage) return;
    stats.completionTokens = this.before.completion + usage.completionTokens;
    if (this.before.completion === 0) {
      stats.promptTokens = usage.promptTokens;
      stats.cachedTokens = usage.cachedTokens;
    }
  }
}

/** The request for an answer, or for the rest of one that has begun. */
function prepare(conversation: Conversation, turn: Turn): CompleteStreamRequest {
  // What was only thought or called so far begins anew: templates can go on with text alone.
  const goOn = turn.text.trim() !== "" && !turn.calls?.length;
  if (!goOn) {
    turn.text = "";
    for (const key of ["reasoning", "calls", "chances", "stats"] as const) delete turn[key];
  }
  turn.text = turn.text.trimEnd();
  delete turn.finish;
  const { model, knobs, probabilities, tools } = settings.value;
  const turns = upTo(conversation, turn.parent).slice(conversation.dropped ?? 0);
  const messages = [...turns.map(message), ...(goOn ? [message(turn)] : [])];
  if (conversation.system.trim() !== "") {
    messages.unshift(create(MessageSchema, { role: Role.SYSTEM, content: conversation.system }));
  }
  const left = knobs.maxTokens === undefined ? undefined : knobs.maxTokens - (turn.stats?.completionTokens ?? 0);
  return create(CompleteStreamRequestSchema, {
    messages,
    options: {
      ...(model ? { model } : {}),
      sampling: {
        ...given("temperature", knobs.temperature),
        ...given("topP", knobs.topP),
        ...given("topK", knobs.topK),
        ...given("minP", knobs.minP),
        // An answer that was as long as it may and is to go on gets as much again.
        ...given("maxTokens", left !== undefined && left <= 0 ? knobs.maxTokens : left),
        ...(knobs.seed === undefined ? {} : { seed: BigInt(knobs.seed) }),
        ...(probabilities ? { logprobs: RIVALS } : {}),
      },
    },
    chat: {
      tools: understand(tools),
      ...(goOn ? { continueFinalMessage: true } : {}),
    },
  });
}

function given<K extends string>(name: K, value: number | undefined): { [key in K]?: number } {
  return (value === undefined ? {} : { [name]: value }) as { [key in K]?: number };
}

function message(turn: Turn) {
  return create(MessageSchema, {
    role: { user: Role.USER, assistant: Role.ASSISTANT, tool: Role.TOOL }[turn.role],
    content: turn.text,
    ...(turn.reasoning ? { reasoning: turn.reasoning } : {}),
    ...(turn.answers ? { toolCallId: turn.answers } : {}),
    toolCalls: turn.calls ?? [],
  });
}

/** Tools from JSON text; throws where it is none. */
export function understand(text: string): MessageInitShape<typeof ToolSchema>[] {
  if (text.trim() === "") return [];
  const value: unknown = JSON.parse(text);
  if (!Array.isArray(value)) throw new Error("Tools are a JSON list.");
  return value.map((each: { function?: Tool } & Tool, k) => {
    const { name, description, parameters } = each.function ?? each;
    if (typeof name !== "string" || name === "") throw new Error(`Tool ${k + 1} has no name.`);
    return {
      name,
      ...(description ? { description } : {}),
      ...(parameters ? { parametersJson: JSON.stringify(parameters) } : {}),
    };
  });
}

interface Tool {
  name?: string;
  description?: string;
  parameters?: object;
}
