// The panel of knobs: how tokens are chosen, what the model is told, how the page looks.
import { useEffect, useState } from "preact/hooks";
import { effective, understand } from "../chat/answer.js";
import type { Conversation } from "../chat/conversation.js";
import { conversations, keep } from "../chat/store.js";
import { fit, type Knobs, MOST_WHOLE, set, settings } from "../settings.js";
import { type LoadProgress, LoadProgress_Stage, ModelState } from "../gen/candlewick/v1/models_pb.js";
import { answers, attend, look, model, reach, served, share, standing } from "../status.js";
import { Button } from "./icons.js";

interface Knob {
  name: keyof Knobs;
  label: string;
  hint: string;
  least: number;
  most: number;
  step: number;
}

const KNOBS: Knob[] = [
  { name: "temperature", label: "Temperature", hint: "0 always takes the likeliest token", least: 0, most: 2, step: 0.05 },
  { name: "topP", label: "Top p", hint: "Keeps the likeliest tokens up to this probability", least: 0.01, most: 1, step: 0.01 },
  { name: "topK", label: "Top k", hint: "Keeps so many of the likeliest tokens; 0 keeps all", least: 0, most: 200, step: 1 },
  { name: "minP", label: "Min p", hint: "Drops what is less likely than this share of the likeliest", least: 0, most: 1, step: 0.01 },
];

export function Panel({ conversation, onClose }: { conversation: Conversation; onClose: () => void }) {
  return (
    <aside class="panel" aria-label="Settings">
      <header>
        <h2>Settings</h2>
        <Button icon="close" label="Close the settings" onClick={onClose} />
      </header>
      <ModelPicker />
      <SystemPrompt conversation={conversation} />
      <fieldset>
        <legend>Sampling</legend>
        {KNOBS.map((knob) => <Slider key={knob.name} {...knob} />)}
        <Whole name="maxTokens" label="Most tokens" hint="Of an answer; to the end of the context if empty" least={1} />
        <Whole name="seed" label="Seed" hint="Makes an answer repeatable; drawn if empty" least={0} />
        <button type="button" class="small" onClick={() => set({ knobs: {} })}>Server's defaults</button>
      </fieldset>
      <label class="check">
        <input
          type="checkbox"
          checked={settings.value.probabilities}
          onChange={(event) => set({ probabilities: event.currentTarget.checked })}
        />
        <span>
          Token probabilities
          <small>Answers are shown as tokens, with what else was likely under the pointer</small>
        </span>
      </label>
      <details class="more">
        <summary>Tools and access</summary>
        <Tools />
        <label class="field">
          <span>API key</span>
          <input
            type="password"
            autoComplete="off"
            value={settings.value.apiKey}
            placeholder="If the server asks for one"
            onChange={(event) => {
              set({ apiKey: event.currentTarget.value });
              void look();
            }}
          />
        </label>
      </details>
      <footer class="about">
        <p>Conversations are kept in this browser and nowhere else.</p>
        <p>
          <kbd>/</kbd> to write, <kbd>↑</kbd> to edit, <kbd>Esc</kbd> to stop · <a href="./THIRD-PARTY-LICENSES.txt" target="_blank">Licences</a>
        </p>
      </footer>
    </aside>
  );
}

function ModelPicker() {
  const { value: chosen } = model;
  const facts = chosen && chosen.maxModelLen > 0 && [
    chosen.architecture.replace(/ForCausalLM$/, ""),
    parameters(chosen.numParameters),
    chosen.dtype,
    `${chosen.maxModelLen.toLocaleString("en")} tokens of context`,
  ];
  useEffect(attend, []);
  const loading = served.value.filter(({ state }) => state === ModelState.LOADING);
  const failed = served.value.filter(({ failure }) => failure);
  return (
    <div class="field">
      <label for="model">Model</label>
      <select
        id="model"
        value={chosen?.name ?? ""}
        disabled={served.value.length === 0}
        onChange={(event) => set({ model: event.currentTarget.value })}
      >
        {!chosen && <option value="">{reach.value === "gone" ? "Server not reached" : "…"}</option>}
        {served.value.map((each) => (
          <option key={each.name} value={each.name} disabled={!answers(each)}>
            {[each.name, each.parent && `on ${each.parent}`, standing(each)].filter(Boolean).join(" · ")}
          </option>
        ))}
      </select>
      {facts && <small>{facts.filter(Boolean).join(" · ")}</small>}
      {loading.map((each) => (
        <div key={each.name} class="coming" role="status">
          <span>{each.name}</span>
          <progress max={1} value={share(each)} aria-label={`${each.name}: ${standing(each)}`} />
          <small>{amount(each.progress)}</small>
        </div>
      ))}
      {failed.map((each) => <small key={each.name} class="wrong">{each.name}: {each.failure}</small>)}
    </div>
  );
}

