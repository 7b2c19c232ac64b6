#!/usr/bin/env node
// The chat page, and connect-web and grpc-web beside it, in headless Chromium against the built-in model.
//
//     npm ci --prefix web && npm --prefix web run generate      (the messages' types)
//     npm ci --prefix tests/clients/web
//     node tests/clients/web/page.mjs target/debug/candlewick [--shots DIR] [--only WORD] [--source]
//
// Needs a Chromium: Debian's package, or CHROMIUM=/path/to/one. Ends with 0 where everything is as it must be.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import http from "node:http";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { chromium } from "playwright-core";
import { freePort, Server, until } from "./server.mjs";

const here = dirname(fileURLToPath(import.meta.url));
const [binary, ...rest] = process.argv.slice(2);
if (!binary) {
  console.error("usage: page.mjs path/to/candlewick [--shots DIR] [--only WORD]");
  process.exit(2);
}
const option = (name) => (rest.includes(name) ? rest[rest.indexOf(name) + 1] : undefined);
const shots = option("--shots");
if (shots) mkdirSync(shots, { recursive: true });
const only = option("--only");

const executablePath = process.env.CHROMIUM ?? ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync);
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => process.exit(1));
process.setMaxListeners(100);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
const tests = [];

/** A server. With --source its page comes from web/src as it is, and not from the binary. */
async function start(flags = []) {
  const server = await new Server(binary, await freePort(), ["--threads", "1", ...flags]).start();
  if (!rest.includes("--source")) return server;
  const port = await freePort();
  const build = spawn("node", [join(here, "../../../web/build.mjs"), "--serve", server.origin], { env: { ...process.env, PORT: port }, stdio: ["ignore", "pipe", "inherit"] });
  process.once("exit", () => build.kill());
  await new Promise((up) => build.stdout.once("data", up));
  server.origin = `http://127.0.0.1:${port}`;
  return server;
}
const test = (name, body) => tests.push({ name, body });
/** A test during which the server is slow: a fast one would have told its stories before anybody could stop them. */
const slowly = (body) => async (server) => {
  const quick = server.slowed();
  try {
    await body(server);
  } finally {
    quick();
  }
};

/** A page of a person of their own; whatever it asks for elsewhere, and whatever it complains of, fails the test. */
async function open(server, { context, ...options } = {}) {
  const own = context ?? (await browser.newContext({ viewport: { width: 1280, height: 800 }, ...options }));
  const page = await own.newPage();
  page.setDefaultTimeout(15_000);
  page.wrong = [];
  page.on("request", (request) => {
    const url = new URL(request.url());
    if (url.origin !== server.origin && !["data:", "blob:"].includes(url.protocol)) page.wrong.push(`asked for ${url}`);
  });
  page.on("pageerror", (error) => page.wrong.push(`threw ${error}`));
  page.on("console", (message) => {
    if (message.type() === "error" && !/net::ERR|Failed to load resource/.test(message.text())) page.wrong.push(message.text());
  });
  await page.goto(server.origin, { waitUntil: "load" });
  await page.locator(".dot.there").waitFor();
  opened.push(page);
  return page;
}
let opened = [];

async function say(page, text) {
  await page.locator("#message").fill(text);
  await page.keyboard.press("Enter");
}
const last = (page) => page.locator(".turn.assistant").last();
const answered = (page) => last(page).locator(".foot").waitFor({ timeout: 30_000 });
const prose = async (page) => (await last(page).locator(".prose, .tokens").allTextContents()).join("");
const busy = (server) => server.metric("vllm:num_requests_running");
const shot = (page, name) => shots && page.screenshot({ path: join(shots, `${name}.png`) });

/** A story so long that there is time to do something to it. */
const STORY = "Tell me a story about a lighthouse.";
const begun = (page) => until("an answer begins", async () => (await prose(page)).length > 10);
const limit = async (page, tokens) => {
  await page.evaluate((tokens) => {
    const settings = JSON.parse(localStorage.getItem("candlewick.settings") ?? "{}");
    localStorage.setItem("candlewick.settings", JSON.stringify({ ...settings, ...tokens }));
  }, tokens);
  await page.reload();
  await page.locator(".dot.there").waitFor();
};

