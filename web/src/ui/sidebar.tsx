// The conversations that there are.
import { useState } from "preact/hooks";
import { runs, stop } from "../chat/answer.js";
import { type Conversation, markdown } from "../chat/conversation.js";
import { conversations, current, fresh, keep, list, remove, restore, select, trouble, watch } from "../chat/store.js";
import { set } from "../settings.js";
import { Button, Flame, Icon } from "./icons.js";

export const narrow = matchMedia("(max-width: 52rem)");

export function Sidebar() {
  const close = () => narrow.matches && set({ sidebar: false });
  return (
    <nav class="sidebar" aria-label="Conversations">
      <header>
        <span class="brand"><Flame /> candlewick</span>
        <Button icon="panel" label="Hide the list" onClick={() => set({ sidebar: false })} />
      </header>
      <button
        type="button"
        class="new"
        onClick={() => {
          fresh();
          close();
        }}
      >
        <Icon name="plus" /> New chat
      </button>
      <ul>
        {list.value.map((conversation) => (
          <Entry key={conversation.id} conversation={conversation} onOpen={close} />
        ))}
      </ul>
      {trouble.value && <p class="problem" role="alert">{trouble.value}</p>}
      <footer>
        <Import />
        <Button icon="download" label="Export all conversations" text="Export all" onClick={() => save("candlewick.json", JSON.stringify([...conversations.values()], null, 1))} />
      </footer>
    </nav>
  );
}

function Entry({ conversation, onOpen }: { conversation: Conversation; onOpen: () => void }) {
  watch();
  const [mode, setMode] = useState<"" | "rename" | "delete">("");
  const shown = current.value.id === conversation.id;
  if (mode === "rename") {
    const done = (text: string) => {
      const title = text.trim();
      if (title !== "") {
        Object.assign(conversation, { title, named: true });
        keep(conversation);
      }
      setMode("");
    };
    return (
      <li class="entry">
        <input
          autoFocus
          defaultValue={conversation.title}
          aria-label="Name"
          onBlur={(event) => done(event.currentTarget.value)}
          onKeyDown={(event) => {
            if (event.key === "Enter") done(event.currentTarget.value);
            if (event.key === "Escape") setMode("");
          }}
        />
      </li>
    );
  }
  return (
    <li class={shown ? "entry shown" : "entry"}>
      <a
        href={`#${conversation.id}`}
        aria-current={shown ? "page" : undefined}
        title={conversation.title}
        onClick={(event) => {
          event.preventDefault();
          select(conversation.id);
          onOpen();
        }}
        onDblClick={() => setMode("rename")}
      >
        {runs.has(conversation.id) && <span class="live" aria-label="answering" />}
        {conversation.title || "Conversation"}
      </a>
      {mode === "delete" ? (
        <button
          type="button"
          class="small danger"
          autoFocus
          onBlur={() => setMode("")}
          onClick={() => {
            stop(conversation);
            remove(conversation.id);
          }}
        >
          Delete?
        </button>
      ) : (
        <span class="actions">
          <Button icon="edit" label="Rename" onClick={() => setMode("rename")} />
          <Button icon="trash" label="Delete" onClick={() => setMode("delete")} />
        </span>
      )}
    </li>
  );
}

function Import() {
  const read = async (input: HTMLInputElement) => {
    const file = input.files?.[0];
    if (!file) return;
    try {
      const count = restore(await file.text());
      trouble.value = count > 0 ? "" : "The file holds no conversations.";
    } catch {
      trouble.value = "The file is no export of this page.";
    }
    input.value = "";
  };
  return (
    <label class="button" title="Import conversations from a file">
      <Icon name="upload" />
      <span>Import</span>
      <input type="file" accept=".json,application/json" class="unseen" onChange={(event) => void read(event.currentTarget)} />
    </label>
  );
}

/** Hands a file to the person. */
export function save(name: string, content: string): void {
  const address = URL.createObjectURL(new Blob([content], { type: "text/plain;charset=utf-8" }));
  const link = Object.assign(document.createElement("a"), { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

export function saveMarkdown(conversation: Conversation): void {
  const name = conversation.title.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "");
  save(`${name || "conversation"}.md`, markdown(conversation));
}
