// The server's services over gRPC-Web, and what its errors mean to a person.
import { Code, ConnectError, createClient, type Interceptor } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { Chat } from "./gen/candlewick/v1/chat_pb.js";
import { Models } from "./gen/candlewick/v1/models_pb.js";
import { Tokens } from "./gen/candlewick/v1/tokens_pb.js";
import { BadRequestSchema, RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import { settings } from "./settings.js";

/** Sends the key, where the person has given one. */
const authorize: Interceptor = (next) => (request) => {
  const key = settings.value.apiKey.trim();
  if (key !== "") request.header.set("authorization", `Bearer ${key}`);
  return next(request);
};

// Relative to the page, so that a proxy may serve it under a path of its own.
const transport = createGrpcWebTransport({
  baseUrl: new URL(".", document.baseURI).href.replace(/\/$/, ""),
  useBinaryFormat: true,
  interceptors: [authorize],
});

export const chat = createClient(Chat, transport);
export const models = createClient(Models, transport);
export const tokens = createClient(Tokens, transport);

/** Why a call failed: what to do about it, and what to say. */
export interface Failure {
  kind: "stopped" | "lost" | "busy" | "key" | "refused" | "failed";
  message: string;
  /** When the server asks to be asked again, in milliseconds. */
  retryAfter?: number;
}

export function failure(thrown: unknown, signal?: AbortSignal): Failure {
  if (signal?.aborted) return { kind: "stopped", message: "" };
  // What fails on its way to the server or there is a ConnectError. Anything else went wrong here, and will again.
  if (!(thrown instanceof ConnectError)) return { kind: "refused", message: sentence(words(thrown)) };
  const error = thrown;
  const message = sentence(error.rawMessage);
  switch (error.code) {
    case Code.ResourceExhausted:
      return { kind: "busy", message, retryAfter: retryAfter(error) };
    case Code.Unavailable:
      return { kind: "lost", message: message || "The server is not there.", retryAfter: retryAfter(error) };
    case Code.Unauthenticated:
    case Code.PermissionDenied:
      return { kind: "key", message };
    case Code.InvalidArgument: {
      const [violation] = error.findDetails(BadRequestSchema).flatMap((bad) => bad.fieldViolations);
      // The page's own messages are one field of the request; a person knows them by another name.
      const field = violation?.field === "messages" ? "The conversation" : violation?.field;
      return { kind: "refused", message: violation ? sentence(`${field} ${violation.description}`) : message };
    }
    default:
      // What the server has not said itself (it always gives details) was said by a network that broke.
      return error.details.length > 0
        ? { kind: "failed", message }
        : { kind: "lost", message: "The connection to the server is lost." };
  }
}

function retryAfter(error: ConnectError): number | undefined {
  const [delay] = error.findDetails(RetryInfoSchema).map((info) => info.retryDelay);
  return delay && Number(delay.seconds) * 1000 + delay.nanos / 1e6;
}

function words(thrown: unknown): string {
  return thrown instanceof Error ? thrown.message : String(thrown);
}

function sentence(text: string): string {
  return text === "" ? text : `${text[0]!.toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
}