test("a conversation streams, with its figures", slowly(async (server) => {
  const page = await open(server);
  await shot(page, "welcome");
  // Every state of the answer that is ever drawn.
  await page.evaluate(() => {
    window.seen = new Set();
    const look = () => window.seen.add([...document.querySelectorAll(".turn.assistant .prose")].at(-1)?.textContent ?? "");
    new MutationObserver(look).observe(document.body, { childList: true, subtree: true, characterData: true });
  });
  await say(page, STORY);
  await answered(page);
  await say(page, "What is candlewick?");
  await until("the question stands there", async () => (await page.locator(".turn").count()) === 4);
  await answered(page);
  const seen = await page.evaluate(() => window.seen.size);
  assert.ok(seen >= 5, `the answers came in ${seen} pieces`);
  assert.equal(await page.locator(".turn").count(), 4);
  const figures = await last(page).locator(".figures").innerText();
  assert.match(figures, /\d+ tokens/);
  assert.match(figures, /[\d.]+ tokens\/s/);
  assert.match(figures, /first after \d+/);
  assert.match(figures, /\d+ of \d+ cached/);
  const cached = Number(figures.match(/(\d+) of \d+ cached/)[1]);
  assert.ok(cached > 0, "the second turn finds the first in the cache");
  await shot(page, "conversation");
  await page.reload();
  assert.equal(await page.locator(".turn").count(), 4, "the conversation outlives a reload");
}));

test("stop stops, on the server too, and continue goes on", slowly(async (server) => {
  const page = await open(server);
  await say(page, STORY);
  await begun(page);
  // Held still, so that the answer cannot end before it is stopped.
  server.hold();
  await page.keyboard.press("Escape");
  await answered(page);
  server.release();
  const text = await prose(page);
  await until("the server does nothing", async () => (await busy(server)) === 0);
  assert.equal(await prose(page), text);
  await last(page).getByRole("button", { name: "Continue" }).click();
  await until("it goes on", async () => (await prose(page)).length > text.length + 10);
  await answered(page);
  assert.ok((await prose(page)).startsWith(text.trimEnd().slice(0, -5)), "what was there stays");
}));

test("two tabs answer at once and keep each other's conversations", slowly(async (server) => {
  const first = await open(server);
  const second = await open(server, { context: first.context() });
  await Promise.all([say(first, STORY), say(second, "Tell me a story about a fox.")]);
  await until("both are answered at once", async () => (await busy(server)) === 2);
  await Promise.all([answered(first), answered(second)]);
  for (const page of [first, second]) {
    await until("both are in the list", async () => (await page.locator(".entry").count()) === 2);
    assert.ok((await prose(page)).length > 20);
  }
}));

test("a turn is edited, answered again and forked", async (server) => {
  const page = await open(server);
  await say(page, "What is candlewick?");
  await answered(page);
  const before = await prose(page);
  // Arrow up in an empty box edits what was said last.
  await page.locator("#message").press("ArrowUp");
  const editor = page.getByRole("textbox", { name: "Edit the message" });
  await editor.fill("What is 2 + 2?");
  await editor.press("Enter");
  // The answer before it was there already.
  await until("the turn is edited", async () => (await page.locator(".turn.user .plain").innerText()) === "What is 2 + 2?");
  await answered(page);
  assert.equal(await page.locator(".turn.user .versions").innerText(), "2/2");
  await page.locator(".turn.user").hover();
  await shot(page, "versions");
  await page.locator(".turn.user").getByRole("button", { name: "Earlier version" }).click();
  await until("the earlier answer is back", async () => (await prose(page)) === before);
  await last(page).getByRole("button", { name: "Answer again" }).click();
  await until("there is another answer", async () => /2\/2/.test(await last(page).locator(".versions").innerText().catch(() => "")));
  await answered(page);
  await last(page).getByRole("button", { name: "Fork into a new chat" }).click();
  await until("there are two", async () => (await page.locator(".entry").count()) === 2);
  await say(page, "Hello!");
  await until("it goes on there", async () => (await page.locator(".turn").count()) === 4);
  await answered(page);
  await page.locator(".entry").nth(1).locator("a").click();
  await until("the first is as it was", async () => (await page.locator(".turn").count()) === 2);
});

