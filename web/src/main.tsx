// The chat page of candlewick.
import { render } from "preact";
import "./style.css";
import { settings, set } from "./settings.js";
import { look } from "./status.js";
import { App } from "./ui/app.js";
import { narrow } from "./ui/sidebar.js";

// On a phone the list would cover the conversation.
if (narrow.matches && settings.value.sidebar) set({ sidebar: false });
render(<App />, document.body);
void look();
