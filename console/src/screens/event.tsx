// One event: what it is, how it was delivered, what is next to it.

import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { api, requestId } from "../api";
import { count, dateOf, durationText, plural } from "../format";
import type { Event } from "../gen/weft/v1/event_pb";
import type { EventDelivery } from "../gen/weft/v1/event_service_pb";
import { AttemptClass, DeliveryStatus, EventStatus } from "../gen/weft/v1/status_pb";
import { eventPath, Link, navigate, subscriptionPath, to, workflowPath } from "../router";
import { useSession } from "../session";
import { Action } from "../ui/action";
import { Badge, Copy, Empty, Facts, Failed, Head, Id, Loading, LongText, Panel, Status, Text, Time } from "../ui/basics";
import { Payload } from "../ui/payload";
import { textOf } from "../format";
import { ConnectError, Code } from "@connectrpc/connect";
import { attemptClass, deliveryStatus, eventStatus } from "../words";

const SETTLED = ["delivered", "dead_lettered", "resolved", "discarded", "unrouted"];

export function EventScreen({ id }: { id: string }) {
  const { may } = useSession();
  const [replaying, setReplaying] = useState(false);
  const found = useQuery({
    queryKey: ["event", id],
    queryFn: () => api.events.getEvent({ eventId: id }),
    refetchInterval: ({ state }) => (SETTLED.includes(eventStatus.word(state.data?.status)) ? 10_000 : 1500),
  });
  const event = found.data?.event;
  const next = useQuery({
    queryKey: ["next-event", id, event?.workflowId],
    queryFn: () => api.events.eventsSince({ since: id, filter: { workflowId: event?.workflowId ?? "" }, limit: 1 }),
    enabled: event !== undefined,
    refetchInterval: 10_000,
    retry: false,
  });
  if (found.error && !found.data) {
    const unknown = found.error instanceof ConnectError && found.error.code === Code.NotFound;
    return (
      <>
        <Head title="Event" crumb={<Link href="/stream">Stream</Link>} />
        {unknown ? (
          <Empty title="This event is not kept">
            <p className="wrap">
              <Text>{found.error.message}</Text>
            </p>
          </Empty>
        ) : (
          <Failed error={found.error} retry={found.refetch} />
        )}
      </>
    );
  }
  if (!found.data || !event) return <Loading of="the event" />;
  const { status, deliveries } = found.data;
  const nextId = next.data?.events[0]?.eventId;
  const address = `${location.protocol}//${location.hostname}:8080/api/v1/events/${id}`;
  return (
    <>
      <Head
        crumb={
          <span className="inline">
            <Link href={workflowPath(event.workflowId)}>
              <Text>{event.workflowId}</Text>
            </Link>
            <span className="dim">no. {count(event.sequenceNumber)}</span>
          </span>
        }
        title={
          <span className="inline">
            <Text>{event.type}</Text>
            <Status of={eventStatus.word(status)} />
          </span>
        }
      >
        {event.previousEventId ? (
          <Link className="button" href={eventPath(event.previousEventId)} rel="prev">
            ← Previous
          </Link>
        ) : (
          <button type="button" disabled>
            ← First
          </button>
        )}
        {nextId ? (
          <Link className="button" href={eventPath(nextId)} rel="next">
            Next →
          </Link>
        ) : (
          <button type="button" disabled>
            Newest →
          </button>
        )}
        {may("operate") && (
          <button type="button" className="primary" onClick={() => setReplaying(true)}>
            Replay…
          </button>
        )}
      </Head>
      {found.error && <Failed error={found.error} retry={found.refetch} />}
      <div className="grid">
        <Panel title="Event" className="six" tools={<Copy text={`curl -H "x-api-key: $WEFT_KEY" ${address}`} label="Copy curl" name="a curl command" />}>
          <div className="body">
            <Facts
              of={[
                ["Event id", <Id key="id" value={event.eventId} name="the event id" />],
                ["Source", <Link key="s" href={`/sources/${encodeURIComponent(event.source)}`}><Text>{event.source}</Text></Link>],
                ["Type", <Text key="t">{event.type}</Text>],
                ["Workflow", <Id key="w" value={event.workflowId} name="the workflow id" />],
                ["Delivery id", event.deliveryId ? <Id key="d" value={event.deliveryId} name="the delivery id" /> : <span key="d" className="dim">none: each request is a new event</span>],
                ["Happened", <Time key="h" at={dateOf(event.time)} />],
                ["Accepted", <Time key="a" at={dateOf(event.receivedAt)} />],
                ["Stored", <Time key="t" at={dateOf(found.data.storedAt)} />],
              ]}
            />
          </div>
        </Panel>
        <Panel title="Stages" className="six">
          <div className="body">
            <Waterfall event={event} deliveries={deliveries} storedAt={dateOf(found.data.storedAt)} />
          </div>
        </Panel>
        <Panel title="Payload">
          <div className="body">
            {event.erased ? <p className="dim">It was erased on request. Number, id and what describes the event stay.</p> : <Payload bytes={event.data} contentType={event.dataContentType} />}
          </div>
        </Panel>
        <Panel title={`Deliveries (${count(deliveries.length)})`}>
          {deliveries.length === 0 ? (
            <Empty title={status === EventStatus.UNROUTED ? "No subscription takes this event" : "Not matched yet"}>
              {status === EventStatus.UNROUTED && <p>Its type and source match no subscription, or their filters are false for it.</p>}
            </Empty>
          ) : (
            <div className="body stack">
              {deliveries.map((delivery) => (
                <Delivery key={`${delivery.subscription}:${delivery.run}`} event={event} delivery={delivery} />
              ))}
            </div>
          )}
        </Panel>
      </div>
      {replaying && <Replay event={event} deliveries={deliveries} onClose={() => setReplaying(false)} />}
    </>
  );
}

