// How much the mesh carries and how fast: charts, percentiles, the most frequent types and sources.

import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import { useEffect, useMemo, useState } from "react";
import { api } from "../api";
import { bytesText, count, dateOf, durationText, shortCount } from "../format";
import type { Percentiles, Stats, StatsGroup, SubscriptionStats } from "../gen/weft/v1/stats_service_pb";
import { Link, to, useFilters } from "../router";
import { Age, Badge, Cut, Failed, Panel, Text } from "../ui/basics";
import { Chart, type Line } from "../ui/chart";

const PERIODS = [
  ["15m", "15 minutes", 15],
  ["1h", "1 hour", 60],
  ["6h", "6 hours", 360],
  ["1d", "1 day", 1440],
  ["7d", "7 days", 10_080],
] as const;
const RECONNECT_PAUSE = 2000;

/** The stats of a period, kept current. */
export function useStats(minutes: number, enabled = true) {
  const [state, setState] = useState<{ stats?: Stats; error?: unknown }>({});
  useEffect(() => {
    if (!enabled) return;
    const abort = new AbortController();
    const run = async () => {
      while (!abort.signal.aborted) {
        try {
          const request = { period: durationFromMs(minutes * 60_000), interval: durationFromMs(2000) };
          for await (const { stats } of api.stats.watchStats(request, { signal: abort.signal })) setState({ stats });
        } catch (error) {
          if (abort.signal.aborted) return;
          setState((before) => ({ ...before, error }));
          if (error instanceof ConnectError && (error.code === Code.PermissionDenied || error.code === Code.Unauthenticated)) return;
        }
        await new Promise((resolve) => setTimeout(resolve, RECONNECT_PAUSE));
      }
    };
    run();
    return () => abort.abort();
  }, [minutes, enabled]);
  return state;
}

export function usePeriod() {
  const [filters, setFilters] = useFilters(["period"] as const);
  const chosen = PERIODS.find(([key]) => key === filters.period) ?? PERIODS[1];
  const picker = (
    <div className="tabs" role="group" aria-label="Period">
      {PERIODS.map(([key, title]) => (
        <button key={key} type="button" className="small" aria-pressed={key === chosen[0]} title={title} onClick={() => setFilters({ period: key === "1h" ? "" : key })}>
          {key}
        </button>
      ))}
    </div>
  );
  return [chosen[2], picker] as const;
}

const seconds = (value: number) => (value === 0 ? "0" : durationText(value * 1000));

/** Stands where there are no numbers yet. */
function Waiting({ error }: { error?: unknown }) {
  return <span className="dim">{error === undefined ? "Loading…" : "Not known at the moment: see above."}</span>;
}

/** `isSaid`: an error stands above already. */
export function Traffic({ stats, error, isSaid }: { stats?: Stats; error?: unknown; isSaid: boolean }) {
  const step = (stats?.stepMinutes ?? 1) * 60;
  const { times, rates, latencies } = useMemo(() => {
    const points = stats?.points ?? [];
    const rate = (of: (point: (typeof points)[number]) => bigint | undefined) => points.map((point) => Number(of(point) ?? 0n) / step);
    const quantile = (of: (latency: Percentiles) => number) => points.map(({ latencies: each }) => (each?.total && each.total.count > 0n ? of(each.total) : null));
    const rateLines: Line[] = [
      { label: "accepted", color: "info", values: rate((point) => point.counts?.accepted) },
      { label: "delivered", color: "good", values: rate((point) => point.counts?.delivered) },
      { label: "failed", color: "warn", values: rate((point) => point.counts?.failed) },
      { label: "dead-lettered", color: "bad", values: rate((point) => point.counts?.deadLettered) },
    ];
    const latencyLines: Line[] = [
      { label: "p50", color: "accent", values: quantile((each) => each.p50Seconds) },
      { label: "p99", color: "warn", values: quantile((each) => each.p99Seconds) },
    ];
    return { times: points.map((point) => (dateOf(point.time)?.getTime() ?? 0) / 1000), rates: rateLines, latencies: latencyLines };
  }, [stats, step]);
  return (
    <>
      {error !== undefined && !isSaid && <Failed error={error} />}
      <div className="grid">
        <Panel title="Events a second" className="six">
          <div className="body chart-body">{!stats ? <Waiting error={error} /> : <Chart label="Events a second" least={1} times={times} lines={rates} format={(value) => (value >= 1000 ? shortCount(value) : count(Math.round(value * 100) / 100))} />}</div>
        </Panel>
        <Panel title="From receipt to delivery" className="six">
          <div className="body chart-body">{!stats ? <Waiting error={error} /> : <Chart label="Latency" least={0.01} times={times} lines={latencies} format={seconds} />}</div>
        </Panel>
      </div>
    </>
  );
}

