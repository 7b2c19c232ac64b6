// What runs in the browser: connect-web and grpc-web, each with a unary call and a stream, from a page of another site.
import { createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { GrpcWebClientBase, MethodDescriptor, MethodType } from "grpc-web";
import {
  Generation, GenerateStreamRequestSchema, GenerateStreamResponseSchema,
} from "./gen/candlewick/v1/generation_pb.js";
import { ListRequestSchema, ListResponseSchema, Models } from "./gen/candlewick/v1/models_pb.js";

const request = (temperature) => ({
  prompt: { prompt: { case: "text", value: "Once upon a time" } },
  options: { sampling: { temperature, maxTokens: 32 } },
});

/** Text, number of messages, and how many came before the last one by more than a moment. */
function told() {
  const deltas = [];
  let finished = false;
  return {
    take({ event }) {
      if (event.case === "delta") deltas.push(event.value.text);
      if (event.case === "finished") finished = true;
    },
    get result() {
      return { text: deltas.join(""), deltas: deltas.length, finished };
    },
  };
}

async function connectWeb(origin) {
  const transport = createGrpcWebTransport({ baseUrl: origin });
  const { models } = await createClient(Models, transport).list({});
  const stream = told();
  for await (const response of createClient(Generation, transport).generateStream(request(0))) stream.take(response);
  let refused;
  try {
    for await (const _ of createClient(Generation, transport).generateStream(request(-1)));
  } catch (error) {
    refused = { code: error.code, details: error.details.length, message: error.rawMessage };
  }
  return { model: models[0].name, ...stream.result, refused };
}

function grpcWeb(origin, format) {
  const client = new GrpcWebClientBase({ format });
  const descriptor = (path, type, input, output) =>
    new MethodDescriptor(path, type, Object, Object, (message) => toBinary(input, message), (bytes) => fromBinary(output, bytes));
  const list = descriptor("/candlewick.v1.Models/List", MethodType.UNARY, ListRequestSchema, ListResponseSchema);
  const generate = descriptor(
    "/candlewick.v1.Generation/GenerateStream", MethodType.SERVER_STREAMING, GenerateStreamRequestSchema, GenerateStreamResponseSchema,
  );
  const stream = (temperature) => new Promise((done) => {
    const heard = told();
    const call = client.serverStreaming(
      `${origin}/candlewick.v1.Generation/GenerateStream`, create(GenerateStreamRequestSchema, request(temperature)), {}, generate,
    );
    call.on("data", (response) => heard.take(response));
    call.on("error", (error) => done({ ...heard.result, error: { code: error.code, message: error.message } }));
    call.on("end", () => done(heard.result));
  });
  return (async () => {
    const { models } = await new Promise((resolve, reject) => {
      client.rpcCall(`${origin}/candlewick.v1.Models/List`, create(ListRequestSchema), {}, list, (error, answer) => (error ? reject(error) : resolve(answer)));
    });
    const refused = (await stream(-1)).error;
    return { model: models[0].name, ...(await stream(0)), refused };
  })();
}

window.clients = {
  "connect-web": (origin) => connectWeb(origin),
  "grpc-web, binary": (origin) => grpcWeb(origin, "binary"),
  "grpc-web, text": (origin) => grpcWeb(origin, "text"),
};
