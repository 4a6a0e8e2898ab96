// What needs an operator now, the worst first.

import { useQuery } from "@tanstack/react-query";
import type { ReactNode } from "react";
import { api, historyLag } from "../api";
import { count, dateOf, durationText, plural, textOf } from "../format";
import { useLaneCounts } from "../lane-counts";
import { eventPath, Link, subscriptionPath, to } from "../router";
import { useSession } from "../session";
import { Age, Badge, Empty, Failed, Head, Loading, Panel, Text, Time } from "../ui/basics";
import { useShards } from "./cluster";
import { useSubscriptions } from "./subscriptions";
import { ShardState } from "../gen/weft/v1/shard_service_pb";
import { DeadLetterStatus, ReceiverCondition } from "../gen/weft/v1/status_pb";
import { receiverCondition } from "../words";

interface Alert {
  key: string;
  tone: "bad" | "warn";
  what: ReactNode;
  detail: string;
  since?: Date;
  href: string;
}

/** Behind by more than this, the history does not show what has just happened. */
const LAG_MS = 5000;

export function useAlerts() {
  const { isLimited } = useSession();
  const shards = useShards(!isLimited);
  const subscriptions = useSubscriptions();
  const lanes = useLaneCounts();
  const letters = useQuery({
    queryKey: ["dead-letter-stats", "open"],
    queryFn: () => api.deadLetters.deadLetterStats({ filter: { statuses: [DeadLetterStatus.OPEN] } }),
    refetchInterval: 5000,
  });
  const alerts: Alert[] = [];
  for (const shard of shards.data?.shards ?? []) {
    if (shard.state === ShardState.STOPPED) alerts.push({ key: `shard:${shard.shard}`, tone: "bad", what: `Shard ${shard.shard} has stopped`, detail: shard.problem, href: "/cluster" });
    else if (!shard.worker) alerts.push({ key: `owner:${shard.shard}`, tone: "bad", what: `Shard ${shard.shard} has no owner`, detail: "no worker delivers its events", href: "/cluster" });
  }
  for (const { subscription, receivers } of subscriptions.data?.all ?? []) {
    if (!subscription) continue;
    const { name } = subscription;
    for (const receiver of receivers) {
      alerts.push({ key: `receiver:${name}:${receiver.shard}`, tone: receiver.state === ReceiverCondition.AWAY ? "bad" : "warn", what: `${name}: ${receiver.state === ReceiverCondition.AWAY ? "the circuit is open" : receiverCondition.word(receiver.state)}`, detail: receiver.reason, since: dateOf(receiver.since), href: subscriptionPath(name) });
    }
    if (subscription.paused) alerts.push({ key: `paused:${name}`, tone: "warn", what: `${name} is paused`, detail: subscription.pauseReason, href: subscriptionPath(name) });
    const blocked = lanes.of(name).blocked ?? 0;
    if (blocked > 0) alerts.push({ key: `blocked:${name}`, tone: "bad", what: `${name}: ${plural(blocked, "lane is blocked", "lanes are blocked")}`, detail: "they wait for an operator to retry or skip", href: to("/stuck", { subscription: name, state: "blocked" }) });
  }
  for (const orphan of subscriptions.data?.orphans ?? []) {
    alerts.push({ key: `orphan:${orphan.uid}`, tone: "bad", what: `${orphan.name || orphan.uid} is missing from the catalog`, detail: `its backlog is kept: ${plural(orphan.lanes, "lane")}`, href: "/subscriptions" });
  }
  const open = letters.data?.counts.reduce((sum, each) => sum + each.count, 0n) ?? 0n;
  if (open > 0n) alerts.push({ key: "dead-letters", tone: "warn", what: plural(open, "open dead letter"), detail: "redrive, resolve or discard them", since: dateOf(letters.data?.oldest), href: "/dead-letters" });
  const lag = historyLag();
  if (lag && lag.ms > LAG_MS) alerts.push({ key: "lag", tone: "warn", what: "The history lags", detail: `${count(lag.messages)} messages, ${durationText(lag.ms)} behind the log: what is shown is older than it`, href: "/cluster" });
  alerts.sort((one, other) => Number(other.tone === "bad") - Number(one.tone === "bad"));
  const error = shards.error ?? subscriptions.error ?? letters.error;
  return { alerts, loaded: (isLimited || subscriptions.data !== undefined) && letters.data !== undefined, error };
}