test("a connection that breaks is taken up again", slowly(async (server) => {
  const page = await open(server);
  await limit(page, { knobs: { temperature: 0 } });
  await say(page, STORY);
  await begun(page);
  server.hold();
  const before = await prose(page);
  await server.kill();
  await last(page).locator(".waiting").waitFor();
  await shot(page, "lost");
  assert.ok((await prose(page)).startsWith(before.slice(0, 10)));
  await server.start();
  await last(page).getByRole("button", { name: "Now" }).click({ timeout: 3000 }).catch(() => undefined);
  await answered(page);
  assert.match(await last(page).locator(".figures").innerText(), /resumed 1×/);
  assert.ok((await prose(page)).length > before.length && (await prose(page)).startsWith(before.trimEnd().slice(0, -5)));
  await shot(page, "resumed");
}));

test("a server that is gone is said so, and found again", async (server) => {
  const page = await open(server);
  await server.kill();
  await say(page, "What is candlewick?");
  await last(page).locator(".waiting").waitFor();
  await last(page).getByRole("button", { name: "Stop" }).click();
  await answered(page);
  await server.start();
  await last(page).getByRole("button", { name: "Continue" }).click();
  await until("it is answered", async () => (await prose(page)).length > 10);
});

test("a reload in the middle keeps what came, and continue goes on", slowly(async (server) => {
  const page = await open(server);
  await limit(page, { knobs: { temperature: 0 } });
  await say(page, STORY);
  await begun(page);
  await page.reload();
  await until("the server does nothing", async () => (await busy(server)) === 0);
  const text = await prose(page);
  assert.ok(text.length > 0);
  await last(page).getByRole("button", { name: "Continue" }).click();
  await until("it goes on", async () => (await prose(page)).length > text.length + 10);
}));

test("conversations leave as files and come back", async (server) => {
  const page = await open(server);
  await say(page, "What is candlewick?");
  await answered(page);
  const save = async (name) => {
    const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name }).click()]);
    return { name: download.suggestedFilename(), text: readFileSync(await download.path(), "utf8") };
  };
  const markdown = await save("Export as Markdown");
  assert.equal(markdown.name, "what-is-candlewick.md");
  assert.ok(markdown.text.includes(`**demo**\n\n${await prose(page).then((text) => text.trim())}`), markdown.text);
  const all = await save("Export all conversations");
  await page.locator(".entry").hover();
  await page.getByRole("button", { name: "Delete" }).click();
  await page.getByRole("button", { name: "Delete?" }).click();
  await until("none is left", async () => (await page.locator(".entry").count()) === 0);
  await page.locator('input[type="file"]').setInputFiles({ name: all.name, mimeType: "application/json", buffer: Buffer.from(all.text) });
  await page.locator(".entry a").click();
  assert.equal(await page.locator(".turn").count(), 2);
});

test("a full queue is waited for", async () => {
  const server = await start(["--max-num-seqs", "1", "--max-waiting", "1"]);
  try {
    const pages = await Promise.all([1, 2, 3, 4].map(() => open(server)));
    await Promise.all(pages.map((page) => limit(page, { knobs: { temperature: 1, maxTokens: 300 } })));
    await Promise.all(pages.map((page) => say(page, STORY)));
    await Promise.all(pages.map(answered));
    for (const page of pages) assert.ok((await prose(page)).length > 20);
    assert.ok((await server.metric("candlewick:requests_refused_total")) > 0, "somebody was refused");
  } finally {
    await server.stop();
  }
});

test("token probabilities show what else was likely", async (server) => {
  const page = await open(server);
  await limit(page, { probabilities: true, knobs: { temperature: 1, maxTokens: 80 } });
  await say(page, STORY);
  await answered(page);
  await until("the tokens have their texts", async () => (await page.locator(".token", { hasText: "…" }).count()) === 0);
  // Together they are the answer.
  const told = (await page.locator(".token").allTextContents()).join("").replaceAll("⏎", "\n");
  const kept = await page.evaluate(() => {
    const key = Object.keys(localStorage).find((key) => key.startsWith("candlewick.conversation."));
    return Object.values(JSON.parse(localStorage.getItem(key)).turns).find((turn) => turn.role === "assistant").text;
  });
  // What ends an answer is a token of its own, which is no text.
  assert.equal(told.replace(/<\|end\|>$/, "").trim(), kept.trim());
  const warm = page.locator(".token:not(.shade-1)").nth(2);
  await warm.hover();
  await page.locator(".popover .chance").first().waitFor();
  assert.ok((await page.locator(".popover .chance").count()) >= 5);
  assert.equal(await page.locator(".popover .chosen").count(), 1);
  await shot(page, "probabilities");
  await last(page).getByRole("button", { name: "Show the text" }).click();
  await last(page).locator(".prose").waitFor();
});

