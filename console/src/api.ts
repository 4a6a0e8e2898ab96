// The services of the admin as gRPC-web, with the session's cookie.

import type { DescService } from "@bufbuild/protobuf";
import { Code, ConnectError, createClient, type Interceptor } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { AuditService } from "./gen/weft/v1/audit_service_pb";
import { CatalogService } from "./gen/weft/v1/catalog_service_pb";
import { DeadLetterService } from "./gen/weft/v1/dead_letter_service_pb";
import { EventService } from "./gen/weft/v1/event_service_pb";
import { RejectedService } from "./gen/weft/v1/rejected_service_pb";
import { ReplayService } from "./gen/weft/v1/replay_service_pb";
import { ShardService } from "./gen/weft/v1/shard_service_pb";
import { StatsService } from "./gen/weft/v1/stats_service_pb";
import { WorkflowService } from "./gen/weft/v1/workflow_service_pb";

const HEADERS = { "x-weft-console": "1" };

export type Scope = "ingest" | "read" | "operate" | "admin";

/** Who is signed in, and what the key may do. */
export interface Operator {
  operator: string;
  scopes: Scope[];
  sources: string[];
  workflowPrefixes: string[];
}

let whenLost = () => {};

/** Calls `listener` when a call was refused because the session has ended. */
export function onSessionLost(listener: () => void) {
  whenLost = listener;
}

let lag: { messages: number; ms: number } | undefined;

/** How far the history was behind the log at the newest answer. */
export const historyLag = () => lag;

const session: Interceptor = (next) => async (request) => {
  for (const [name, value] of Object.entries(HEADERS)) request.header.set(name, value);
  try {
    const response = await next(request);
    const messages = response.header.get("weft-as-of-messages");
    if (messages !== null) {
      lag = { messages: Number(messages), ms: Number(response.header.get("weft-as-of-lag-ms") ?? 0) };
    }
    return response;
  } catch (error) {
    if (error instanceof ConnectError && error.code === Code.Unauthenticated) whenLost();
    throw error;
  }
};

const transport = createGrpcWebTransport({ baseUrl: location.origin, interceptors: [session] });
const client = <Service extends DescService>(service: Service) => createClient(service, transport);

export const api = {
  events: client(EventService),
  deadLetters: client(DeadLetterService),
  workflows: client(WorkflowService),
  replays: client(ReplayService),
  catalog: client(CatalogService),
  rejected: client(RejectedService),
  shards: client(ShardService),
  audit: client(AuditService),
  stats: client(StatsService),
};

/** The operator of the session; `null`: there is no session. */
export async function currentOperator(): Promise<Operator | null> {
  const response = await fetch("/session", { headers: HEADERS });
  if (response.status === 401) return null;
  if (!response.ok) throw new Error(await detail(response));
  return response.json();
}

export async function signIn(key: string): Promise<Operator> {
  const response = await fetch("/session", {
    method: "POST",
    headers: { ...HEADERS, "content-type": "application/json" },
    body: JSON.stringify({ key }),
  });
  if (!response.ok) throw new Error(await detail(response));
  return response.json();
}

/** Ends the session. Fails where it may still be open. */
export async function signOut() {
  const response = await fetch("/session", { method: "DELETE", headers: HEADERS }).catch(() => {
    throw new Error("the admin cannot be reached; the session is still open");
  });
  if (!response.ok && response.status !== 401) throw new Error(`${await detail(response)}; the session may still be open`);
}

async function detail(response: Response): Promise<string> {
  const answer: { detail?: string } = await response.json().catch(() => ({}));
  return answer.detail ?? `the admin answered ${response.status}`;
}

/** An error in one line, for a person. */
export function message(error: unknown): string {
  if (error instanceof ConnectError) {
    // An answer of the admin names its reason; what has none is of the browser, or of a proxy.
    const isAnswer = error.metadata.has("grpc-status") || error.details.length > 0;
    return !isAnswer && (error.code === Code.Unknown || error.code === Code.Unavailable)
      ? `the admin cannot be reached: ${error.rawMessage}`
      : error.rawMessage || error.message;
  }
  return error instanceof Error ? error.message : String(error);
}

/** A request id: the same one acts once, however often it is sent. */
export function requestId(): string {
  // Browsers offer this on the machine itself, and with TLS.
  if (typeof crypto.randomUUID === "function") return crypto.randomUUID();
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