export function AlertTable({ alerts }: { alerts: Alert[] }) {
  return (
    <div className="scroll" tabIndex={0} role="group" aria-label="What needs attention">
      <table>
        <thead>
          <tr>
            <th>What</th>
            <th>Why</th>
            <th className="num">For</th>
          </tr>
        </thead>
        <tbody>
          {alerts.map((alert) => (
            <tr key={alert.key}>
              <td>
                <span className="inline">
                  <Badge tone={alert.tone}>{alert.tone === "bad" ? "act" : "look"}</Badge>
                  <Link href={alert.href}>{typeof alert.what === "string" ? <Text>{alert.what}</Text> : alert.what}</Link>
                </span>
              </td>
              <td className="wrap">
                <Text>{alert.detail}</Text>
              </td>
              <td className="num">
                <Age at={alert.since} />
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

export function Alerts() {
  const { alerts, loaded, error } = useAlerts();
  return (
    <>
      <Head title="Alerts" sub="What needs an operator at this moment." />
      {error && <Failed error={error} />}
      <section className="panel" aria-label="Alerts">
        {!loaded ? (
          <Loading of="the state of the mesh" failed={error !== null} />
        ) : alerts.length === 0 ? (
          <Empty title="Nothing needs attention">
            <p>Stopped shards, receivers that fail, blocked lanes, pauses and dead letters appear here.</p>
          </Empty>
        ) : (
          <AlertTable alerts={alerts} />
        )}
      </section>
      <History />
    </>
  );
}

/** Data of an event of the source `weft`. */
interface Raised {
  state?: string;
  summary?: string;
  command?: string;
}

function raisedOf(data: Uint8Array): Raised {
  try {
    const value: unknown = JSON.parse(textOf(data) ?? "");
    return value && typeof value === "object" ? (value as Raised) : {};
  } catch {
    return {};
  }
}

const SOURCE = "weft";

/** What the mesh has raised, as its events of the source `weft`. */
function History() {
  const found = useQuery({
    queryKey: ["alert-events"],
    queryFn: () => api.events.listEvents({ filter: { source: SOURCE, type: "weft.*" }, withData: true, pageSize: 100 }),
    refetchInterval: 5000,
  });
  const events = found.data?.events ?? [];
  return (
    <Panel title="Raised and recovered" tools={<Link href={to("/stream", { q: `source:${SOURCE}` })}>Follow live</Link>}>
      {found.error ? (
        <div className="body">
          <Failed error={found.error} retry={found.refetch} />
        </div>
      ) : !found.data ? (
        <Loading of="alerts" />
      ) : events.length === 0 ? (
        <Empty title="No alert is in the log">
          <p>
            Alerts are events of source <code>weft</code>: a subscription with <code>sources = ["weft"]</code> sends them to where you are paged.
          </p>
        </Empty>
      ) : (
        <div className="scroll" tabIndex={0} role="group" aria-label="Alerts of the past">
          <table>
            <thead>
              <tr>
                <th>Time</th>
                <th>State</th>
                <th>Type</th>
                <th>Summary</th>
              </tr>
            </thead>
            <tbody>
              {events.map(({ event }) => {
                if (!event) return null;
                const { state = "raised", summary = "", command } = raisedOf(event.data);
                return (
                  <tr key={event.eventId}>
                    <td>
                      <Time at={dateOf(event.receivedAt)} />
                    </td>
                    <td>
                      <Badge tone={state === "recovered" ? "good" : "bad"}>
                        <Text>{state}</Text>
                      </Badge>
                    </td>
                    <td className="nowrap">
                      <Link href={eventPath(event.eventId)}>
                        <Text>{event.type}</Text>
                      </Link>
                    </td>
                    <td className="wrap">
                      <Text>{summary}</Text>
                      {command && state !== "recovered" && (
                        <>
                          {" "}
                          <code className="dim">
                            <Text>{command}</Text>
                          </code>
                        </>
                      )}
                    </td>
                  </tr>
                );
              })}
            </tbody>
          </table>
        </div>
      )}
    </Panel>
  );
}
