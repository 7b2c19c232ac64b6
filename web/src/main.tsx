// The chat page of candlewick.
import { render } from "preact";
import "./style.css";
import { settings, set } from "./settings.js";
import { look } from "./status.js";
import { App } from "./ui/app.js";
import { narrow } from "./ui/sidebar.js";

// On a phone the list would cover the conversation.
if (narrow.matches && settings.value.sidebar) set({ sidebar: false });
// Boxes that grow by themselves are not everywhere yet.
if (!CSS.supports("field-sizing", "content")) {
  document.addEventListener("input", ({ target }) => {
    if (!(target instanceof HTMLTextAreaElement) || !target.classList.contains("grow")) return;
    target.style.height = "auto";
    target.style.height = `${target.scrollHeight + 2}px`;
  });
}
render(<App />, document.body);
void look();
