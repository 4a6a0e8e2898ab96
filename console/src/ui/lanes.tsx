// Lanes: their state, and what an operator can do to them, to several at once.

import { useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { api, message, requestId } from "../api";
import { count, dateOf, plural, textOf } from "../format";
import { LaneState, type WorkflowLane } from "../gen/weft/v1/workflow_service_pb";
import { eventPath, Link, subscriptionPath, workflowPath } from "../router";
import { useSession } from "../session";
import { Action } from "./action";
import { Age, Status, Text, Time } from "./basics";
import { laneState, receiverCondition } from "../words";

export const laneId = (lane: WorkflowLane) => JSON.stringify([lane.subscription, lane.workflowId, lane.headEventId]);

interface TableProps {
  lanes: WorkflowLane[];
  selected: ReadonlySet<string>;
  onSelected: (selected: ReadonlySet<string>) => void;
  hideWorkflow?: boolean;
}

export function LaneTable({ lanes, selected, onSelected, hideWorkflow }: TableProps) {
  const { may } = useSession();
  const toggle = (id: string) => {
    const next = new Set(selected);
    if (!next.delete(id)) next.add(id);
    onSelected(next);
  };
  const all = lanes.length > 0 && lanes.every((lane) => selected.has(laneId(lane)));
  return (
    <div className="scroll" tabIndex={0} role="group" aria-label="Lanes">
      <table>
        <thead>
          <tr>
            {may("operate") && (
              <th>
                <input type="checkbox" aria-label="Select all lanes that are shown" checked={all} onChange={() => onSelected(new Set(all ? [] : lanes.map(laneId)))} />
              </th>
            )}
            <th>State</th>
            <th>Subscription</th>
            {!hideWorkflow && <th>Workflow</th>}
            <th className="num">Stuck for</th>
            <th className="num">Attempts</th>
            <th className="num">Wait behind</th>
            <th>Next attempt</th>
            <th>Why</th>
            <th>Event</th>
          </tr>
        </thead>
        <tbody>
          {lanes.map((lane) => {
            const id = laneId(lane);
            return (
              <tr key={id} data-lane={lane.workflowId}>
                {may("operate") && (
                  <td>
                    <input type="checkbox" aria-label={`Select ${lane.subscription}, ${lane.workflowId}`} checked={selected.has(id)} onChange={() => toggle(id)} />
                  </td>
                )}
                <td>
                  <Status of={laneState.word(lane.state)} />
                </td>
                <td>
                  <Link href={subscriptionPath(lane.subscription)} className="truncate" title={lane.subscription}>
                    <Text>{lane.subscription}</Text>
                  </Link>
                </td>
                {!hideWorkflow && (
                  <td>
                    <Link href={workflowPath(lane.workflowId)} className="truncate" title={lane.workflowId}>
                      <Text>{lane.workflowId}</Text>
                    </Link>
                  </td>
                )}
                <td className="num">
                  <Age at={since(lane)} />
                </td>
                <td className="num">{count(lane.attempts)}</td>
                <td className="num">{count(lane.waitingEvents)}</td>
                <td>
                  <Time at={lane.state === LaneState.BLOCKED || lane.pause ? undefined : dateOf(lane.nextAttemptAt)} />
                </td>
                <td className="wrap" style={{ minWidth: 220 }}>
                  <Text>{why(lane)}</Text>
                  {lane.lastResponse.length > 0 && (
                    <code className="truncate dim" style={{ maxWidth: 360 }} title={textOf(lane.lastResponse)}>
                      <Text>{textOf(lane.lastResponse) ?? `${lane.lastResponse.length} bytes`}</Text>
                    </code>
                  )}
                </td>
                <td>
                  {lane.headEventId && (
                    <Link href={eventPath(lane.headEventId)} className="mono" title={lane.headEventId}>
                      {lane.headEventId.slice(0, 8)}…
                    </Link>
                  )}
                </td>
              </tr>
            );
          })}
        </tbody>
      </table>
    </div>
  );
}

export const since = (lane: WorkflowLane) => dateOf(lane.pause?.pausedAt) ?? dateOf(lane.firstFailedAt) ?? dateOf(lane.receiver?.since);

function why(lane: WorkflowLane): string {
  if (lane.pause) {
    const what = lane.pause.ofSubscription ? "the subscription is paused" : "paused";
    return `${what}${lane.pause.operator ? ` by ${lane.pause.operator}` : ""}${lane.pause.reason ? `: ${lane.pause.reason}` : ""}`;
  }
  if (lane.receiver) return `${receiverCondition.word(lane.receiver.state)}: ${lane.receiver.reason || lane.lastError}`;
  return lane.lastError || (lane.state === LaneState.OPEN ? "being delivered" : "");
}

const VERBS = {
  retry: { title: "Retry", text: "The head of each lane is attempted now, and its retry policy restarts.", danger: false },
  skip: { title: "Skip", text: "The head of each lane becomes a dead letter, and the lane continues with its next event.", danger: true },
  pause: { title: "Pause", text: "No event of these lanes is attempted until they are resumed. Their backlog is kept.", danger: false },
  resume: { title: "Resume", text: "The lanes continue where they were paused.", danger: false },
} as const;
type Verb = keyof typeof VERBS;

export function LaneActions({ lanes, selected, clear }: { lanes: WorkflowLane[]; selected: ReadonlySet<string>; clear: () => void }) {
  const { may } = useSession();
  const queries = useQueryClient();
  const [asked, setAsked] = useState<Verb>();
  const chosen = lanes.filter((lane) => selected.has(laneId(lane)));
  if (!may("operate") || lanes.length === 0) return null;
  const one = async (verb: Verb, lane: WorkflowLane, reason: string, id: string) => {
    const { subscription, workflowId, headEventId: eventId } = lane;
    const call = { subscription, workflowId, reason, requestId: id };
    if (verb === "retry") await api.workflows.retryLane({ ...call, eventId });
    else if (verb === "skip") await api.workflows.skipLane({ ...call, eventId });
    else if (verb === "pause") await api.workflows.pauseLane(call);
    else await api.workflows.resumeLane(call);
  };
  const act = async (reason: string) => {
    const verb = asked as Verb;
    const failed: string[] = [];
    for (const lane of chosen) {
      try {
        await one(verb, lane, reason, requestId());
      } catch (error) {
        failed.push(`${lane.subscription}, ${lane.workflowId}: ${message(error)}`);
      }
    }
    await queries.invalidateQueries();
    if (failed.length > 0) throw new Error(`${failed.length} of ${chosen.length} failed. ${failed.slice(0, 3).join("; ")}`);
    clear();
  };
  return (
    <>
      <span className="dim tabular">{chosen.length > 0 ? `${plural(chosen.length, "lane")} selected` : "Select lanes to act"}</span>
      {(Object.keys(VERBS) as Verb[]).map((verb) => (
        <button key={verb} type="button" className={VERBS[verb].danger ? "danger" : ""} disabled={chosen.length === 0} onClick={() => setAsked(verb)}>
          {VERBS[verb].title}
        </button>
      ))}
      {asked && (
        <Action
          title={`${VERBS[asked].title} ${plural(chosen.length, "lane")}`}
          verb={VERBS[asked].title}
          danger={VERBS[asked].danger}
          act={act}
          onClose={() => setAsked(undefined)}
        >
          <p>{VERBS[asked].text}</p>
        </Action>
      )}
    </>
  );
}