test("the knobs reach the model and a mistake is said", async (server) => {
  const page = await open(server);
  await page.getByRole("button", { name: "Settings" }).click();
  await page.getByRole("spinbutton", { name: "Most tokens" }).fill("5");
  await page.getByRole("spinbutton", { name: "Most tokens" }).press("Tab");
  await page.getByRole("spinbutton", { name: "Temperature" }).fill("0");
  await page.getByRole("spinbutton", { name: "Temperature" }).press("Tab");
  await shot(page, "settings");
  await say(page, STORY);
  await answered(page);
  assert.match(await last(page).locator(".figures").innerText(), /5 tokens[\s\S]*cut at the limit/);
  assert.equal(await last(page).getByRole("button", { name: "Continue" }).count(), 1);
  await page.getByRole("spinbutton", { name: "Most tokens" }).fill("");
  await page.getByRole("spinbutton", { name: "Most tokens" }).press("Tab");
  // Longer than the context.
  await say(page, "lighthouse ".repeat(3000));
  await last(page).locator(".problem").waitFor();
  await shot(page, "refused");
});

test("models are picked, and an idle one comes when it is asked", async () => {
  const demo = join(here, "../../../models/demo");
  const server = await start(["--models", `second=${demo}`, "--model-idle-timeout", "1"]);
  try {
    const page = await open(server);
    await page.getByRole("button", { name: "Settings" }).click();
    const option = (name) => page.locator("#model option", { hasText: name }).innerText();
    await until("nobody used it, so it left", async () => /second · idle/.test(await option("second")));
    await page.locator("#model").selectOption("second");
    await page.evaluate(() => {
      window.coming = 0;
      const look = () => (window.coming += document.querySelectorAll(".coming progress").length);
      new MutationObserver(look).observe(document.body, { childList: true, subtree: true });
    });
    await slowly(async () => {
      await say(page, "What is candlewick?");
      await until("it is on its way", async () => (await page.evaluate(() => window.coming)) > 0);
      await shot(page, "loading");
    })(server);
    await answered(page);
    assert.ok((await prose(page)).length > 20);
    assert.equal(await option("second"), "second");
    await shot(page, "picker");
  } finally {
    await server.stop();
  }
});

test("what a model writes is shown, not run", async (server) => {
  const page = await open(server);
  const text = [
    "# A heading", "Some *prose* with `code`, a [link](https://example.org/), a [trap](javascript:alert(1)).",
    "<img src=x onerror=\"window.hacked=1\"> <script>window.hacked=1</script>", "![picture](https://example.org/pixel.png)",
    "```rust\nfn main() {\n    println!(\"{}\", 42);\n}\n```", "| a | b |\n|---|--:|\n| 1 | 2 |", "- [x] done\n- [ ] to do", "> quoted",
  ].join("\n\n");
  await page.evaluate((text) => {
    const turn = { parent: null, at: 1, rev: 1, state: "done" };
    const stats = { promptTokens: 31, cachedTokens: 16, completionTokens: 128, firstToken: 41, decoding: 1310 };
    const calls = [{ id: "c", name: "weather", arguments: '{"city":"Uppsala","days":3}' }];
    const turns = {
      u: { ...turn, id: "u", role: "user", text: "Show me everything." },
      a: { ...turn, id: "a", parent: "u", role: "assistant", text, reasoning: "What is everything?", calls, stats, finish: "tool_calls" },
    };
    const conversation = { id: "x", title: "Everything", created: 1, updated: 1, system: "", turns, shown: { "": "u", u: "a" } };
    localStorage.setItem("candlewick.conversation.x", JSON.stringify(conversation));
    location.hash = "x";
  }, text);
  await page.reload();
  await page.locator(".prose h1").waitFor();
  assert.equal(await page.evaluate(() => window.hacked), undefined);
  assert.equal(await page.locator(".prose img, .prose script").count(), 0);
  assert.deepEqual(await page.locator(".prose a").evaluateAll((links) => links.map((link) => link.getAttribute("href"))), [
    "https://example.org/", null, "https://example.org/pixel.png",
  ]);
  assert.ok((await page.locator(".code .hljs-keyword").count()) > 0);
  assert.equal(await page.locator(".prose input[type=checkbox][disabled]").count(), 2);
  await page.locator(".reasoning summary").click();
  await shot(page, "markdown");
  await page.getByRole("textbox", { name: "Result of weather" }).fill("Rain.");
  await page.getByRole("button", { name: "Give result" }).click();
  await page.locator(".turn.tool").waitFor();
});

