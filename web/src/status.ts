// What is served, how it comes and goes, and whether the server is there.
import { computed, signal } from "@preact/signals";
import { failure, models } from "./api.js";
import { type Model, ModelState } from "./gen/candlewick/v1/models_pb.js";
import { set, settings } from "./settings.js";

/** How long until the server is looked for again, in milliseconds. */
const AGAIN = 3000;

export type Reach = "asking" | "there" | "gone" | "key";

/** Each name once. */
export const served = signal<Model[]>([]);
export const reach = signal<Reach>("asking");

/** Whether requests may name it; what is idle is loaded when one does, and what is being loaded soon will be. */
export function answers({ state }: Model): boolean {
  return [ModelState.READY, ModelState.IDLE, ModelState.LOADING].includes(state);
}

/** The model that answers. */
export const model = computed<Model | undefined>(() => {
  const able = served.value.filter(answers);
  return able.find(({ name }) => name === settings.value.model) ?? able.find(({ isDefault }) => isDefault) ?? able[0];
});

/** How far a model is that is being loaded, 0 to 1; undefined where nobody knows. */
export function share({ progress }: Model): number | undefined {
  return progress && progress.total > 0n ? Number(progress.done) / Number(progress.total) : undefined;
}

/** How a model stands that is not simply there, in words. */
export function standing(model: Model): string {
  switch (model.state) {
    case ModelState.LOADING: {
      const done = share(model);
      return done === undefined ? "loading" : `loading, ${Math.floor(done * 100)} %`;
    }
    case ModelState.IDLE:
      return "idle, loads when asked";
    case ModelState.DRAINING:
      return "leaving";
    case ModelState.UNLOADED:
      return "unloaded";
    case ModelState.FAILED:
      return "could not be loaded";
    default:
      return "";
  }
}

let timer = 0;

/** Asks what is served, until an answer comes. */
export async function look(): Promise<void> {
  clearTimeout(timer);
  try {
    const { models: found } = await models.list({}, { timeoutMs: 5000 });
    take(found);
    void follow();
  } catch (error) {
    const failed = failure(error);
    reach.value = failed.kind === "key" ? "key" : "gone";
    if (failed.kind !== "key") timer = window.setTimeout(look, AGAIN);
  }
}

function take(found: Model[]): void {
  // What leaves may still be listed beside what took its name.
  const names = new Map<string, Model>();
  for (const model of found) {
    const known = names.get(model.name);
    if (!known || (!answers(known) && answers(model))) names.set(model.name, model);
  }
  served.value = [...names.values()];
  reach.value = "there";
  // A model that was chosen once and is gone is no reason to fail.
  const chosen = settings.value.model;
  if (chosen && !served.value.some((model) => model.name === chosen && answers(model))) set({ model: "" });
}

/** Parts of the page that want to see models come and go. */
let attending = 0;
let following: AbortController | undefined;

/**
 * Has the list followed until the returned function is called. A browser opens six connections to a server, all tabs
 * together, so that one is held only while somebody looks at what changes.
 */
export function attend(): () => void {
  attending += 1;
  void follow();
  return () => {
    attending -= 1;
    if (!worthwhile()) following?.abort();
  };
}

function worthwhile(): boolean {
  const moving = ({ state }: Model) => state === ModelState.LOADING || state === ModelState.DRAINING;
  return !document.hidden && (attending > 0 || served.value.some(moving));
}

async function follow(): Promise<void> {
  if (following || !worthwhile()) return;
  const here = (following = new AbortController());
  try {
    for await (const { models: found } of models.watch({}, { signal: here.signal })) {
      take(found);
      if (!worthwhile()) break;
    }
  } catch (error) {
    // A server of before this call has none; one that has gone is looked for.
    if (!here.signal.aborted && failure(error).kind === "lost") timer = window.setTimeout(look, AGAIN);
  } finally {
    here.abort();
    following = undefined;
  }
}

addEventListener("online", () => void look());
document.addEventListener("visibilitychange", () => (document.hidden ? following?.abort() : void look()));
