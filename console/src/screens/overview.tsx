// The state of the mesh at a glance, and what to do next.

import { useQuery } from "@tanstack/react-query";
import { useRef, useState } from "react";
import { api } from "../api";
import { count, plural } from "../format";
import type { SourceView, SubscriptionView } from "../gen/weft/v1/catalog_service_pb";
import { useLaneCounts } from "../lane-counts";
import { Link, subscriptionPath, to } from "../router";
import { useSession } from "../session";
import { schemeOf } from "../source";
import { Badge, Copy, Empty, Failed, Head, Loading, Panel, Select, Status, Text } from "../ui/basics";
import { SampleButton, sampleType } from "../ui/sample";
import { useShards } from "./cluster";
import { useSources } from "./sources";
import { Health, useSubscriptions } from "./subscriptions";
import { Backlog, Breakdown, Traffic, usePeriod, useStats } from "./traffic";
import { DeadLetterStatus } from "../gen/weft/v1/status_pb";
import { shardState } from "../words";

export function Overview() {
  const { isLimited } = useSession();
  const shards = useShards(!isLimited);
  const subscriptions = useSubscriptions();
  const sources = useSources();
  const lanes = useLaneCounts();
  const [minutes, picker] = usePeriod();
  const traffic = useStats(minutes, !isLimited);
  const letters = useQuery({
    queryKey: ["dead-letter-stats", "open"],
    queryFn: () => api.deadLetters.deadLetterStats({ filter: { statuses: [DeadLetterStatus.OPEN] } }),
    refetchInterval: 5000,
  });
  const accepted = shards.data?.shards.reduce((sum, shard) => sum + shard.eventsLast, 0n);
  const behind = shards.data?.shards.reduce((sum, shard) => sum + shard.eventsLast - (shard.eventsCommitted?.sequence ?? 0n), 0n);
  const open = letters.data?.counts.reduce((sum, each) => sum + each.count, 0n);
  const all = subscriptions.data?.all ?? [];
  const errors = [shards.error, subscriptions.error, letters.error].filter((error) => error !== null);
  const isFirstRun = useRef(false);
  if (accepted === 0n) isFirstRun.current = true;
  // What to do next stands above the rest, so the rest waits until it is known whether it is needed.
  const known = isLimited || errors.length > 0 || (accepted !== undefined && (!isFirstRun.current || (sources.data && subscriptions.data)));
  const sum = (key: "waiting" | "blocked") => lanes.total(key);
  const unhealthy = all.filter((view) => view.subscription?.paused || view.receivers.length > 0 || (lanes.of(view.subscription?.name ?? "").blocked ?? 0) > 0);
  return (
    <>
      <Head title="Overview">{!isLimited && picker}</Head>
      {errors[0] && <Failed error={errors[0]} retry={() => { shards.refetch(); subscriptions.refetch(); letters.refetch(); }} />}
      <div className="tiles">
        {!isLimited && (
          <>
            <Tile label="Events in the log" value={accepted} href="/stream" />
            <Tile label="Not matched yet" value={behind} href="/cluster" tone={behind !== undefined && behind > 10_000n ? "warn" : ""} />
          </>
        )}
        <Tile label="Retrying lanes" value={sum("waiting")} href={to("/stuck", { state: "waiting" })} tone="warn" />
        <Tile label="Blocked lanes" value={sum("blocked")} href={to("/stuck", { state: "blocked" })} tone="bad" />
        <Tile label="Open dead letters" value={open} href="/dead-letters" tone="bad" />
      </div>
      {isLimited && (
        <div className="note-box info">
          <div>Your key is limited to some sources or workflows: what concerns all of them is not shown.</div>
        </div>
      )}
      {isFirstRun.current && sources.data && subscriptions.data && <FirstSteps sources={sources.data} subscriptions={all} />}
      {!known ? (
        <Loading of="the state of the mesh" />
      ) : (
        <>
          {!isLimited && <Traffic stats={traffic.stats} error={traffic.error} isSaid={errors.length > 0} />}
          <div className="grid">
            {!isLimited && <Panel title="Subscriptions" className="six" tools={unhealthy.length > 0 ? <Badge tone="bad">{plural(unhealthy.length, "needs", "need")} attention</Badge> : all.length > 0 && <Badge tone="good">none needs attention</Badge>}>
              {!subscriptions.data ? (
                <Loading of="subscriptions" failed={subscriptions.error !== null} />
              ) : all.length === 0 ? (
                <Empty title="No subscription yet">
                  <Link href="/subscriptions">Subscriptions</Link>
                </Empty>
              ) : (
                <div className="scroll" tabIndex={0} role="group" aria-label="Subscriptions">
                  <table>
                    <thead>
                      <tr>
                        <th>Name</th>
                        <th>Health</th>
                        <th className="num">Backlog</th>
                        <th className="num">Retrying</th>
                        <th className="num">Blocked</th>
                        <th className="num">Dead</th>
                      </tr>
                    </thead>
                    <tbody>
                      {[...all]
                        .sort((one, other) => Number(unhealthy.includes(other)) - Number(unhealthy.includes(one)))
                        .slice(0, 12)
                        .map((view) => {
                          const name = view.subscription?.name ?? "";
                          const own = lanes.of(name);
                          return (
                            <tr key={name}>
                              <td>
                                <Link href={subscriptionPath(name)}>
                                  <Text>{name}</Text>
                                </Link>
                              </td>
                              <td>
                                <Health view={view} />
                              </td>
                              <td className="num">
                                <Backlog of={traffic.stats?.subscriptions.find((each) => each.subscription === name)} />
                              </td>
                              <td className="num">{own.waiting === undefined ? "…" : count(own.waiting)}</td>
                              <td className="num">{own.blocked === undefined ? "…" : count(own.blocked)}</td>
                              <td className="num">{own.deadLetters === undefined ? "…" : count(own.deadLetters)}</td>
                            </tr>
                          );
                        })}
                    </tbody>
                  </table>
                </div>
              )}
            </Panel>}
            {!isLimited && <Panel title="Shards" className="six" tools={<Link href="/cluster">Cluster</Link>}>
              {!shards.data ? (
                <Loading of="shards" failed={shards.error !== null} />
              ) : (
                <div className="scroll" tabIndex={0} role="group" aria-label="Shards">
                  <table>
                    <thead>
                      <tr>
                        <th className="num">Shard</th>
                        <th>State</th>
                        <th>Owner</th>
                        <th className="num">Events</th>
                      </tr>
                    </thead>
                    <tbody>
                      {shards.data.shards.map((shard) => (
                        <tr key={shard.shard}>
                          <td className="num">{shard.shard}</td>
                          <td>
                            <Status of={shardState.word(shard.state)} />
                          </td>
                          <td>{shard.worker ? <code title={shard.worker}>{shard.worker.slice(0, 13)}…</code> : <Badge tone="warn">none</Badge>}</td>
                          <td className="num">{count(shard.eventsLast)}</td>
                        </tr>
                      ))}
                    </tbody>
                  </table>
                </div>
              )}
            </Panel>}
          </div>
          {!isLimited && <Breakdown stats={traffic.stats} error={traffic.error} />}
        </>
      )}
    </>
  );
}

