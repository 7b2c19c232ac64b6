// What the server says about a call that failed, beside its code and message.
import { ConnectError } from "@connectrpc/connect";
import { BadRequestSchema, RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";

/** Which fields are wrong, and when to come back. */
export interface Refusal {
  fields: { field: string; description: string }[];
  retryAfterMs: number | undefined;
}

/** The details of an error that a call or a stream threw; empty where it carries none. */
export function refusal(thrown: unknown): Refusal {
  const error = ConnectError.from(thrown);
  const [bad] = error.findDetails(BadRequestSchema);
  const delay = error.findDetails(RetryInfoSchema)[0]?.retryDelay;
  return {
    fields: (bad?.fieldViolations ?? []).map(({ field, description }) => ({ field, description })),
    retryAfterMs: delay && Number(delay.seconds) * 1000 + delay.nanos / 1e6,
  };
}