function Delivery({ event, delivery }: { event: Event; delivery: EventDelivery }) {
  const { attempts } = delivery;
  return (
    <section className="stack" aria-label={`Delivery to ${delivery.subscription}`}>
      <div className="inline">
        <h3>
          <Link href={subscriptionPath(delivery.subscription)}>
            <Text>{delivery.subscription}</Text>
          </Link>
        </h3>
        <Status of={deliveryStatus.word(delivery.status)} />
        {delivery.run > 0n && <Badge tone="info">redriven or replayed</Badge>}
        <span className="dim">{plural(delivery.attemptCount, "attempt")}</span>
        {dateOf(delivery.nextAttemptAt) && (
          <span className="dim">
            next at <Time at={dateOf(delivery.nextAttemptAt)} />
          </span>
        )}
        {delivery.status === DeliveryStatus.DEAD_LETTERED && (
          <Link href={to("/dead-letters", { subscription: delivery.subscription, workflow: event.workflowId })}>Dead letter</Link>
        )}
        {delivery.settledBy && (
          <span className="dim wrap">
            by <Text>{delivery.settledBy}</Text>
            {delivery.settledReason && (
              <>
                : <Text>{delivery.settledReason}</Text>
              </>
            )}
          </span>
        )}
      </div>
      {attempts.length > 0 && (
        <div className="scroll" tabIndex={0} role="group" aria-label={`Attempts of ${delivery.subscription}`}>
          <table>
            <thead>
              <tr>
                <th className="num">No.</th>
                <th>Started</th>
                <th className="num">Took</th>
                <th>Outcome</th>
                <th>Answer</th>
                <th>Next</th>
              </tr>
            </thead>
            <tbody>
              {attempts.map((attempt) => {
                const [start, end] = [dateOf(attempt.startedAt), dateOf(attempt.endedAt)];
                const answer = textOf(attempt.response) ?? `${attempt.response.length} bytes`;
                return (
                  <tr key={attempt.number}>
                    <td className="num">{attempt.number}</td>
                    <td>
                      <Time at={start} />
                    </td>
                    <td className="num nowrap">{start && end ? durationText(end.getTime() - start.getTime()) : "–"}</td>
                    <td>
                      <span className="inline">
                        <Status of={attemptClass.word(attempt.outcome)} tone={attempt.outcome === AttemptClass.DELIVERED ? "good" : "bad"} />
                        {attempt.status > 0 && <code>{attempt.status}</code>}
                        {attempt.uncounted && <Badge title="It used up no retry: the failure concerned the receiver, not the event">not counted</Badge>}
                        {attempt.batchEvents > 1 && <Badge>batch of {attempt.batchEvents}</Badge>}
                      </span>
                    </td>
                    <td className="wrap">
                      {attempt.error && (
                        <div>
                          <Text>{attempt.error}</Text>
                        </div>
                      )}
                      {attempt.response.length > 0 && (
                        <code className="wrap">
                          <LongText>{answer}</LongText>
                        </code>
                      )}
                    </td>
                    <td>
                      <Time at={dateOf(attempt.nextAttemptAt)} />
                    </td>
                  </tr>
                );
              })}
            </tbody>
          </table>
        </div>
      )}
    </section>
  );
}

