// Where the person writes, and how full the model's context is.
import { signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { answer, runs, stop } from "../chat/answer.js";
import { add, type Conversation, path } from "../chat/conversation.js";
import { keep, select, watch } from "../chat/store.js";
import { model, reach } from "../status.js";
import { Icon } from "./icons.js";
import { editing } from "./turn.js";

/** What is written and not sent, by conversation. */
const drafts = new Map<string, string>();
/** A text that is to be put into the box. */
export const offer = signal("");

export function Composer({ conversation }: { conversation: Conversation }) {
  watch();
  const area = useRef<HTMLTextAreaElement>(null);
  const run = runs.get(conversation.id);

  useEffect(() => {
    const { current } = area;
    if (!current) return;
    current.value = drafts.get(conversation.id) ?? "";
    // On a phone the keyboard would cover what there is to read.
    if (matchMedia("(hover: hover)").matches) current.focus();
  }, [conversation.id]);

  useEffect(() => {
    if (offer.value === "" || !area.current) return;
    area.current.value = offer.value;
    offer.value = "";
    area.current.focus();
  }, [offer.value]);

  const send = () => {
    const text = area.current?.value.trim() ?? "";
    if (text === "" || !area.current || runs.has(conversation.id)) return;
    area.current.value = "";
    drafts.delete(conversation.id);
    const last = path(conversation).at(-1);
    const said = add(conversation, last?.id ?? null, { role: "user", text });
    const turn = add(conversation, said.id, { role: "assistant" });
    keep(conversation);
    select(conversation.id);
    void answer(conversation, turn);
  };
  const key = (event: KeyboardEvent) => {
    if (event.isComposing) return;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      send();
    } else if (event.key === "ArrowUp" && area.current?.value === "" && !run) {
      const said = path(conversation).findLast(({ role }) => role === "user");
      if (!said) return;
      event.preventDefault();
      editing.value = said.id;
    }
  };
  return (
    <div class="composer">
      <form
        class="box"
        onSubmit={(event) => {
          event.preventDefault();
          send();
        }}
      >
        <textarea
          id="message"
          ref={area}
          class="grow"
          rows={1}
          placeholder={model.value ? `Write to ${model.value.name}` : "Write a message"}
          aria-label="Message"
          onKeyDown={key}
          onInput={(event) => drafts.set(conversation.id, event.currentTarget.value)}
        />
        {run ? (
          <button type="button" class="send stop" title="Stop (Esc)" aria-label="Stop" onClick={() => stop(conversation)}>
            <Icon name="stop" />
          </button>
        ) : (
          <button type="submit" class="send" title="Send (Enter)" aria-label="Send">
            <Icon name="send" />
          </button>
        )}
      </form>
      <div class="under">
        <span class="hint">
          <kbd>Enter</kbd> sends, <kbd>Shift</kbd> <kbd>Enter</kbd> begins a line, <kbd>Esc</kbd> stops
        </span>
        <Context conversation={conversation} />
      </div>
    </div>
  );
}

/** How much of the context the conversation takes, as of its last answer. */
function Context({ conversation }: { conversation: Conversation }) {
  watch();
  const most = model.value?.maxModelLen ?? 0;
  const stats = path(conversation).findLast((turn) => turn.stats)?.stats;
  if (reach.value === "gone") return <span class="context gone">Server not reached, looking for it…</span>;
  if (!stats || most === 0) return null;
  const used = stats.promptTokens + stats.completionTokens;
  const share = Math.min(1, used / most);
  return (
    <span class="context" title="Tokens of the model's context that this conversation takes">
      <span class={share > 0.85 ? "meter full" : "meter"}>
        <span style={{ width: `${share * 100}%` }} />
      </span>
      {used.toLocaleString("en")} of {most.toLocaleString("en")} tokens
    </span>
  );
}