/** Percentiles of each stage, and the most frequent labels. */
export function Breakdown({ stats, error }: { stats?: Stats; error?: unknown }) {
  const stages: [string, Percentiles | undefined][] = [
    ["accept", stats?.latencies?.accept],
    ["wait", stats?.latencies?.wait],
    ["deliver", stats?.latencies?.deliver],
    ["total", stats?.latencies?.total],
  ];
  return (
    <div className="grid">
      <Panel title="Stages" className="four">
        <div className="scroll" tabIndex={0} role="group" aria-label="Stages">
          <table>
            <thead>
              <tr>
                <th>Stage</th>
                <th className="num">p50</th>
                <th className="num">p90</th>
                <th className="num">p99</th>
                <th className="num">max</th>
              </tr>
            </thead>
            <tbody>
              {stages.map(([name, each]) => (
                <tr key={name}>
                  <td>{name}</td>
                  {[each?.p50Seconds, each?.p90Seconds, each?.p99Seconds, each?.maxSeconds].map((value, at) => (
                    <td className="num nowrap" key={at}>
                      {!each || each.count === 0n || value === undefined ? <span className="dim">–</span> : seconds(value)}
                    </td>
                  ))}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      </Panel>
      <Groups title="Types" name="type" groups={stats?.types} error={error} />
      <Groups title="Sources" name="source" groups={stats?.sources} error={error} />
    </div>
  );
}

function Groups({ title, name, groups, error }: { title: string; name: "type" | "source"; groups?: StatsGroup[]; error?: unknown }) {
  return (
    <Panel title={title} className="four">
      {!groups || groups.length === 0 ? (
        <div className="body dim">{groups ? "No event in this period." : <Waiting error={error} />}</div>
      ) : (
        <div className="scroll" tabIndex={0} role="group" aria-label={title}>
          <table>
            <thead>
              <tr>
                <th>{title.slice(0, -1)}</th>
                <th className="num">Accepted</th>
                <th className="num">Dead</th>
              </tr>
            </thead>
            <tbody>
              {groups.slice(0, 6).map((group) => (
                <tr key={group.label}>
                  <td>
                    <Link href={to("/stream", { q: `${name}:${group.label}` })} className="truncate" title={group.label}>
                      <Text>{group.label}</Text>
                    </Link>
                  </td>
                  <td className="num">{count(group.counts?.accepted ?? 0n)}</td>
                  <td className="num">{group.counts?.deadLettered ? <Badge tone="bad">{count(group.counts.deadLettered)}</Badge> : <span className="dim">0</span>}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </Panel>
  );
}

/** What waits for a subscription, and since when. */
export function Backlog({ of }: { of?: SubscriptionStats }) {
  if (!of) return <span className="dim">…</span>;
  if (of.backlog === 0n) return <span className="dim">0</span>;
  return (
    <span className="nowrap">
      {of.backlogIsBound && "≤ "}
      {count(of.backlog)}{" "}
      <span className="dim">
        oldest <Age at={dateOf(of.oldestPendingAt)} />
      </span>
    </span>
  );
}

/** How full the streams of the log are. */
export function Streams({ stats }: { stats?: Stats }) {
  return (
    <Panel title="Streams">
      <div className="scroll" tabIndex={0} role="group" aria-label="Streams">
        <table>
          <thead>
            <tr>
              <th>Stream</th>
              <th className="num">Size</th>
              <th className="num">Limit</th>
              <th style={{ minWidth: 120 }}>Used</th>
              <th className="num">First</th>
              <th className="num">Last</th>
            </tr>
          </thead>
          <tbody>
            {stats?.streams.map((stream) => {
              const part = stream.bytesMax > 0n ? Number(stream.bytes) / Number(stream.bytesMax) : 0;
              return (
                <tr key={stream.stream}>
                  <td>
                    <Cut mono>{stream.stream}</Cut>
                  </td>
                  <td className="num">{bytesText(stream.bytes)}</td>
                  <td className="num">{stream.bytesMax > 0n ? bytesText(stream.bytesMax) : <span className="dim">none</span>}</td>
                  <td>
                    {stream.bytesMax > 0n && (
                      <div className={`meter ${part > 0.9 ? "bad" : part > 0.75 ? "warn" : ""}`} role="img" aria-label={`${Math.round(part * 100)} % used`}>
                        <i style={{ width: `${Math.min(100, part * 100)}%` }} />
                      </div>
                    )}
                  </td>
                  <td className="num">{count(stream.firstSequence)}</td>
                  <td className="num">{count(stream.lastSequence)}</td>
                </tr>
              );
            })}
          </tbody>
        </table>
      </div>
    </Panel>
  );
}
