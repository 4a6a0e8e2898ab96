// The words of statuses, states and reasons: as the command prints them, in addresses and on the screens.

import type { DescEnum } from "@bufbuild/protobuf";
import { type ReplayState, ReplayStateSchema } from "./gen/weft/v1/replay_service_pb";
import { type ShardState, ShardStateSchema } from "./gen/weft/v1/shard_service_pb";
import {
  type AttemptClass,
  AttemptClassSchema,
  type DeadLetterReason,
  DeadLetterReasonSchema,
  type DeadLetterStatus,
  DeadLetterStatusSchema,
  type DeliveryStatus,
  DeliveryStatusSchema,
  type EventStatus,
  EventStatusSchema,
  type ReceiverCondition,
  ReceiverConditionSchema,
} from "./gen/weft/v1/status_pb";
import { type LaneState, LaneStateSchema } from "./gen/weft/v1/workflow_service_pb";

function words<T extends number>(of: DescEnum) {
  const name = (value: number) => of.value[value]?.localName.toLowerCase();
  return {
    /** The word of a value; empty for none, `unknown` for one that only a newer admin has. */
    word: (value?: T): string => (value ? (name(value) ?? "unknown") : ""),
    /** The value of a word. The admin refuses that of an unknown word. */
    of: (word: string): T => (of.values.find((value) => value.number !== 0 && name(value.number) === word)?.number ?? (word ? -1 : 0)) as T,
  };
}

export const attemptClass = words<AttemptClass>(AttemptClassSchema);
export const deadLetterReason = words<DeadLetterReason>(DeadLetterReasonSchema);
export const deadLetterStatus = words<DeadLetterStatus>(DeadLetterStatusSchema);
export const deliveryStatus = words<DeliveryStatus>(DeliveryStatusSchema);
export const eventStatus = words<EventStatus>(EventStatusSchema);
export const laneState = words<LaneState>(LaneStateSchema);
export const receiverCondition = words<ReceiverCondition>(ReceiverConditionSchema);
export const replayState = words<ReplayState>(ReplayStateSchema);
export const shardState = words<ShardState>(ShardStateSchema);
