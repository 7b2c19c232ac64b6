// What is served, and whether the server is there.
import { computed, signal } from "@preact/signals";
import { failure, models } from "./api.js";
import type { Model } from "./gen/candlewick/v1/models_pb.js";
import { set, settings } from "./settings.js";

/** How long until the server is looked for again, in milliseconds. */
const AGAIN = 3000;

export type Reach = "asking" | "there" | "gone" | "key";

export const served = signal<Model[]>([]);
export const reach = signal<Reach>("asking");

/** The model that answers. */
export const model = computed<Model | undefined>(
  () => served.value.find(({ name }) => name === settings.value.model) ?? served.value[0],
);

let timer = 0;

/** Asks what is served, until an answer comes. */
export async function look(): Promise<void> {
  clearTimeout(timer);
  try {
    const { models: found } = await models.list({}, { timeoutMs: 5000 });
    served.value = found;
    reach.value = "there";
    // A model that was chosen once and is gone is no reason to fail.
    const { model } = settings.value;
    if (model && !found.some(({ name }) => name === model)) set({ model: "" });
  } catch (error) {
    const failed = failure(error);
    reach.value = failed.kind === "key" ? "key" : "gone";
    if (failed.kind !== "key") timer = window.setTimeout(look, AGAIN);
  }
}

addEventListener("online", () => void look());