/** How much of a model has come. */
function amount(progress: LoadProgress | undefined): string {
  if (!progress || progress.total === 0n) return "Looking at its files";
  const [done, total] = [Number(progress.done), Number(progress.total)];
  if (progress.stage === LoadProgress_Stage.READING) return `${done} of ${total} tensors`;
  const [unit, name] = total >= 1e9 ? [1e9, "GB"] : [1e6, "MB"];
  return `${(done / unit).toFixed(1)} of ${(total / unit).toFixed(1)} ${name} downloaded`;
}

function parameters(count: bigint): string {
  const n = Number(count);
  const [unit, letter] = n >= 1e9 ? [1e9, "B"] : n >= 1e6 ? [1e6, "M"] : [1e3, "K"];
  return n === 0 ? "" : `${(n / unit).toFixed(n / unit >= 100 ? 0 : 1)}${letter} parameters`;
}

function SystemPrompt({ conversation }: { conversation: Conversation }) {
  return (
    <label class="field">
      <span>System prompt</span>
      <textarea
        class="grow"
        rows={2}
        id="system"
        key={conversation.id}
        placeholder="What the model is told before the conversation"
        defaultValue={conversation.system}
        onChange={(event) => {
          conversation.system = event.currentTarget.value;
          set({ system: conversation.system });
          if (conversations.has(conversation.id)) keep(conversation);
        }}
      />
    </label>
  );
}

function change(name: keyof Knobs, text: string, least: number, most: number): void {
  const knobs = { ...settings.value.knobs };
  const number = Number(text);
  if (text.trim() === "" || !Number.isFinite(number)) delete knobs[name];
  else knobs[name] = fit(name, Math.min(most, Math.max(least, number)));
  set({ knobs });
}

/** What is in force where the person has set nothing, as far as it is known. */
function standard(name: keyof Knobs): number | undefined {
  const value = effective.value?.[name];
  return typeof value === "number" && settings.value.knobs[name] === undefined ? Math.round(value * 1000) / 1000 : undefined;
}

function Slider({ name, label, hint, least, most, step }: Knob) {
  const value = settings.value.knobs[name];
  const usual = standard(name);
  return (
    <label class={value === undefined ? "knob unset" : "knob"} title={hint}>
      <span>{label}</span>
      <input
        type="number"
        min={least}
        max={most}
        step={step}
        value={value ?? ""}
        placeholder={usual === undefined ? "default" : String(usual)}
        aria-label={label}
        onChange={(event) => change(name, event.currentTarget.value, least, most)}
      />
      <input
        type="range"
        min={least}
        max={most}
        step={step}
        value={value ?? usual ?? (name === "topP" || name === "temperature" ? 1 : 0)}
        aria-label={`${label}, as a slider`}
        onInput={(event) => change(name, event.currentTarget.value, least, most)}
      />
    </label>
  );
}

function Whole({ name, label, hint, least }: Pick<Knob, "name" | "label" | "hint" | "least">) {
  return (
    <label class="knob" title={hint}>
      <span>{label}</span>
      <input
        type="number"
        min={least}
        max={MOST_WHOLE}
        step={1}
        value={settings.value.knobs[name] ?? ""}
        placeholder={name === "seed" ? "drawn" : "no limit"}
        aria-label={label}
        onChange={(event) => change(name, event.currentTarget.value, least, MOST_WHOLE)}
      />
    </label>
  );
}

function Tools() {
  const [wrong, setWrong] = useState("");
  return (
    <label class="field">
      <span>Tools</span>
      <textarea
        class="grow mono"
        rows={2}
        spellcheck={false}
        defaultValue={settings.value.tools}
        placeholder={'[{"name": "weather", "parameters": {…}}]'}
        onChange={(event) => {
          const { value } = event.currentTarget;
          try {
            understand(value);
            setWrong("");
            set({ tools: value });
          } catch (error) {
            setWrong(error instanceof SyntaxError ? "This is no JSON." : String((error as Error).message));
          }
        }}
      />
      <small class={wrong ? "wrong" : ""}>{wrong || "A JSON list as OpenAI's API has it. You give the results."}</small>
    </label>
  );
}
