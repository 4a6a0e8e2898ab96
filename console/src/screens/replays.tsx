// Replays: settled events that are delivered again, with a plan first.

import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { useInfiniteQuery, useQuery, useQueryClient } from "@tanstack/react-query";
import { useMemo, useState } from "react";
import { api } from "../api";
import { count, dateOf, parseTime, plural } from "../format";
import type { Replay as Job } from "../gen/weft/v1/replay_service_pb";
import { eventPath, Link, navigate, subscriptionPath, useFilters, workflowPath } from "../router";
import { useSession } from "../session";
import { Action } from "../ui/action";
import { Badge, Cut, Empty, Facts, Failed, FilterInput, Head, Id, Loading, Panel, Status, Text, Time } from "../ui/basics";
import { useSubscriptions } from "./subscriptions";
import { ReplayState } from "../gen/weft/v1/replay_service_pb";
import { replayState } from "../words";

const ended = (job: Job) => job.state === ReplayState.DONE || job.state === ReplayState.CANCELLED;

function Bar({ job }: { job: Job }) {
  const done = job.selected - job.pending;
  return <progress aria-label="Progress" max={Math.max(1, job.selected)} value={job.selected ? done : 1} />;
}

export function Replays() {
  const { may, isLimited } = useSession();
  const found = useInfiniteQuery({
    queryKey: ["replays"],
    queryFn: ({ pageParam }) => api.replays.listReplays({ pageSize: 50, pageToken: pageParam }),
    initialPageParam: "",
    getNextPageParam: (page) => page.nextPageToken || undefined,
    refetchInterval: 2500,
    enabled: !isLimited,
  });
  const jobs = found.data?.pages.flatMap((page) => page.replays) ?? [];
  return (
    <>
      <Head title="Replays" sub="Events that have settled are delivered again, in order, with their ids and numbers, and marked as replays." />
      {may("operate") && <Plan />}
      {found.error && <Failed error={found.error} retry={found.refetch} />}
      <Panel title="History">
        {isLimited ? (
          <Empty title="Your key is limited to some sources or workflows">
            <p>The list of all replays needs a key without limits.</p>
          </Empty>
        ) : !found.data ? (
          <Loading of="replays" failed={found.error !== null} />
        ) : jobs.length === 0 ? (
          <Empty title="No replay yet" />
        ) : (
          <div className="scroll" tabIndex={0} role="group" aria-label="Replays">
            <table>
              <thead>
                <tr>
                  <th>Started</th>
                  <th>State</th>
                  <th style={{ minWidth: 120 }}>Progress</th>
                  <th className="num">Selected</th>
                  <th className="num">Delivered</th>
                  <th className="num">Failed</th>
                  <th className="num">Pending</th>
                  <th>By</th>
                  <th>Reason</th>
                </tr>
              </thead>
              <tbody>
                {jobs.map((job) => (
                  <tr key={job.id}>
                    <td>
                      <Link href={`/replays/${encodeURIComponent(job.id)}`}>
                        <Time at={dateOf(job.startedAt)} />
                      </Link>
                    </td>
                    <td>
                      <Status of={replayState.word(job.state)} />
                    </td>
                    <td>
                      <Bar job={job} />
                    </td>
                    <td className="num">{count(job.selected)}</td>
                    <td className="num">{count(job.delivered)}</td>
                    <td className="num">{count(job.failed)}</td>
                    <td className="num">{count(job.pending)}</td>
                    <td>
                      <Cut>{job.operator}</Cut>
                    </td>
                    <td>
                      <Cut>{job.reason || "–"}</Cut>
                    </td>
                  </tr>
                ))}
              </tbody>
            </table>
          </div>
        )}
        {found.hasNextPage && (
          <div className="bulk">
            <button type="button" onClick={() => found.fetchNextPage()}>
              Load older replays
            </button>
          </div>
        )}
      </Panel>
    </>
  );
}