interface Stage {
  name: string;
  start: number;
  end: number;
  kind: "good" | "bad" | "wait";
}

function stages(event: Event, delivery: EventDelivery, storedAt?: Date): Stage[] {
  const list: Stage[] = [];
  const received = dateOf(event.receivedAt)?.getTime();
  let before = received;
  if (delivery.run === 0n && received !== undefined && storedAt && storedAt.getTime() >= received) {
    before = storedAt.getTime();
    list.push({ name: "received, verified, stored", start: received, end: before, kind: "good" });
  }
  if (delivery.run > 0n) before = undefined;
  for (const attempt of delivery.attempts) {
    const [start, end] = [dateOf(attempt.startedAt)?.getTime(), dateOf(attempt.endedAt)?.getTime()];
    if (start === undefined || end === undefined) continue;
    if (before !== undefined && start > before) {
      list.push({ name: attempt.number <= 1 ? "waited for its turn" : "waited for the retry", start: before, end: start, kind: "wait" });
    }
    const kind = attempt.outcome === AttemptClass.DELIVERED ? "good" : "bad";
    const name = `attempt ${attempt.number}`;
    const [connected, answered] = [dateOf(attempt.connectedAt)?.getTime(), dateOf(attempt.answeredAt)?.getTime()];
    if (connected !== undefined && answered !== undefined) {
      list.push({ name: `${name}: connected`, start, end: connected, kind });
      list.push({ name: `${name}: answered`, start: connected, end: answered, kind });
      if (end > answered) list.push({ name: `${name}: read`, start: answered, end, kind });
    } else list.push({ name, start, end, kind });
    before = end;
  }
  return list;
}

function Waterfall({ event, deliveries, storedAt }: { event: Event; deliveries: EventDelivery[]; storedAt?: Date }) {
  const rows = deliveries.filter((delivery) => delivery.run === 0n || delivery.attempts.length > 0);
  const all = rows.map((delivery) => ({ delivery, list: stages(event, delivery, storedAt) }));
  if (all.every(({ list }) => list.length === 0)) return <p className="dim">No attempt has ended yet.</p>;
  return (
    <div className="stack">
      {all.map(({ delivery, list }) => {
        const [first, last] = [Math.min(...list.map((stage) => stage.start)), Math.max(...list.map((stage) => stage.end))];
        const whole = Math.max(1, last - first);
        if (list.length === 0) return null;
        return (
          <div className="stack" key={`${delivery.subscription}:${delivery.run}`}>
            <h3>
              <Text>{delivery.subscription}</Text>
              {delivery.run > 0n && <span className="dim"> redriven or replayed</span>} <span className="dim">{durationText(last - first)} in total</span>
            </h3>
            <div className="fall">
              {list.map((stage, at) => (
                <div key={at} style={{ display: "contents" }}>
                  <span>{stage.name}</span>
                  <span className="track">
                    <span className={`bar ${stage.kind}`} style={{ left: `${((stage.start - first) / whole) * 100}%`, width: `${((stage.end - stage.start) / whole) * 100}%` }} />
                  </span>
                  <span className="right tabular">{durationText(stage.end - stage.start)}</span>
                </div>
              ))}
            </div>
          </div>
        );
      })}
    </div>
  );
}

function Replay({ event, deliveries, onClose }: { event: Event; deliveries: EventDelivery[]; onClose: () => void }) {
  const [subscription, setSubscription] = useState("");
  const names = [...new Set(deliveries.map((delivery) => delivery.subscription))];
  const selection = { eventIds: [event.eventId], subscription };
  const id = useState(requestId)[0];
  return (
    <Action
      key={subscription}
      title="Replay this event"
      verb="Replay"
      count={async (signal) => {
        const { count: deliveryCount } = await api.replays.planReplay({ selection }, { signal });
        return `${plural(deliveryCount, "delivery", "deliveries")}, with the same event id and number, marked as a replay`;
      }}
      act={async (reason) => {
        const started = await api.replays.startReplay({ selection, reason, requestId: id });
        navigate(`/replays/${encodeURIComponent(started.id)}`);
      }}
      onClose={onClose}
    >
      <label className="field">
        <span>To</span>
        <select value={subscription} onChange={(change) => setSubscription(change.target.value)}>
          <option value="">every subscription that matches it now</option>
          {names.map((name) => (
            <option key={name}>{name}</option>
          ))}
        </select>
      </label>
    </Action>
  );
}