/** Has the page show a conversation of these turns, one after another, and nothing else. */
async function shown(page, turns) {
  await page.evaluate((turns) => {
    const path = turns.map((turn, k) => ({ at: k, rev: 1, state: "done", ...turn, id: `t${k}`, parent: k > 0 ? `t${k - 1}` : null }));
    const conversation = {
      id: "x", title: "Shown", created: 1, updated: 1, system: "",
      turns: Object.fromEntries(path.map((turn) => [turn.id, turn])),
      shown: Object.fromEntries(path.map((turn) => [turn.parent ?? "", turn.id])),
    };
    localStorage.setItem("candlewick.conversation.x", JSON.stringify(conversation));
    location.hash = "x";
  }, turns);
  await page.reload();
  await page.locator(".turn").nth(turns.length - 1).waitFor();
}

test("knobs of whole numbers are whole, whoever set them", async (server) => {
  const page = await open(server);
  await limit(page, { knobs: { temperature: 0, seed: 1.5, topK: 3.7, maxTokens: 4.6 } });
  await say(page, STORY);
  await answered(page);
  assert.match(await last(page).locator(".figures").innerText(), /5 tokens[\s\S]*cut at the limit/);
  await page.getByRole("button", { name: "Settings" }).click();
  const seed = page.getByRole("spinbutton", { name: "Seed" });
  assert.equal(await seed.inputValue(), "2");
  for (const [given, kept] of [["7.4", "7"], ["99999999999", "4294967295"], ["-3", "0"]]) {
    await seed.fill(given);
    await seed.press("Tab");
    assert.equal(await seed.inputValue(), kept);
  }
});

test("a mistake of the page's own is no lost connection", async (server) => {
  const page = await open(server);
  await limit(page, { tools: "no json" });
  await say(page, "Hello");
  await last(page).locator(".problem").waitFor();
  assert.equal(await page.locator(".waiting").count(), 0);
  assert.doesNotMatch(await last(page).locator(".problem").innerText(), /connection/);
});

test("a link has the address that its own answer gives", async (server) => {
  const page = await open(server);
  const said = (address) => ({ role: "assistant", text: `See [the page][p].${address && `\n\n[p]: ${address}`}` });
  await shown(page, [{ role: "user", text: "Where?" }, said("https://example.org/one"), said("https://example.org/two"), said("")]);
  const links = page.locator(".prose a");
  assert.deepEqual(await links.evaluateAll((links) => links.map((link) => link.getAttribute("href"))), [
    "https://example.org/one", "https://example.org/two",
  ]);
});

test("the oldest turn is left out with all that answers it", async (server) => {
  const page = await open(server);
  const call = { id: "c", name: "weather", arguments: "{}" };
  await shown(page, [
    { role: "user", text: "What is the weather?" },
    { role: "assistant", text: "", calls: [call], finish: "tool_calls" },
    { role: "tool", text: "Rain.", answers: "c" },
    { role: "assistant", text: "It rains." },
    { role: "user", text: "What is candlewick?" },
    { role: "assistant", text: "", state: "failed", error: "The conversation is longer than the context." },
  ]);
  await page.getByRole("button", { name: "Leave out the oldest turn" }).click();
  await answered(page);
  await until("it is kept", async () => (await page.evaluate(() => JSON.parse(localStorage.getItem("candlewick.conversation.x")).dropped)) === 4);
  assert.equal(await page.getByRole("button", { name: "Leave out the oldest turn" }).count(), 0);
});

test("dark and light, by the system and by choice", async (server) => {
  const page = await open(server, { colorScheme: "dark" });
  const paper = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const dark = await paper();
  await page.emulateMedia({ colorScheme: "light" });
  const light = await paper();
  assert.notEqual(dark, light);
  await page.locator(".theme").click();
  assert.equal(await paper(), dark, "chosen against the system");
  await page.reload();
  assert.equal(await paper(), dark, "remembered");
  await say(page, "What is candlewick?");
  await answered(page);
  await shot(page, "dark");
});

