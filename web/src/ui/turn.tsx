// One turn of a conversation with what can be done to it.
import { signal } from "@preact/signals";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { answer, runs, stop } from "../chat/answer.js";
import { add, afterOldest, type Conversation, fork, type ToolCall, type Turn, upTo, versions } from "../chat/conversation.js";
import { keep, select, watch } from "../chat/store.js";
import { ModelState } from "../gen/candlewick/v1/models_pb.js";
import { render } from "../markdown.js";
import { settings } from "../settings.js";
import { model, standing } from "../status.js";
import { Button, Flame, Icon } from "./icons.js";
import { TokenView } from "./tokens.js";

/** The turn that is being edited. */
export const editing = signal<string | null>(null);

interface Props {
  conversation: Conversation;
  turn: Turn;
  last: boolean;
}

export function TurnView(props: Props) {
  watch();
  const { turn } = props;
  if (turn.role === "assistant") return <Answer {...props} />;
  return editing.value === turn.id ? <Editor {...props} /> : <Said {...props} />;
}

/** Asks for another answer to what stands before `turn`. */
function askAgain(conversation: Conversation, turn: Turn): void {
  void answer(conversation, add(conversation, turn.parent, { role: "assistant" }));
}

function forkAt(conversation: Conversation, turn: Turn): void {
  const copy = fork(conversation, turn);
  keep(copy);
  select(copy.id);
}

function Copy({ text }: { text: string }) {
  const [done, setDone] = useState(false);
  const copy = async () => {
    await toClipboard(text);
    setDone(true);
    setTimeout(() => setDone(false), 1200);
  };
  return <Button icon={done ? "check" : "copy"} label={done ? "Copied" : "Copy"} onClick={() => void copy()} />;
}

/** Pages over plain HTTP from another machine have no clipboard of the new kind. */
export async function toClipboard(text: string): Promise<void> {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

function Versions({ conversation, turn }: { conversation: Conversation; turn: Turn }) {
  watch();
  const all = versions(conversation, turn);
  if (all.length < 2) return null;
  const at = all.findIndex(({ id }) => id === turn.id);
  const show = (k: number) => {
    conversation.shown[turn.parent ?? ""] = all[k]!.id;
    keep(conversation);
  };
  const running = runs.has(conversation.id);
  return (
    <span class="versions">
      <Button icon="left" label="Earlier version" disabled={at === 0 || running} onClick={() => show(at - 1)} />
      <span aria-label={`Version ${at + 1} of ${all.length}`}>
        {at + 1}/{all.length}
      </span>
      <Button icon="right" label="Later version" disabled={at === all.length - 1 || running} onClick={() => show(at + 1)} />
    </span>
  );
}

function Said({ conversation, turn }: Props) {
  watch();
  const running = runs.has(conversation.id);
  return (
    <article class={`turn ${turn.role}`}>
      <div class="bubble">
        {turn.role === "tool" && <div class="who"><Icon name="tool" /> Result</div>}
        <Long text={turn.text} />
      </div>
      <div class="actions">
        <Versions conversation={conversation} turn={turn} />
        <Copy text={turn.text} />
        <Button icon="edit" label="Edit" disabled={running} onClick={() => (editing.value = turn.id)} />
        <Button icon="fork" label="Fork into a new chat" onClick={() => forkAt(conversation, turn)} />
      </div>
    </article>
  );
}

/** Characters and lines of which a message is shown at once. */
const SHOWN = { characters: 2400, lines: 24 };

function Long({ text }: { text: string }) {
  const [whole, setWhole] = useState(false);
  const start = text.split("\n", SHOWN.lines).join("\n").slice(0, SHOWN.characters);
  return (
    <div class="plain">
      {whole || start.length === text.length ? text : `${start}…`}
      {!whole && start.length < text.length && (
        <button type="button" class="small all" onClick={() => setWhole(true)}>Show all</button>
      )}
    </div>
  );
}

function Editor({ conversation, turn }: Props) {
  const area = useRef<HTMLTextAreaElement>(null);
  useEffect(() => {
    const { current } = area;
    current?.focus();
    current?.setSelectionRange(current.value.length, current.value.length);
  }, []);
  const close = () => (editing.value = null);
  const send = () => {
    const text = area.current?.value.trim() ?? "";
    if (text === "" || runs.has(conversation.id)) return;
    close();
    const { role, answers } = turn;
    const edited = add(conversation, turn.parent, { role, text, ...(answers ? { answers } : {}) });
    void answer(conversation, add(conversation, edited.id, { role: "assistant" }));
  };
  const key = (event: KeyboardEvent) => {
    if (event.isComposing) return;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      send();
    } else if (event.key === "Escape") {
      event.stopPropagation();
      close();
    }
  };
  return (
    <article class={`turn ${turn.role} editing`}>
      <textarea ref={area} class="grow" rows={1} aria-label="Edit the message" onKeyDown={key} defaultValue={turn.text} />
      <div class="actions shown">
        <button type="button" class="small" onClick={close}>Cancel</button>
        <button type="button" class="small primary" onClick={send}>Send</button>
      </div>
    </article>
  );
}

