// One workflow: its events in order, with gaps, and its lanes.

import { useInfiniteQuery } from "@tanstack/react-query";
import { Fragment, useState } from "react";
import { api } from "../api";
import { count, dateOf, plural } from "../format";
import { eventPath, Link, to, useFilters } from "../router";
import { Badge, Cut, Empty, Failed, Head, Loading, Panel, Status, Text, Time } from "../ui/basics";
import { LaneActions, LaneTable } from "../ui/lanes";
import { eventStatus } from "../words";

const PAGE = 200;

export function Workflow({ id }: { id: string }) {
  const [filters, setFilters] = useFilters(["order"] as const);
  const newestFirst = filters.order !== "oldest";
  const found = useInfiniteQuery({
    queryKey: ["workflow", id, newestFirst],
    queryFn: ({ pageParam }) => api.workflows.getWorkflow({ workflowId: id, pageSize: PAGE, pageToken: pageParam, newestFirst }),
    initialPageParam: "",
    getNextPageParam: (page) => page.nextPageToken || undefined,
    refetchInterval: ({ state }) => ((state.data?.pages.length ?? 0) > 3 ? false : 3000),
  });
  const [selected, setSelected] = useState<ReadonlySet<string>>(new Set());
  const pages = found.data?.pages ?? [];
  const events = pages.flatMap((page) => page.events);
  const lanes = pages[0]?.lanes ?? [];
  const first = events[0]?.event?.sequenceNumber;
  const title = (
    <>
      <Head
        title={<Text>{id}</Text>}
        crumb={<span className="dim">Workflow</span>}
      >
        <Link className="button" href={to("/stream", { q: `workflow:${/[\s"]/.test(id) ? JSON.stringify(id) : id}` })}>
          Follow live
        </Link>
        <button type="button" onClick={() => setFilters({ order: newestFirst ? "oldest" : "" })}>
          {newestFirst ? "Newest first" : "Oldest first"}
        </button>
      </Head>
    </>
  );
  if (found.error && pages.length === 0) {
    return (
      <>
        {title}
        <Failed error={found.error} retry={found.refetch} />
      </>
    );
  }
  if (pages.length === 0) return <Loading of="the workflow" />;
  return (
    <>
      {title}
      <Panel title={`Lanes (${count(lanes.length)})`} tools={<LaneActions lanes={lanes} selected={selected} clear={() => setSelected(new Set())} />}>
        {lanes.length === 0 ? (
          <div className="body dim">Nothing is pending: every event of this workflow has settled.</div>
        ) : (
          <LaneTable lanes={lanes} selected={selected} onSelected={setSelected} hideWorkflow />
        )}
      </Panel>
      <Panel title="Events">
        {events.length === 0 ? (
          <Empty title="No event of this workflow is kept" />
        ) : (
          <div className="scroll" tabIndex={0} role="group" aria-label="Events of the workflow">
            <table>
              <thead>
                <tr>
                  <th className="num">No.</th>
                  <th>Status</th>
                  <th>Type</th>
                  <th>Source</th>
                  <th>Accepted</th>
                  <th>Event</th>
                </tr>
              </thead>
              <tbody>
                {newestFirst || first === undefined || first <= 1n || (
                  <tr>
                    <td colSpan={6} className="dim">
                      Numbers 1 to {count(first - 1n)} are no longer kept.
                    </td>
                  </tr>
                )}
                {events.map(({ event, status }, at) => {
                  if (!event) return null;
                  const before = events[at - 1]?.event?.sequenceNumber;
                  const step = before === undefined ? 1n : newestFirst ? before - event.sequenceNumber : event.sequenceNumber - before;
                  return (
                    <Fragment key={`${event.eventId}:${event.sequenceNumber}`}>
                      {step !== 1n && (
                        <tr data-testid="gap">
                          <td colSpan={6} className="gap">
                            {step > 1n ? `Gap: ${plural(step - 1n, "number is", "numbers are")} missing here` : "Out of order here"}
                          </td>
                        </tr>
                      )}
                      <tr>
                        <td className="num">{count(event.sequenceNumber)}</td>
                        <td>
                          <Status of={eventStatus.word(status)} />
                        </td>
                        <td>
                          <Cut>{event.type}</Cut>
                        </td>
                        <td>
                          <Cut>{event.source}</Cut>
                        </td>
                        <td>
                          <Time at={dateOf(event.receivedAt)} />
                        </td>
                        <td>
                          <Link href={eventPath(event.eventId)} className="mono nowrap">
                            {event.eventId}
                          </Link>
                        </td>
                      </tr>
                    </Fragment>
                  );
                })}
              </tbody>
            </table>
          </div>
        )}
        {found.hasNextPage && (
          <div className="bulk">
            <button type="button" onClick={() => found.fetchNextPage()} disabled={found.isFetchingNextPage}>
              {found.isFetchingNextPage ? "Loading…" : `Load ${newestFirst ? "older" : "newer"} events`}
            </button>
            <Badge>{count(events.length)} shown</Badge>
          </div>
        )}
      </Panel>
    </>
  );
}