function Tile({ label, value, href, tone = "" }: { label: string; value?: number | bigint; href: string; tone?: string }) {
  return (
    <Link className={`tile ${value ? tone : ""}`} href={href}>
      <div className="label">{label}</div>
      <div className="figure">{value === undefined ? "…" : count(value)}</div>
    </Link>
  );
}

/** What is left to do before anything flows; it stays until the screen is left, so that the sample is seen to arrive. */
function FirstSteps({ sources, subscriptions }: { sources: SourceView[]; subscriptions: SubscriptionView[] }) {
  const { may } = useSession();
  const [chosen, setChosen] = useState("");
  const signed = sources.flatMap(({ source }) => (source && schemeOf(source) !== "apiKey" ? [source.name] : []));
  const source = signed.find((name) => name === chosen) ?? signed[0];
  const takers = subscriptions.flatMap(({ subscription }) => (subscription && (subscription.sources.length === 0 || subscription.sources.includes(source ?? "")) ? [subscription] : []));
  const type = sampleType(takers.flatMap((subscription) => subscription.types));
  const command = `weft event send --source ${source ?? "shop"} --type ${type || "order.paid"} --data '{"orderId":"order-1"}' --secret env:SECRET`;
  return (
    <Panel title="Nothing has been sent yet">
      <ol className="steps body">
        <li data-done={sources.length > 0}>
          <div>
            {sources.length > 0 ? (
              <>{plural(sources.length, "source")}, whose requests are verified</>
            ) : may("admin") ? (
              <>
                A source says who sends and how it signs: <Link href="/sources/new?create=1">create one</Link>
              </>
            ) : (
              "A source says who sends and how it signs; an admin creates it"
            )}
          </div>
        </li>
        <li data-done={subscriptions.length > 0}>
          <div>
            {subscriptions.length > 0 ? (
              <>{plural(subscriptions.length, "subscription")}, to whose receivers events are delivered</>
            ) : may("admin") ? (
              <>
                A subscription says who receives which events: <Link href="/subscriptions/new?create=1">create one</Link>
              </>
            ) : (
              "A subscription says who receives which events; an admin creates it"
            )}
          </div>
        </li>
        <li>
          <div className="stack">
            <p>Send a signed sample, and see it arrive{type && <>. Its type is <code><Text>{type}</Text></code></>}</p>
            {may("admin") && source && (
              <div className="actions">
                {signed.length > 1 && <Select label="Source" value={source} onChange={setChosen} options={signed.map((name) => [name, name] as const)} />}
                <SampleButton source={source} type={type} primary />
              </div>
            )}
            <details>
              <summary>From a shell, with a secret of your own</summary>
              <pre className="block wrap" tabIndex={0}>{command}</pre>
              <Copy text={command} label="Copy the command" name="the command" />
            </details>
            <div className="actions">
              <Link className="button" href="/stream">
                Open the stream
              </Link>
            </div>
          </div>
        </li>
      </ol>
    </Panel>
  );
}
