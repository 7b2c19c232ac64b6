// An answer as its tokens, each coloured by how likely it was, with its rivals where the pointer rests.
import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { tokens as service } from "../api.js";
import type { TokenChance } from "../chat/conversation.js";
import { watch } from "../chat/store.js";

/** Texts of tokens, by id, of the model whose answer is looked at; where that is another's they are asked for anew. */
const texts = new Map<number, string>();
let of = "";
const known = signal(0);
/** The token under the pointer, and where it is. */
const open = signal<{ chance: TokenChance; x: number; y: number; below: boolean } | null>(null);

let asking: Promise<void> | undefined;

/** Asks for the texts of these tokens, all at once. */
async function learn(ids: Set<number>, model: string): Promise<void> {
  if (of !== model) texts.clear();
  of = model;
  const unknown = [...ids].filter((id) => !texts.has(id));
  if (unknown.length === 0 || asking) return;
  asking = service
    .detokenize({ tokenIds: unknown, returnTokenStrs: true, ...(model ? { model } : {}) })
    .then(({ tokenStrs }) => {
      // A server of before this field gives none: the numbers stay.
      unknown.forEach((id, k) => texts.set(id, tokenStrs[k] ?? `#${id}`));
    })
    .catch(() => undefined)
    .finally(() => {
      asking = undefined;
      known.value += 1;
    });
  await asking;
}

/** How it looks: what cannot be seen is shown by a sign. */
function visible(id: number): string {
  const text = texts.get(id);
  if (text === undefined) return `#${id}`;
  return text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "·") || "∅";
}

function percent(logprob: number): string {
  const p = Math.exp(logprob) * 100;
  return p >= 99.95 ? "100 %" : p >= 10 ? `${p.toFixed(0)} %` : p >= 0.1 ? `${p.toFixed(1)} %` : "< 0.1 %";
}

/** One of six shades: the less likely, the warmer. */
function shade(logprob: number): number {
  const p = Math.exp(logprob);
  return [0.9, 0.7, 0.45, 0.2, 0.05].findIndex((edge) => p >= edge) + 1 || 6;
}

export function TokenView({ chances, model }: { chances: TokenChance[]; model: string }) {
  watch();
  known.value;
  useEffect(() => {
    void learn(new Set(chances.flatMap(({ id, top }) => [id, ...top.map(([rival]) => rival)])), model);
  }, [chances.length, model, known.value]);
  useEffect(() => () => void (open.value = null), []);

  const show = (event: Event) => {
    const place = (event.target as HTMLElement).closest<HTMLElement>("[data-k]");
    const chance = chances[Number(place?.dataset["k"] ?? -1)];
    if (!place || !chance) return void (open.value = null);
    const { left, top, bottom } = place.getClientRects()[0] ?? place.getBoundingClientRect();
    const below = top < 240;
    open.value = { chance, x: Math.min(left, innerWidth - 250), y: below ? bottom : innerHeight - top, below };
  };
  return (
    <div class="tokens" onPointerOver={show} onPointerLeave={() => (open.value = null)} onClick={show}>
      {chances.map(({ id, logprob }, k) => {
        const text = texts.get(id);
        return (
          <span key={k}>
            <span class={`token shade-${shade(logprob)}`} data-k={k}>
              {text === undefined ? "…" : text.replace(/\n/g, "⏎") || "∅"}
            </span>
            {text?.includes("\n") && "\n".repeat(text.split("\n").length - 1)}
          </span>
        );
      })}
    </div>
  );
}

/** The rivals of the token under the pointer. */
export function TokenPopover() {
  known.value;
  const at = open.value;
  if (!at) return null;
  const { id, logprob, top } = at.chance;
  const rows: [number, number][] = top.some(([rival]) => rival === id) ? top : [...top, [id, logprob]];
  const place = { left: `${at.x}px`, [at.below ? "top" : "bottom"]: `${at.y + 6}px` };
  return (
    <div class="popover" style={place} role="tooltip">
      {rows.map(([rival, chance]) => (
        <div key={rival} class={rival === id ? "chance chosen" : "chance"}>
          <code>{visible(rival)}</code>
          <span class="bar">
            <span style={{ width: `${Math.exp(chance) * 100}%` }} />
          </span>
          <span class="number">{percent(chance)}</span>
        </div>
      ))}
    </div>
  );
}