function Plan() {
  const [filters, setFilters] = useFilters(["workflow", "type", "source", "since", "until", "subscription"] as const);
  const [starting, setStarting] = useState(false);
  const subscriptions = useSubscriptions();
  const selection = useMemo(() => {
    const [since, until] = [parseTime(filters.since), parseTime(filters.until)];
    return {
      filter: { workflowId: filters.workflow, type: filters.type, source: filters.source, since: since && timestampFromDate(since), until: until && timestampFromDate(until) },
      subscription: filters.subscription,
    };
  }, [filters.workflow, filters.type, filters.source, filters.since, filters.until, filters.subscription]);
  const isEmpty = !filters.workflow && !filters.type && !filters.source && !filters.since && !filters.until;
  const plan = useQuery({
    queryKey: ["replay-plan", filters],
    queryFn: ({ signal }) => api.replays.planReplay({ selection }, { signal }),
    enabled: !isEmpty,
    retry: false,
  });
  return (
    <Panel title="Plan a replay">
      <div className="body stack">
        <div className="filters">
          <FilterInput label="Workflow" value={filters.workflow} onChange={(workflow) => setFilters({ workflow })} />
          <FilterInput label="Type" value={filters.type} onChange={(type) => setFilters({ type })} placeholder="Type, such as order.*" />
          <FilterInput label="Source" value={filters.source} onChange={(source) => setFilters({ source })} />
          <FilterInput label="Since" value={filters.since} onChange={(since) => setFilters({ since })} placeholder="Since: 1h or a time" />
          <FilterInput label="Until" value={filters.until} onChange={(until) => setFilters({ until })} placeholder="Until" />
          <select aria-label="Subscription" value={filters.subscription} onChange={(event) => setFilters({ subscription: event.target.value })}>
            <option value="">To all that match</option>
            {subscriptions.data?.all.map((view) => (
              <option key={view.subscription?.name}>{view.subscription?.name}</option>
            ))}
          </select>
        </div>
        {isEmpty ? (
          <p className="dim">Say which events: by workflow, type, source or time.</p>
        ) : plan.error ? (
          <Failed error={plan.error} retry={plan.refetch} />
        ) : !plan.data ? (
          <p className="dim">Counting…</p>
        ) : (
          <>
            <div className="inline">
              <strong data-testid="planned">{plural(plan.data.count, "delivery", "deliveries")}</strong>
              {plan.data.leftOutDiscarded + plan.data.leftOutResolved > 0 && (
                <span className="dim">
                  {count(plan.data.leftOutDiscarded)} discarded and {count(plan.data.leftOutResolved)} resolved ones are left out
                </span>
              )}
              <button type="button" className="primary" disabled={plan.data.count === 0} onClick={() => setStarting(true)}>
                Start…
              </button>
            </div>
            {plan.data.sample.length > 0 && (
              <div className="scroll" tabIndex={0} role="group" aria-label="Sample">
                <table>
                  <thead>
                    <tr>
                      <th>First of them</th>
                      <th>Workflow</th>
                      <th>Subscription</th>
                    </tr>
                  </thead>
                  <tbody>
                    {plan.data.sample.slice(0, 5).map((item) => (
                      <tr key={`${item.eventId}:${item.subscription}`}>
                        <td>
                          <Link href={eventPath(item.eventId)} className="mono nowrap">
                            {item.eventId}
                          </Link>
                        </td>
                        <td>
                          <Link href={workflowPath(item.workflowId)} className="truncate">
                            <Text>{item.workflowId}</Text>
                          </Link>
                        </td>
                        <td>
                          <Link href={subscriptionPath(item.subscription)}>
                            <Text>{item.subscription}</Text>
                          </Link>
                        </td>
                      </tr>
                    ))}
                  </tbody>
                </table>
              </div>
            )}
          </>
        )}
      </div>
      {starting && plan.data && (
        <Action
          title={`Replay ${plural(plan.data.count, "delivery", "deliveries")}`}
          verb="Start"
          act={async (reason, requestId) => {
            const job = await api.replays.startReplay({ selection, reason, requestId });
            navigate(`/replays/${encodeURIComponent(job.id)}`);
          }}
          onClose={() => setStarting(false)}
        >
          <p>Receivers see each event again with weft-replay: true. It can be paused and cancelled, and continues when this page is closed.</p>
        </Action>
      )}
    </Panel>
  );
}

