// The page: the list of conversations, the one that is shown, and the settings beside it.
import { signal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { runs, stop } from "../chat/answer.js";
import { type Conversation, path } from "../chat/conversation.js";
import { current, fresh, watch } from "../chat/store.js";
import { set, settings, type Theme } from "../settings.js";
import { model, reach, standing } from "../status.js";
import { Composer, offer } from "./composer.js";
import { Button, Flame, type IconName } from "./icons.js";
import { Panel } from "./settings.js";
import { narrow, saveMarkdown, Sidebar } from "./sidebar.js";
import { TokenPopover } from "./tokens.js";
import { editing, toClipboard, TurnView } from "./turn.js";

const panel = signal(false);

/** First words for a model that is new to somebody. */
const STARTS = ["What is candlewick?", "Tell me a story about a lighthouse.", "How does continuous batching work?", "What is 17 + 25?"];

export function App() {
  watch();
  const conversation = current.value;
  const { sidebar } = settings.value;
  useEffect(() => keys(), []);
  useEffect(() => {
    document.title = conversation.title ? `${conversation.title} · candlewick` : "candlewick";
  }, [conversation.title]);
  return (
    <div class={`app${sidebar ? " with-sidebar" : ""}${panel.value ? " with-panel" : ""}`}>
      {sidebar && <Sidebar />}
      {sidebar && <div class="veil" onClick={() => set({ sidebar: false })} />}
      <main>
        <Head conversation={conversation} />
        <Thread conversation={conversation} />
        <Composer conversation={conversation} />
      </main>
      {panel.value && <div class="veil over" onClick={() => (panel.value = false)} />}
      {panel.value && <Panel conversation={conversation} onClose={() => (panel.value = false)} />}
      <TokenPopover />
    </div>
  );
}

const THEMES: Record<Theme, { next: Theme; icon: IconName; label: string }> = {
  auto: { next: "dark", icon: "auto", label: "Colours follow the system" },
  dark: { next: "light", icon: "moon", label: "Dark" },
  light: { next: "auto", icon: "sun", label: "Light" },
};

function Head({ conversation }: { conversation: Conversation }) {
  watch();
  const theme = THEMES[settings.value.theme];
  const there = path(conversation).length > 0;
  return (
    <header class="head">
      {!settings.value.sidebar && (
        <>
          <Button icon="panel" label="Show the list" onClick={() => set({ sidebar: true })} />
          <Button icon="plus" label="New chat" onClick={fresh} />
        </>
      )}
      <button type="button" class="model" title="The model that answers" onClick={() => (panel.value = !panel.value)}>
        <span class={`dot ${reach.value}`} />
        {named() ?? { asking: "…", there: "No model", gone: "Server not reached", key: "A key is needed" }[reach.value]}
      </button>
      <span class="space" />
      {there && <Button icon="download" label="Export as Markdown" onClick={() => saveMarkdown(conversation)} />}
      <Button icon={theme.icon} label={theme.label} class="theme" onClick={() => set({ theme: theme.next })} />
      <Button icon="knobs" label="Settings" pressed={panel.value} onClick={() => (panel.value = !panel.value)} />
    </header>
  );
}

/** The model that answers, and how it stands where it is not simply there. */
function named(): string | undefined {
  const { value } = model;
  return value && [value.name, standing(value)].filter(Boolean).join(" · ");
}

function Thread({ conversation }: { conversation: Conversation }) {
  watch();
  const box = useRef<HTMLDivElement>(null);
  const [away, setAway] = useState(false);
  const follows = useRef(true);
  const turns = path(conversation);
  const size = turns.length;

  const bottom = () => {
    const { current } = box;
    if (current) current.scrollTop = current.scrollHeight;
  };
  // A conversation that is opened, and one that somebody has said something in, is shown at its end.
  useLayoutEffect(() => {
    follows.current = true;
    bottom();
  }, [conversation.id, size]);
  useLayoutEffect(() => {
    if (follows.current && editing.value === null) bottom();
  });
  const scrolled = () => {
    const { current } = box;
    if (!current) return;
    follows.current = current.scrollHeight - current.scrollTop - current.clientHeight < 48;
    setAway(!follows.current);
  };
  return (
    <div class="thread" ref={box} onScroll={scrolled} onClick={copyCode}>
      {size === 0 ? (
        <Welcome />
      ) : (
        <div class="turns">
          {turns.map((turn, k) => (
            <div key={turn.id}>
              {k > 0 && k === conversation.dropped && <div class="dropped">The model is not sent what stands above</div>}
              <TurnView conversation={conversation} turn={turn} last={k === size - 1} />
            </div>
          ))}
        </div>
      )}
      {away && size > 0 && (
        <Button
          icon="down"
          label="To the end"
          class="to-end"
          onClick={() => {
            follows.current = true;
            bottom();
          }}
        />
      )}
    </div>
  );
}

/** The button of a block of code, which is no part of the tree that draws the page. */
async function copyCode(event: MouseEvent): Promise<void> {
  const button = (event.target as Element).closest<HTMLButtonElement>("button[data-copy]");
  const code = button?.closest(".code")?.querySelector("code")?.textContent;
  if (!button || code == null) return;
  await toClipboard(code.replace(/\n$/, ""));
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 1200);
}

function Welcome() {
  const name = model.value?.name;
  return (
    <div class="welcome">
      <Flame />
      <h1>{name ? `Talk to ${name}` : "candlewick"}</h1>
      <p>Everything stays between this browser and your server.</p>
      <div class="starts">
        {STARTS.map((text) => (
          <button key={text} type="button" onClick={() => (offer.value = text)}>{text}</button>
        ))}
      </div>
    </div>
  );
}

/** Keys that work wherever the focus is. */
function keys(): () => void {
  const press = (event: KeyboardEvent) => {
    const typing = (event.target as Element).matches("input, textarea, select");
    if (event.key === "Escape" && !event.defaultPrevented) {
      if (panel.value && narrow.matches) panel.value = false;
      else if (runs.has(current.value.id)) stop(current.value);
      else if (panel.value) panel.value = false;
    } else if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      document.getElementById("message")?.focus();
    }
  };
  document.addEventListener("keydown", press);
  return () => document.removeEventListener("keydown", press);
}
