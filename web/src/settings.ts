// What the person has chosen: knobs, theme, model. Kept in localStorage, shared by all tabs.
import { effect, signal } from "@preact/signals";

export type Theme = "auto" | "light" | "dark";

/** Sampling, as the person set it; what is undefined takes the server's default. */
export interface Knobs {
  temperature?: number;
  topP?: number;
  topK?: number;
  minP?: number;
  maxTokens?: number;
  seed?: number;
}

export interface Settings {
  theme: Theme;
  /** The model to ask for; empty for the one that is served. */
  model: string;
  knobs: Knobs;
  /** For conversations that begin. */
  system: string;
  /** Ask for each token's probability and its rivals'. */
  probabilities: boolean;
  /** Tools as JSON text, the way OpenAI's API has them; empty for none. */
  tools: string;
  apiKey: string;
  sidebar: boolean;
}

const KEY = "candlewick.settings";
const DEFAULTS: Settings = {
  theme: "auto",
  model: "",
  knobs: {},
  system: "",
  probabilities: false,
  tools: "",
  apiKey: "",
  sidebar: true,
};

/** Knobs that are whole numbers, and the most that the server's fields of 32 bits hold. */
const WHOLE: readonly (keyof Knobs)[] = ["topK", "maxTokens", "seed"];
export const MOST_WHOLE = 4294967295;

/** A knob's number as the server can take it. */
export function fit(name: keyof Knobs, number: number): number {
  return WHOLE.includes(name) ? Math.min(MOST_WHOLE, Math.max(0, Math.round(number))) : number;
}

/** What was kept, by this page or an older one, as far as it can be used. */
function usable(knobs: Knobs): Knobs {
  const numbers = Object.entries(knobs).filter(([, number]) => Number.isFinite(number)) as [keyof Knobs, number][];
  return Object.fromEntries(numbers.map(([name, number]) => [name, fit(name, number)]));
}

function read(): Settings {
  try {
    const stored = JSON.parse(localStorage.getItem(KEY) ?? "{}") as Partial<Settings>;
    return { ...DEFAULTS, ...stored, knobs: usable(stored.knobs ?? {}) };
  } catch {
    return DEFAULTS;
  }
}

export const settings = signal<Settings>(read());

export function set(change: Partial<Settings>): void {
  settings.value = { ...settings.value, ...change };
  try {
    localStorage.setItem(KEY, JSON.stringify(settings.value));
  } catch {
    // Storage that is full or forbidden: the choice holds for this tab.
  }
}

addEventListener("storage", (event) => {
  if (event.key === KEY) settings.value = read();
});

effect(() => {
  const { theme } = settings.value;
  if (theme === "auto") delete document.documentElement.dataset["theme"];
  else document.documentElement.dataset["theme"] = theme;
});
