// What a subscription is, in a few words.

import { type Destination, HttpFormat, type Retry, type Subscription } from "./gen/weft/v1/catalog_pb";
import { durationText, plural } from "./format";

export function destinationText({ destination }: Subscription): string {
  const kind = destination?.kind;
  switch (kind?.case) {
    case "http":
      return kind.value.url;
    case "grpc":
      return `gRPC ${kind.value.url}`;
    case "nats":
      return `NATS ${kind.value.subject}`;
    case "postgres":
      return `PostgreSQL ${kind.value.table || "weft_events"}`;
    case "custom":
      return `custom ${kind.value.name}`;
    default:
      return "none";
  }
}

export const kindOf = (destination?: Destination) => destination?.kind.case ?? "none";

export function retryText(retry?: Retry): string {
  if (!retry) return "the default";
  if (retry.scheduleMs.length > 0) return retry.scheduleMs.map((ms) => durationText(Number(ms))).join(", ");
  return `${plural(retry.maxRetries, "retry", "retries")}: ${durationText(Number(retry.baseMs))} × ${retry.factor}, at most ${durationText(Number(retry.maxMs))}`;
}

export const FORMATS: [HttpFormat, string][] = [
  [HttpFormat.ENVELOPE, "envelope: the event as JSON"],
  [HttpFormat.CLOUDEVENTS, "CloudEvents, binary"],
  [HttpFormat.RAW, "raw: the data alone"],
];
