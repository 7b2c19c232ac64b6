// In Node: gRPC itself, over HTTP/2.
import { createGrpcTransport } from "@connectrpc/connect-node";
import { authorize, Candlewick } from "./index.js";

export * from "./index.js";

/** A server by its origin, `http://127.0.0.1:50051`. */
export function connect(baseUrl = "http://127.0.0.1:50051", options: { apiKey?: string } = {}): Candlewick {
  return new Candlewick(createGrpcTransport({ baseUrl, interceptors: authorize(options.apiKey) }));
}
