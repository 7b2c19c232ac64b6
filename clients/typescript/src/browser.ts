// In a browser: gRPC-Web. Pages of other sites need the server's --allowed-origins. Sessions need Node.
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { authorize, Candlewick } from "./index.js";

export * from "./index.js";

/** A server by its origin; the page's own where none is given. */
export function connect(baseUrl: string = location.origin, options: { apiKey?: string } = {}): Candlewick {
  return new Candlewick(
    createGrpcWebTransport({ baseUrl, useBinaryFormat: true, interceptors: authorize(options.apiKey) }),
  );
}