function Answer({ conversation, turn, last }: Props) {
  watch();
  const run = runs.get(conversation.id);
  const mine = run?.turn === turn;
  const streaming = mine && !run.waiting;
  const [view, setView] = useState<"text" | "tokens" | null>(null);
  const tokens = turn.chances?.length ? (view ?? (settings.value.probabilities ? "tokens" : "text")) === "tokens" : false;
  const empty = turn.text === "" && !turn.reasoning && !turn.calls?.length;
  return (
    <article class="turn assistant" aria-busy={streaming}>
      {turn.reasoning && <Reasoning text={turn.reasoning} thinking={streaming && turn.text === ""} />}
      {tokens ? (
        <TokenView chances={turn.chances!} model={turn.model ?? ""} />
      ) : (
        turn.text !== "" && <Text text={turn.text} growing={streaming} />
      )}
      {turn.calls?.map((call, k) => (
        <Call key={call.id || k} call={call} conversation={conversation} turn={turn} open={last && !run} />
      ))}
      {streaming && empty && <div class="thinking" role="status"><Flame /> <span class={run.progress || waits() ? "note" : "unseen"}>{run.progress || waits() || "The model is working"}</span></div>}
      {mine && run.waiting && <Waiting conversation={conversation} />}
      {turn.error && <Problem conversation={conversation} turn={turn} last={last} />}
      {!mine && empty && !turn.error && turn.state === "stopped" && <p class="note">Stopped before the first word.</p>}
      {!mine && <Foot conversation={conversation} turn={turn} last={last} tokens={tokens} onView={setView} />}
      {mine && <Figures turn={turn} />}
    </article>
  );
}

/** Why no word comes yet, where the model itself is on its way. */
function waits(): string {
  const { value } = model;
  return value && value.state !== ModelState.READY ? `${value.name}: ${standing(value)}` : "";
}

function Text({ text, growing }: { text: string; growing: boolean }) {
  const blocks = useMemo(() => render(text, growing), [text, growing]);
  return (
    <div class={growing ? "prose growing" : "prose"}>
      {blocks.map((html, k) => (
        // The sanitizer made it; the browser takes it from nobody else.
        <div key={k} class="block" dangerouslySetInnerHTML={{ __html: html as unknown as string }} />
      ))}
    </div>
  );
}

function Reasoning({ text, thinking }: { text: string; thinking: boolean }) {
  return (
    <details class="reasoning">
      <summary>{thinking ? "Thinking…" : "Thought about it"}</summary>
      <div class="plain">{text}</div>
    </details>
  );
}

function pretty(json: string): string {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json;
  }
}

function Call({ call, conversation, turn, open }: { call: ToolCall; conversation: Conversation; turn: Turn; open: boolean }) {
  watch();
  const area = useRef<HTMLTextAreaElement>(null);
  const send = () => {
    const text = area.current?.value ?? "";
    if (runs.has(conversation.id)) return;
    // The other calls of this answer get their results first; the model is asked when all have one.
    const results = JSON.parse(localStorage.getItem(draftKey(turn)) ?? "{}") as Record<string, string>;
    results[call.id] = text;
    const calls = turn.calls ?? [];
    if (calls.some(({ id }) => results[id] === undefined)) {
      localStorage.setItem(draftKey(turn), JSON.stringify(results));
      if (area.current) area.current.disabled = true;
      return;
    }
    localStorage.removeItem(draftKey(turn));
    let parent = turn.id;
    for (const { id } of calls) parent = add(conversation, parent, { role: "tool", text: results[id]!, answers: id }).id;
    void answer(conversation, add(conversation, parent, { role: "assistant" }));
  };
  return (
    <div class="call">
      <div class="who"><Icon name="tool" /> {call.name}</div>
      <pre><code>{pretty(call.arguments)}</code></pre>
      {open && (
        <div class="result">
          <textarea ref={area} class="grow" rows={1} placeholder="What the tool answers" aria-label={`Result of ${call.name}`} />
          <button type="button" class="small primary" onClick={send}>Give result</button>
        </div>
      )}
    </div>
  );
}

