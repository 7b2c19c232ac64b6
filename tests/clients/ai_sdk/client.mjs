// The Vercel AI SDK against a server: text whole and streamed, typed objects, tools with their answers, vectors, errors.
//   node client.mjs http://127.0.0.1:50051 demo
// ../ai_sdk.py starts a server and runs this. Ends with 0 where every answer is as it must be.
import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, embedMany, generateObject, generateText, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";

const [origin, name] = process.argv.slice(2);
const baseURL = `${origin}/v1`;
const compatible = createOpenAICompatible({
  name: "candlewick", baseURL, apiKey: "none", includeUsage: true, supportsStructuredOutputs: true,
});
const openai = createOpenAI({ baseURL, apiKey: "none" });
const prompt = "What is candlewick?";
const plain = { prompt, temperature: 0, maxOutputTokens: 40, maxRetries: 0 };
// A small model at its likeliest loses itself in blanks between JSON's marks.
const seeded = { prompt, temperature: 1, seed: 1, maxOutputTokens: 300, maxRetries: 0 };

const person = z.strictObject({ name: z.string().min(1).max(12), age: z.int().min(0).max(120), kind: z.enum(["child", "adult"]) });
const place = z.strictObject({ place: z.enum(["Paris", "Oslo"]), days: z.int().min(1).max(7) });

const parts = {
  async "text, of three ways into the API"() {
    const said = [];
    for (const model of [compatible(name), openai.chat(name), openai.responses(name)]) {
      const whole = await generateText({ model, ...plain });
      assert.match(whole.text.toLowerCase(), /candlewick/);
      assert.ok(whole.usage.outputTokens > 0 && ["stop", "length"].includes(whole.finishReason));
      const stream = streamText({ model, ...plain, onError: ({ error }) => { throw error; } });
      let told = "";
      let pieces = 0;
      for await (const piece of stream.textStream) {
        told += piece;
        pieces += 1;
      }
      assert.equal(told, whole.text);
      assert.ok(pieces > 1);
      assert.equal((await stream.usage).outputTokens, whole.usage.outputTokens);
      said.push(told);
    }
    assert.deepEqual(said, Array(3).fill(said[0]));
    return said[0];
  },

  async "a completion"() {
    const { text } = await generateText({ model: compatible.completionModel(name), ...plain, prompt: "Once upon a time" });
    assert.ok(text.length > 10);
  },

  async "typed objects, whole and streamed"() {
    for (const model of [compatible(name), openai.chat(name), openai.responses(name)]) {
      const { object } = await generateObject({ model, schema: person, ...seeded });
      person.parse(object);
      const stream = streamObject({ model, schema: person, ...seeded, onError: ({ error }) => { throw error; } });
      let partial = 0;
      for await (const part of stream.partialObjectStream) partial += Object.keys(part).length < 3 ? 1 : 0;
      assert.ok(partial > 0, "it came in parts");
      person.parse(await stream.object);
    }
  },

  async "tools, and what they answer"() {
    const asked = [];
    const weather = tool({
      description: "The weather somewhere.",
      inputSchema: place,
      execute: async (input) => {
        asked.push(place.parse(input));
        return { sky: "rain" };
      },
    });
    const call = { tools: { weather }, ...seeded };
    const toolChoice = { type: "tool", toolName: "weather" };
    for (const model of [compatible(name), openai.chat(name)]) {
      const { toolCalls, finishReason } = await generateText({ model, toolChoice, ...call });
      assert.equal(toolCalls.length, 1);
      assert.equal(finishReason, "tool-calls");
      const stream = streamText({ model, toolChoice, ...call, onError: ({ error }) => { throw error; } });
      let pieces = 0;
      for await (const part of stream.fullStream) pieces += part.type === "tool-input-delta" ? 1 : 0;
      const [streamed] = await stream.toolCalls;
      place.parse(streamed.input);
      assert.ok(pieces > 1, "arguments came in pieces");
    }
    // The SDK sends the answer back, and the model goes on.
    const told = await generateText({
      model: compatible(name), ...call, stopWhen: stepCountIs(2),
      prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? toolChoice : "none" }),
    });
    assert.equal(told.steps.length, 2);
    assert.equal(told.steps[0].toolResults[0].output.sky, "rain");
    return `${asked.length} calls`;
  },

  async "vectors"() {
    const values = ["a wick", "a candle", "a wick"];
    const { embeddings } = await embedMany({ model: compatible.embeddingModel(name), values });
    assert.ok(embeddings.length === 3 && embeddings[0].length > 0);
    assert.deepEqual(embeddings[0], embeddings[2]);
    assert.notDeepEqual(embeddings[0], embeddings[1]);
  },

  async "errors"() {
    for (const [model, more, status, says] of [[compatible("other"), {}, 404, /other/], [compatible(name), { topP: 7 }, 400, /top_p/]]) {
      await assert.rejects(generateText({ model, ...plain, ...more }), (error) => {
        assert.ok(APICallError.isInstance(error), error);
        assert.equal(error.statusCode, status);
        assert.match(error.message, says);
        return true;
      });
    }
  },

  async "a stream that is left"() {
    const stop = new AbortController();
    const stream = streamText({ model: compatible(name), ...plain, maxOutputTokens: 400, abortSignal: stop.signal });
    for await (const _ of stream.textStream) {
      stop.abort();
      break;
    }
  },
};

for (const [part, run] of Object.entries(parts)) {
  const said = await run();
  console.log(`ok    AI SDK: ${part}${said ? `: ${said}` : ""}`);
}