test("a phone", async (server) => {
  const page = await open(server, { viewport: { width: 390, height: 780 }, hasTouch: true, isMobile: true, deviceScaleFactor: 2 });
  await shot(page, "phone-welcome");
  await page.locator("#message").tap();
  await say(page, "What is candlewick?");
  await answered(page);
  const wide = await page.evaluate(() => document.documentElement.scrollWidth);
  assert.ok(wide <= 390, `the page is ${wide} wide`);
  await shot(page, "phone");
  await page.getByRole("button", { name: "Show the list" }).tap();
  await page.locator(".sidebar").waitFor();
  await shot(page, "phone-list");
  await page.locator(".entry a").first().tap();
  await page.locator(".sidebar").waitFor({ state: "detached" });
  await page.getByRole("button", { name: "Settings" }).tap();
  await shot(page, "phone-settings");
});

test("keys: slash writes, shift and enter begins a line", async (server) => {
  const page = await open(server);
  await page.locator(".welcome").click();
  await page.keyboard.press("/");
  assert.equal(await page.evaluate(() => document.activeElement.id), "message");
  await page.keyboard.type("one");
  await page.keyboard.press("Shift+Enter");
  await page.keyboard.type("two");
  assert.equal(await page.locator("#message").inputValue(), "one\ntwo");
  await page.keyboard.press("Enter");
  await answered(page);
  assert.equal(await page.locator(".turn.user .plain").innerText(), "one\ntwo");
});

test("connect-web and grpc-web talk from a page of another site, and only where it is listed", async (server) => {
  const gen = join(here, "../../../web/src/gen");
  const alias = { name: "gen", setup: (build) => build.onResolve({ filter: /^\.\/gen\/candlewick\// }, ({ path }) => ({ path: join(gen, path.slice(6).replace(/\.js$/, ".ts")) })) };
  const bundle = await build({ entryPoints: [join(here, "clients.mjs")], bundle: true, write: false, format: "esm", plugins: [alias], nodePaths: [join(here, "node_modules")] });
  const script = bundle.outputFiles[0].text;
  const site = http.createServer((request, response) => {
    const page = request.url === "/";
    response.writeHead(200, { "content-type": page ? "text/html" : "text/javascript" });
    response.end(page ? "<!doctype html><script type=module src=/clients.js></script>" : script);
  });
  await new Promise((listening) => site.listen(0, "127.0.0.1", listening));
  const origin = `http://127.0.0.1:${site.address().port}`;
  const open = await new Server(binary, await freePort(), ["--allowed-origins", JSON.stringify([origin])]).start();
  try {
    const page = await browser.newPage();
    await page.goto(origin);
    const names = await page.evaluate(() => Object.keys(window.clients));
    const texts = new Set();
    for (const name of names) {
      const result = await page.evaluate(([name, origin]) => window.clients[name](origin), [name, open.origin]);
      console.log(`    ${name}: ${result.model}, ${result.deltas} deltas`);
      assert.ok(result.finished && result.deltas > 3, JSON.stringify(result));
      assert.equal(result.refused.code, 3, JSON.stringify(result.refused));
      assert.match(result.refused.message, /temperature/);
      texts.add(result.text);
      const refused = await page.evaluate(([name, origin]) => window.clients[name](origin).then(() => "answered", () => "refused"), [name, server.origin]);
      assert.equal(refused, "refused", `${name} reached a server that does not list the site`);
    }
    assert.equal(texts.size, 1, "all say the same");
    await page.close();
  } finally {
    site.close();
    await open.stop();
  }
});

const server = await start();
let failed = 0;
for (const { name, body } of tests.filter(({ name }) => !only || name.includes(only))) {
  opened = [];
  try {
    await body(server);
    const wrong = opened.flatMap((page) => page.wrong);
    assert.deepEqual(wrong, [], "nothing is asked for elsewhere and nothing goes wrong in the page");
    console.log(`ok    ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAIL  ${name}\n      ${String(error.stack ?? error).replaceAll("\n", "\n      ")}`);
    if (opened[0]) await shot(opened[0], `failed-${tests.findIndex((test) => test.name === name)}`);
    if (server.process.exitCode !== null || server.process.signalCode !== null) await server.start();
  } finally {
    await Promise.all(opened.map((page) => page.context().close().catch(() => undefined)));
  }
}
await browser.close();
await server.stop();
console.log(failed === 0 ? "the page does what it should" : `${failed} failed`);
process.exit(failed === 0 ? 0 : 1);