type Verb = "pause" | "resume" | "cancel";

export function Replay({ id }: { id: string }) {
  const { may } = useSession();
  const queries = useQueryClient();
  const [asked, setAsked] = useState<Verb>();
  const found = useQuery({
    queryKey: ["replay", id],
    queryFn: () => api.replays.getReplay({ id }),
    refetchInterval: ({ state }) => (state.data && ended(state.data) ? 10_000 : 800),
  });
  const crumb = <Link href="/replays">Replays</Link>;
  const job = found.data;
  if (!job) {
    return (
      <>
        <Head title="Replay" crumb={crumb} />
        {found.error ? <Failed error={found.error} retry={found.refetch} /> : <Loading of="the replay" />}
      </>
    );
  }
  const figures: [string, number, string][] = [
    ["Delivered", job.delivered, ""],
    ["Failed again", job.failed, job.failed ? "bad" : ""],
    ["Pending", job.pending, ""],
    ["Discarded", job.discarded, ""],
    ["Not applicable", job.notApplicable, ""],
  ];
  return (
    <>
      <Head title={<span className="inline">Replay of {plural(job.selected, "delivery", "deliveries")}<Status of={replayState.word(job.state)} /></span>} crumb={crumb}>
        {may("operate") && !ended(job) && (
          <>
            <button type="button" onClick={() => setAsked(job.state === ReplayState.PAUSED ? "resume" : "pause")}>
              {job.state === ReplayState.PAUSED ? "Resume" : "Pause"}
            </button>
            <button type="button" className="danger" onClick={() => setAsked("cancel")}>
              Cancel…
            </button>
          </>
        )}
      </Head>
      {found.error && <Failed error={found.error} retry={found.refetch} />}
      <section className="panel" aria-label="Progress">
        <div className="body" style={{ padding: 14 }}>
          <Bar job={job} />
        </div>
      </section>
      <div className="tiles">
        {figures.map(([label, value, tone]) => (
          <div className={`tile ${tone}`} key={label}>
            <div className="label">{label}</div>
            <div className="figure">{count(value)}</div>
          </div>
        ))}
      </div>
      <Panel title="Job">
        <div className="body">
          <Facts
            of={[
              ["Id", <Id key="i" value={job.id} name="the id" />],
              ["By", <Text key="b">{job.operator}</Text>],
              ["Reason", <Text key="r">{job.reason || "none"}</Text>],
              ["Started", <Time key="s" at={dateOf(job.startedAt)} />],
            ]}
          />
          {job.failed > 0 && (
            <p>
              <Link href="/dead-letters">The failed ones are dead letters</Link>
              <Badge tone="bad">{count(job.failed)}</Badge>
            </p>
          )}
        </div>
      </Panel>
      {asked && (
        <Action
          title={`${{ pause: "Pause", resume: "Resume", cancel: "Cancel" }[asked]} this replay`}
          verb={{ pause: "Pause", resume: "Resume", cancel: "Cancel the replay" }[asked]}
          danger={asked === "cancel"}
          act={async (reason, requestId) => {
            if (asked === "pause") await api.replays.pauseReplay({ id, reason, requestId });
            else if (asked === "resume") await api.replays.resumeReplay({ id, reason, requestId });
            else await api.replays.cancelReplay({ id, reason, requestId });
            await queries.invalidateQueries();
          }}
          onClose={() => setAsked(undefined)}
        >
          <p>{asked === "cancel" ? "What has not been delivered yet is left out. What was delivered stays." : asked === "pause" ? "No more of it is attempted until it is resumed." : "It continues where it was paused."}</p>
        </Action>
      )}
    </>
  );
}
