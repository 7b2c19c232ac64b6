// The conversations of this browser: one entry of localStorage each, so that two tabs write over nothing of each other.
import { computed, signal } from "@preact/signals";
import { settings } from "../settings.js";
import { begin, type Conversation } from "./conversation.js";

const PREFIX = "candlewick.conversation.";

/** All, by id. The objects change in place; `changed` says that they have. */
export const conversations = new Map<string, Conversation>();
export const changed = signal(0);
/** Has the component that calls this drawn again at each change: its properties stay the same objects. */
export function watch(): void {
  changed.value;
}
/** Something that the person must know of storage. */
export const trouble = signal("");

const draft = signal<Conversation>(begin(settings.value.system));
const selected = signal<string | null>(null);

/** What is shown: a conversation, or an empty one that is not kept yet. */
export const current = computed<Conversation>(() => {
  changed.value;
  return conversations.get(selected.value ?? "") ?? draft.value;
});

/** All, the newest first. */
export const list = computed<Conversation[]>(() => {
  changed.value;
  return [...conversations.values()].sort((a, b) => b.updated - a.updated);
});

let frame = 0;
let pause = 0;

/** Has everything that shows conversations look again, once a frame and not more often than it can bear. */
export function touch(): void {
  if (frame !== 0) return;
  frame = window.setTimeout(() => {
    const start = performance.now();
    frame = 0;
    changed.value += 1;
    // Drawing is queued: it has been done when what is queued now has its turn. Long answers take long to draw: four fifths
    // of the time stay for everything else.
    window.setTimeout(() => (pause = Math.min(400, 4 * (performance.now() - start))), 0);
  }, Math.max(16, pause));
}

function understand(text: string | null): Conversation | null {
  try {
    const value = JSON.parse(text ?? "") as Conversation;
    const whole = typeof value.id === "string" && typeof value.turns === "object" && typeof value.shown === "object";
    return whole ? value : null;
  } catch {
    return null;
  }
}

/** Takes over the turns of another copy that are newer. */
function merge(own: Conversation, other: Conversation): void {
  for (const [id, turn] of Object.entries(other.turns)) {
    const mine = own.turns[id];
    if (!mine || mine.rev < turn.rev) own.turns[id] = turn;
  }
}

const writes = new Map<string, number>();
/** What was deleted, here or in another tab: an answer under way must not bring it back. */
const removed = new Set<string>();

/** Writes a conversation down, now or within a second. */
export function keep(conversation: Conversation, now = true): void {
  if (removed.has(conversation.id)) return;
  conversations.set(conversation.id, conversation);
  touch();
  window.clearTimeout(writes.get(conversation.id));
  if (now) return write(conversation);
  writes.set(conversation.id, window.setTimeout(() => write(conversation), 1000));
}

function write(conversation: Conversation): void {
  writes.delete(conversation.id);
  if (!conversations.has(conversation.id)) return;
  const key = PREFIX + conversation.id;
  try {
    const stored = understand(localStorage.getItem(key));
    if (stored) merge(conversation, stored);
    localStorage.setItem(key, JSON.stringify(conversation));
    trouble.value = "";
  } catch {
    trouble.value = "The browser has no room for more conversations: export or delete some. This one is not kept.";
  }
}

export function select(id: string | null): void {
  selected.value = id;
  const there = id !== null && conversations.has(id);
  const address = there ? `#${id}` : location.pathname + location.search;
  if (location.hash !== (there ? `#${id}` : "")) history.replaceState(null, "", address);
}

/** An empty conversation. It is kept when something is said in it. */
export function fresh(): void {
  draft.value = begin(settings.value.system);
  select(null);
}

export function remove(id: string): void {
  removed.add(id);
  conversations.delete(id);
  window.clearTimeout(writes.get(id));
  try {
    localStorage.removeItem(PREFIX + id);
  } catch {
    // What cannot be written cannot be kept either.
  }
  if (selected.value === id) fresh();
  touch();
}

/** Adds conversations from a file. Says how many. */
export function restore(text: string): number {
  const value: unknown = JSON.parse(text);
  const found = (Array.isArray(value) ? value : [value]).flatMap((each) => understand(JSON.stringify(each)) ?? []);
  for (const conversation of found) {
    removed.delete(conversation.id);
    keep(conversation);
  }
  return found.length;
}

/** Reads what is there. Answers that were under way when their tab went away are as far as they came. */
function load(): void {
  try {
    for (const key of Object.keys(localStorage).filter((key) => key.startsWith(PREFIX))) {
      const conversation = understand(localStorage.getItem(key));
      if (!conversation) continue;
      for (const turn of Object.values(conversation.turns)) if (turn.state === "running") turn.state = "stopped";
      conversations.set(conversation.id, conversation);
    }
  } catch {
    trouble.value = "The browser keeps nothing for this page: conversations end with the tab.";
  }
  const asked = location.hash.slice(1);
  if (conversations.has(asked)) selected.value = asked;
}

load();

addEventListener("storage", (event) => {
  if (!event.key?.startsWith(PREFIX)) return;
  const id = event.key.slice(PREFIX.length);
  const other = understand(event.newValue);
  if (!other) {
    removed.add(id);
    conversations.delete(id);
    if (selected.value === id) fresh();
  } else {
    const own = conversations.get(id);
    if (own) {
      merge(own, other);
      Object.assign(own, { title: other.title, updated: other.updated });
      for (const [parent, child] of Object.entries(other.shown)) own.shown[parent] ??= child;
    } else {
      conversations.set(id, other);
    }
  }
  touch();
});

addEventListener("hashchange", () => {
  const id = location.hash.slice(1);
  if (conversations.has(id)) selected.value = id;
});

addEventListener("pagehide", () => {
  for (const id of [...writes.keys()]) {
    const conversation = conversations.get(id);
    if (conversation) write(conversation);
  }
});
