// The page's own icons: lines on a grid of 24.
const paths = {
  plus: "M12 5v14M5 12h14",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  copy: "M9 9h10v11H9zM5 15V4h10",
  check: "M5 12.5l4.5 4.5L19 7.5",
  edit: "M4 20h4L19 9l-4-4L4 16zM13.5 6.5l4 4",
  fork: "M6.5 4.5a2 2 0 1 0 0 4 2 2 0 0 0 0-4zM17.5 4.5a2 2 0 1 0 0 4 2 2 0 0 0 0-4zM12 15.5a2 2 0 1 0 0 4 2 2 0 0 0 0-4zM6.5 8.5c0 3.5 5.5 3 5.5 7M17.5 8.5c0 3.5-5.5 3-5.5 7",
  again: "M19.5 12a7.5 7.5 0 1 1-2.2-5.3M19.5 4v4h-4",
  more: "M5 5l6 7-6 7M13 5l6 7-6 7",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  download: "M12 4v11M7 11l5 5 5-5M5 20h14",
  upload: "M12 16V5M7 9l5-5 5 5M5 20h14",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.4 1.4M17.6 17.6L19 19M5 19l1.4-1.4M17.6 6.4L19 5",
  moon: "M20 14A8.5 8.5 0 0 1 10 4a8.5 8.5 0 1 0 10 10z",
  auto: "M12 4a8 8 0 1 0 0 16zM12 4a8 8 0 0 1 0 16",
  left: "M14.5 6l-6 6 6 6",
  right: "M9.5 6l6 6-6 6",
  down: "M12 5v14M6 13l6 6 6-6",
  panel: "M4 5h16v14H4zM10 5v14",
  knobs: "M4 7h9M17 7h3M4 17h3M11 17h9M15 4.8v4.4M9 14.8v4.4",
  close: "M6 6l12 12M18 6L6 18",
  tokens: "M4 6h6v5H4zM13 6h7v5h-7zM4 14h9v5H4zM16 14h4v5h-4z",
  tool: "M14.5 6.5a4 4 0 0 1 5-1.5l-2.7 2.7 1.5 1.5L21 6.5a4 4 0 0 1-5.4 4.9L8 19a2 2 0 0 1-3-3l7.6-7.6a4 4 0 0 1 1.9-1.9z",
  text: "M5 6h14M5 12h14M5 18h9",
};

export type IconName = keyof typeof paths;

export function Icon({ name }: { name: IconName }) {
  return (
    <svg class="icon" viewBox="0 0 24 24" aria-hidden="true">
      <path d={paths[name]} />
    </svg>
  );
}

export function Flame() {
  return (
    <svg class="flame" viewBox="0 0 32 32" aria-hidden="true">
      <path class="flame-body" d="M16.4 2.2c.9 4.5 7.6 8.3 7.6 15a8 8 0 0 1-16 0c0-3.2 1.7-5.3 3.2-7.1.500 1.5 1.3 2.5 2.5 3 .1-4.1.900-8 2.7-10.9z" />
      <path class="flame-heart" d="M16.2 15.2c.7 2.1 3.2 3.6 3.2 6.2a3.3 3.3 0 0 1-6.7 0c0-2.3 2.5-3.6 3.5-6.2z" />
      <path class="flame-wick" d="M16 26.5v4" />
    </svg>
  );
}

interface ButtonProps {
  icon: IconName;
  /** What it does: read aloud, and shown where the pointer rests. */
  label: string;
  /** Shown beside the icon. */
  text?: string;
  onClick: () => void;
  class?: string;
  pressed?: boolean;
  disabled?: boolean;
}

export function Button({ icon, label, text, onClick, pressed, disabled, ...rest }: ButtonProps) {
  return (
    <button
      type="button"
      class={`button ${rest.class ?? ""}`}
      title={label}
      aria-label={label}
      aria-pressed={pressed}
      disabled={disabled}
      onClick={onClick}
    >
      <Icon name={icon} />
      {text && <span>{text}</span>}
    </button>
  );
}
