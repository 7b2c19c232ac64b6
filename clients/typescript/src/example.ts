// Talks to a server: a chat that streams, a session of two turns, what a refused request carries, and gRPC-Web.
//   npm install --no-save && npm run build && node dist/example.js [http://127.0.0.1:50051]
// Ends with 0 where everything came as it should.
import assert from "node:assert/strict";
import { connect as connectWeb } from "./browser.js";
import { Code, ConnectError, connect, FinishReason, ModelState, refusal, Session } from "./node.js";

const origin = process.argv[2] ?? "http://127.0.0.1:50051";
const apiKey = process.env["CANDLEWICK_API_KEY"];
const server = connect(origin, { apiKey });
const options = { sampling: { temperature: 0, maxTokens: 32 } };
const timeout = { timeoutMs: 120_000 };

for await (const models of server.watch(timeout)) {
  assert.deepEqual(models, await server.list(timeout));
  console.log(`models: ${models.map(({ name, state }) => `${name} ${ModelState[state]}`).join(", ")}`);
  break;
}

const stream = server.chatStream("What is candlewick?", { options }, timeout);
let text = "";
for await (const piece of stream.text()) text += piece;
const [finished] = stream.finished;
assert.ok(text !== "" && finished?.usage && finished.finish);
console.log(`stream: ${finished.usage.completionTokens} tokens, ${FinishReason[finished.finish.reason]}: ${text}`);

// As a browser does it: the same words in other envelopes.
let web = "";
for await (const piece of connectWeb(origin, { apiKey }).chatStream("What is candlewick?", { options }, timeout).text()) web += piece;
assert.equal(web, text);

const { session, opened } = await Session.open(server.chat, { system: "You tell stories.", options });
assert.ok(opened?.sessionId);
const turn = async (content: string) => {
  const said = session.say(content);
  for await (const delta of said) assert.equal(typeof delta.text, "string");
  assert.ok(said.done?.usage);
  return { ...said.done, usage: said.done.usage };
};
const first = await turn("Once upon a time there was a fox.");
const second = await turn("And then?");
const known = first.usage.promptTokens + first.usage.completionTokens;
assert.ok(second.turnIndex === 1 && second.computedTokens <= second.usage.promptTokens - known + 17);
await session.rewind(1);
// Too late, and the next turn is none the worse for it.
session.cancel();
const again = await turn("And then?");
assert.equal(session.refusals.length, 1);
assert.equal(again.message?.content, second.message?.content);
await session.close();
console.log(`session: turn 2 had ${second.usage.promptTokens} prompt tokens and computed ${second.computedTokens}`);

try {
  for await (const _ of server.generateStream("Hi", { options: { sampling: { temperature: -1 } } }));
  assert.fail("a wrong temperature was not refused");
} catch (thrown) {
  const { code } = ConnectError.from(thrown);
  const [wrong] = refusal(thrown).fields;
  assert.equal(code, Code.InvalidArgument);
  assert.equal(wrong?.field, "options.sampling.temperature");
  console.log(`refusal: ${Code[code]}: ${wrong.field} ${wrong.description}`);
}

try {
  for await (const _ of server.load({ name: "nobody" }, timeout));
  assert.fail("a model that nobody knows was loaded");
} catch (thrown) {
  assert.equal(ConnectError.from(thrown).code, Code.NotFound);
}

// Who leaves the loop cancels the request.
for await (const _ of server.generateStream("Once upon a time", { options: { sampling: { ignoreEos: true } } })) break;
// Connections are kept for the next call; this program makes none.
process.exit(0);
