// A conversation: a tree of turns of which one path is shown. To edit or to ask again adds a branch; nothing is lost.

export interface ToolCall {
  id: string;
  name: string;
  arguments: string;
}

/** A token with its probability and the most likely ones at its place, as natural logarithms. */
export interface TokenChance {
  id: number;
  logprob: number;
  top: [id: number, logprob: number][];
}

export interface Stats {
  promptTokens: number;
  cachedTokens: number;
  completionTokens: number;
  /** From sending to the first token, in milliseconds. */
  firstToken?: number;
  /** From the first token to the last one. */
  decoding: number;
}

export type State = "done" | "running" | "stopped" | "failed";

export interface Turn {
  id: string;
  parent: string | null;
  role: "user" | "assistant" | "tool";
  text: string;
  at: number;
  /** Grows with every change; of two copies the higher one counts. */
  rev: number;
  state: State;
  reasoning?: string;
  calls?: ToolCall[];
  /** The call that a tool's turn answers. */
  answers?: string;
  finish?: "stop" | "length" | "tool_calls";
  error?: string;
  model?: string;
  stats?: Stats;
  chances?: TokenChance[];
  /** How often a broken answer was taken up again. */
  resumed?: number;
}

export interface Conversation {
  id: string;
  title: string;
  /** Named by the person, so that no first message renames it. */
  named?: boolean;
  created: number;
  updated: number;
  system: string;
  turns: Record<string, Turn>;
  /** Which child is shown, by parent; the first turn's parent is "". */
  shown: Record<string, string>;
  /** How many turns at the start of the path the model is not sent, because its context is full. */
  dropped?: number;
}

let drawn = 0;

/** An id that no other tab draws. */
export function draw(): string {
  const random = crypto.getRandomValues(new Uint32Array(2));
  drawn += 1;
  return `${Date.now().toString(36)}${random[0]!.toString(36)}${random[1]!.toString(36)}${drawn.toString(36)}`;
}

export function begin(system: string): Conversation {
  const now = Date.now();
  return { id: draw(), title: "", created: now, updated: now, system, turns: {}, shown: {} };
}

/** Adds a turn after `parent` and shows it. */
export function add(conversation: Conversation, parent: string | null, turn: Partial<Turn> & Pick<Turn, "role">): Turn {
  const added: Turn = { id: draw(), parent, text: "", at: Date.now(), rev: 1, state: "done", ...turn };
  conversation.turns[added.id] = added;
  conversation.shown[parent ?? ""] = added.id;
  conversation.updated = added.at;
  if (added.role === "user" && !conversation.named && path(conversation)[0] === added) {
    conversation.title = title(added.text);
  }
  return added;
}

/** What a list calls a conversation that begins so. */
function title(text: string): string {
  const line = text.trim().replace(/\s+/g, " ");
  return line.length > 60 ? `${line.slice(0, 59).trimEnd()}…` : line;
}

/** The turns that are shown, the first one first. */
export function path(conversation: Conversation): Turn[] {
  const turns: Turn[] = [];
  let turn = conversation.turns[conversation.shown[""] ?? ""];
  while (turn) {
    turns.push(turn);
    turn = conversation.turns[conversation.shown[turn.id] ?? ""];
  }
  return turns;
}

/** The versions of a turn: it and those beside it, the oldest first. */
export function versions(conversation: Conversation, turn: Turn): Turn[] {
  const beside = Object.values(conversation.turns).filter((other) => other.parent === turn.parent);
  return beside.sort((a, b) => a.at - b.at);
}

/** The turns up to and with this one. */
export function upTo(conversation: Conversation, id: string | null): Turn[] {
  const turns: Turn[] = [];
  for (let turn = conversation.turns[id ?? ""]; turn; turn = conversation.turns[turn.parent ?? ""]) turns.unshift(turn);
  return turns;
}

/**
 * How many turns are left out once the oldest of those that are sent is, with all that answers it: calls, results, the
 * answer. Undefined where nothing would be left to answer.
 */
export function afterOldest(turns: Turn[], dropped: number): number | undefined {
  const next = turns.findIndex(({ role }, k) => k > dropped && role === "user");
  return next < 0 ? undefined : next;
}

/** A conversation of its own that begins as this one does up to `turn`. */
export function fork(conversation: Conversation, turn: Turn): Conversation {
  const copy = begin(conversation.system);
  let parent: string | null = null;
  for (const original of upTo(conversation, turn.id)) {
    const added: Turn = add(copy, parent, { ...structuredClone(original), id: draw(), parent });
    if (added.state === "running") added.state = "stopped";
    parent = added.id;
  }
  copy.title = conversation.title && `${conversation.title.replace(/ \(fork\)$/, "")} (fork)`;
  if (conversation.named) copy.named = true;
  if (conversation.dropped) copy.dropped = conversation.dropped;
  return copy;
}

/** A copy in a file that people read. */
export function markdown(conversation: Conversation): string {
  const parts = [`# ${conversation.title || "Conversation"}`];
  if (conversation.system) parts.push(`**System**\n\n${conversation.system}`);
  for (const turn of path(conversation)) {
    const who = { user: "You", assistant: turn.model ?? "Assistant", tool: "Tool" }[turn.role];
    const calls = (turn.calls ?? []).map((call) => `\`${call.name}(${call.arguments})\``);
    parts.push([`**${who}**`, turn.text, ...calls].filter((part) => part !== "").join("\n\n"));
  }
  return `${parts.join("\n\n")}\n`;
}
