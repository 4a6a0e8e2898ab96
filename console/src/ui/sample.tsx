// A signed sample by one click, followed to its receivers.

import { useQuery } from "@tanstack/react-query";
import { useRef, useState } from "react";
import { api, requestId } from "../api";
import { count, dateOf, durationText, plural } from "../format";
import { EventStatus } from "../gen/weft/v1/status_pb";
import { eventPath, Link, workflowPath } from "../router";
import { eventStatus } from "../words";
import { Badge, Failed, Status, Text } from "./basics";

const REASON = "a sample, sent from the console";

interface Sent {
  eventId: string;
  workflowId: string;
  code: string;
  detail: string;
}

export function SampleButton({ source, type = "", primary = false }: { source: string; type?: string; primary?: boolean }) {
  const [sent, setSent] = useState<Sent>();
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  // A call whose answer was lost is repeated with its id, so that it is one event.
  const id = useRef("");
  const send = async () => {
    setBusy(true);
    setError(undefined);
    id.current ||= requestId();
    try {
      setSent(await api.catalog.sendSample({ source, type, reason: REASON, requestId: id.current }));
      id.current = "";
    } catch (failure) {
      setError(failure);
    }
    setBusy(false);
  };
  return (
    <>
      <button type="button" className={primary ? "primary" : undefined} onClick={send} disabled={busy}>
        {busy ? "Sending…" : sent ? "Send another sample" : "Send a signed sample"}
      </button>
      <div className="sample" aria-live="polite">
        {error !== undefined && <Failed error={error} />}
        {error === undefined && sent && (sent.code ? <Refused sent={sent} source={source} /> : <Arrival key={sent.eventId} sent={sent} />)}
      </div>
    </>
  );
}

function Refused({ sent, source }: { sent: Sent; source: string }) {
  return (
    <div className="note-box bad">
      <div className="wrap">
        <strong>Refused ({sent.code}).</strong> <Text>{sent.detail}</Text> It was signed and sent as the rules of <Text>{source}</Text> ask for it.
      </div>
    </div>
  );
}

const SETTLED = ["delivered", "dead_lettered", "discarded", "resolved", "unrouted"];

function Arrival({ sent }: { sent: Sent }) {
  const found = useQuery({
    queryKey: ["event", sent.eventId],
    queryFn: () => api.events.getEvent({ eventId: sent.eventId }),
    refetchInterval: ({ state }) => (SETTLED.includes(eventStatus.word(state.data?.status)) ? false : 500),
    // It is not found until the history has read so far.
    retry: 20,
    retryDelay: 250,
  });
  const event = found.data?.event;
  const deliveries = found.data?.deliveries ?? [];
  const received = dateOf(event?.receivedAt)?.getTime();
  const last = Math.max(0, ...deliveries.map((delivery) => dateOf(delivery.settledAt)?.getTime() ?? 0));
  return (
    <div className="note-box good">
      <ol className="steps">
        <li data-done="true">
          Signed, verified and accepted: <Link href={eventPath(sent.eventId)}>the event</Link>
        </li>
        <li data-done={event !== undefined}>
          {event ? (
            <>
              In the log: no. {count(event.sequenceNumber)} of workflow{" "}
              <Link href={workflowPath(event.workflowId)}>
                <Text>{event.workflowId}</Text>
              </Link>
            </>
          ) : (
            "Waiting to see it in the log…"
          )}
        </li>
        <li data-done={SETTLED.includes(eventStatus.word(found.data?.status))}>
          {!event ? (
            "Then it is delivered"
          ) : deliveries.length === 0 && found.data?.status === EventStatus.UNROUTED ? (
            <>No subscription takes its type, <Text>{event.type}</Text></>
          ) : (
            <span className="inline">
              <Status of={eventStatus.word(found.data?.status) || "pending"} />
              {plural(deliveries.length, "delivery", "deliveries")}
              {last > 0 && received !== undefined && <Badge>{durationText(last - received)}</Badge>}
            </span>
          )}
        </li>
      </ol>
    </div>
  );
}

/** A type that the first of these patterns takes, and that real receivers are likely to ignore. */
export const sampleType = (patterns: string[]) => patterns.find((pattern) => pattern !== "*")?.replaceAll("*", "test") ?? "";