function draftKey(turn: Turn): string {
  return `candlewick.results.${turn.id}`;
}

function Waiting({ conversation }: { conversation: Conversation }) {
  watch();
  const [, tick] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => tick((n) => n + 1), 250);
    return () => clearInterval(timer);
  }, []);
  const waiting = runs.get(conversation.id)?.waiting;
  if (!waiting) return null;
  const seconds = Math.max(0, Math.ceil((waiting.until - Date.now()) / 1000));
  return (
    <div class="problem waiting" role="status">
      <span>
        {waiting.kind === "busy" ? "The server is busy." : waiting.why} Trying again{seconds > 0 ? ` in ${seconds} s` : ""}…
      </span>
      <span class="choices">
        <button type="button" class="small" onClick={waiting.now}>Now</button>
        <button type="button" class="small" onClick={() => stop(conversation)}>Stop</button>
      </span>
    </div>
  );
}

function Problem({ conversation, turn, last }: Props) {
  const next = afterOldest(upTo(conversation, turn.parent), conversation.dropped ?? 0);
  const full = next !== undefined && /context/i.test(turn.error ?? "");
  const drop = () => {
    conversation.dropped = next;
    void answer(conversation, turn);
  };
  return (
    <div class="problem" role="alert">
      <span>{turn.error}</span>
      {last && (
        <span class="choices">
          {full && <button type="button" class="small" onClick={drop}>Leave out the oldest turn</button>}
          <button type="button" class="small" onClick={() => void answer(conversation, turn)}>Try again</button>
        </span>
      )}
    </div>
  );
}

interface FootProps extends Props {
  tokens: boolean;
  onView: (view: "text" | "tokens") => void;
}

function Foot({ conversation, turn, last, tokens, onView }: FootProps) {
  watch();
  const running = runs.has(conversation.id);
  const elsewhere = turn.state === "running";
  const unfinished = !elsewhere && (turn.state !== "done" || turn.finish === "length");
  return (
    <footer class="foot">
      <div class={last ? "actions shown" : "actions"}>
        <Versions conversation={conversation} turn={turn} />
        <Copy text={turn.text} />
        <Button icon="again" label="Answer again" disabled={running} onClick={() => askAgain(conversation, turn)} />
        <Button icon="fork" label="Fork into a new chat" onClick={() => forkAt(conversation, turn)} />
        {turn.chances && turn.chances.length > 0 && (
          <Button
            icon={tokens ? "text" : "tokens"}
            label={tokens ? "Show the text" : "Show the tokens"}
            onClick={() => onView(tokens ? "text" : "tokens")}
          />
        )}
        {unfinished && !turn.error && (
          <Button icon="more" label="Continue" text="Continue" disabled={running} onClick={() => void answer(conversation, turn)} />
        )}
      </div>
      {elsewhere ? <span class="figures">Another tab receives this answer</span> : <Figures turn={turn} />}
    </footer>
  );
}

/** Tokens a second, time to the first token, and what came from the cache. */
function Figures({ turn }: { turn: Turn }) {
  watch();
  const { stats } = turn;
  if (!stats || stats.firstToken === undefined) return null;
  const { promptTokens, cachedTokens, completionTokens, firstToken, decoding } = stats;
  const rate = decoding > 0 && completionTokens > 1 ? ((completionTokens - 1) * 1000) / decoding : undefined;
  const figures = [
    ["tokens", `${completionTokens} token${completionTokens === 1 ? "" : "s"}`, "Tokens of this answer"],
    rate ? ["rate", `${rate >= 100 ? rate.toFixed(0) : rate.toFixed(1)} tokens/s`, "Tokens a second after the first one"] : null,
    ["first", `first after ${span(firstToken)}`, "From sending to the first token"],
    ["cached", `${cachedTokens} of ${promptTokens} cached`, "Prompt tokens that the server had computed before"],
    turn.resumed ? ["resumed", `resumed ${turn.resumed}×`, "The connection broke and the answer was taken up again"] : null,
    turn.finish === "length" ? ["length", "cut at the limit", "The answer reached the most tokens it may have"] : null,
  ];
  return (
    <ul class="figures">
      {figures.map((figure) => figure && <li key={figure[0]} data-figure={figure[0]} title={figure[2]}>{figure[1]}</li>)}
    </ul>
  );
}

function span(milliseconds: number): string {
  return milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
}
