// Events as they are accepted.

import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import { useInfiniteQuery, useQuery } from "@tanstack/react-query";
import { type ReactNode, useCallback, useEffect, useMemo, useRef, useState } from "react";
import { api, message } from "../api";
import { count, dateOf, durationText, parseTime, plural, textOf } from "../format";
import type { Event } from "../gen/weft/v1/event_pb";
import type { EventDelivery, ListedEvent } from "../gen/weft/v1/event_service_pb";
import { isTyping } from "../keys";
import { eventPath, Link, navigate, to, useFilters, workflowPath } from "../router";
import { Badge, Cut, Empty, Failed, Head, Loading, Status, Text, Time } from "../ui/basics";
import { type Column, List } from "../ui/list";
import { QueryInput } from "../ui/query";
import { asksHistory, parseQuery, type Query, quoted } from "../query";
import { EventStatus } from "../gen/weft/v1/status_pb";
import { eventStatus } from "../words";

/** Rows that are kept: the oldest go first. */
const ROWS_MAX = 10_000;
const RECONNECT_PAUSE = 1000;

/** Between two updates of the rows: more of them are not seen, and each costs the same. */
const UPDATE_PAUSE = 100;

/** Events of the past that a stream begins with. */
const RECENT = 200;

/** An event with what became of it, as far as that is known. */
interface Row {
  event: Event;
  status?: EventStatus;
  deliveries?: EventDelivery[];
}

interface Tail {
  rows: Row[];
  state: "connecting" | "live" | "paused" | "failed";
  error?: unknown;
  /** Rows that went, because there are more than are kept. */
  dropped: number;
  /** Events of the last second. */
  rate: number;
}

const STATUSES = ["pending", "delivering", "retrying", "paused", "blocked", "delivered", "dead_lettered", "resolved", "discarded", "unrouted"];

const id = ({ event }: Row) => `${event.eventId}:${event.workflowId}:${event.sequenceNumber}`;
const href = ({ event }: Row) => eventPath(event.eventId);

const COLUMNS: Column<Row>[] = [
  { title: "Time", width: "128px", show: ({ event }) => <Time at={dateOf(event.receivedAt)} /> },
  { title: "No.", width: "48px", right: true, show: ({ event }) => count(event.sequenceNumber) },
  {
    title: "Workflow",
    width: "minmax(100px, 1fr)",
    show: ({ event }) => (
      <Link href={workflowPath(event.workflowId)} className="truncate" title={event.workflowId} tabIndex={-1}>
        <Text>{event.workflowId}</Text>
      </Link>
    ),
  },
  { title: "Type", width: "minmax(100px, 1fr)", show: ({ event }) => <Cut>{event.type}</Cut> },
  { title: "Source", width: "minmax(60px, 0.6fr)", show: ({ event }) => <Cut>{event.source}</Cut> },
  { title: "Status", width: "112px", show: (row) => <Settled key={id(row)} row={row} show="status" /> },
  { title: "Attempts", width: "60px", right: true, show: (row) => <Settled key={id(row)} row={row} show="attempts" /> },
  { title: "Latency", width: "66px", right: true, show: (row) => <Settled key={id(row)} row={row} show="latency" /> },
  { title: "Payload", width: "minmax(110px, 2fr)", show: ({ event }) => <Cut mono>{preview(event)}</Cut> },
];

function known(rows: Row[]) {
  const recent = rows.slice(-500);
  const values = (of: (event: Event) => string) => [...new Set(recent.map(({ event }) => of(event)))].sort().slice(0, 50);
  return { source: values((event) => event.source), type: values((event) => event.type), workflow: values((event) => event.workflowId), status: STATUSES };
}

export function Stream() {
  const [filters, setFilters] = useFilters(["q"] as const);
  const query = useMemo(() => parseQuery(filters.q), [filters.q]);
  const [seen, setSeen] = useState<Record<string, string[]>>({ status: STATUSES });
  const note = useCallback((rows: Row[]) => setSeen(known(rows)), []);
  const setQuery = useCallback((q: string) => setFilters({ q }), [setFilters]);
  const bar = (
    <>
      <div className="filters">
        <QueryInput value={filters.q} onChange={setQuery} onId={(found) => navigate(eventPath(found))} known={seen} />
      </div>
      {query.problems.map((problem) => (
        <div className="note-box warn" role="status" key={problem}>
          <div>
            <Text>{problem}</Text>
          </div>
        </div>
      ))}
    </>
  );
  return asksHistory(query) ? <Past query={query} bar={bar} note={note} /> : <Live query={query} bar={bar} note={note} />;
}

interface Props {
  query: Query;
  bar: ReactNode;
  /** Called with the rows, whose values are suggested. */
  note: (rows: Row[]) => void;
}

function useNote(rows: Row[], note: (rows: Row[]) => void) {
  const newest = useRef(rows);
  newest.current = rows;
  const isEmpty = rows.length === 0;
  // The suggestions need not be newer than this.
  useEffect(() => {
    if (!isEmpty) note(newest.current);
    const timer = setInterval(() => note(newest.current), 3000);
    return () => clearInterval(timer);
  }, [isEmpty, note]);
}

function Live({ query, bar, note }: Props) {
  const [paused, setPaused] = useState(false);
  const [follow, setFollow] = useState(true);
  const tail = useTail(query.workflow, query.type, query.source, paused);
  useNote(tail.rows, note);
  useEffect(() => {
    const press = (event: KeyboardEvent) => {
      if (event.key !== " " || isTyping(event.target) || (event.target as HTMLElement).closest?.("button,a,summary,dialog")) return;
      event.preventDefault();
      setPaused((value) => !value);
    };
    window.addEventListener("keydown", press);
    return () => window.removeEventListener("keydown", press);
  }, []);
  return (
    <>
      <Head title="Stream" sub="Events as they are accepted. With status:, since:, until:, subscription: or a text the history is searched.">
        <button type="button" aria-pressed={paused} onClick={() => setPaused(!paused)}>
          {paused ? "Continue" : "Pause"}
        </button>
        <button type="button" aria-pressed={follow} onClick={() => setFollow(!follow)}>
          Follow
        </button>
      </Head>
      {bar}
      <section className="panel" aria-label="Events">
        <div className="bulk" role="status">
          <State tail={tail} />
          <span className="dim tabular">
            {count(tail.rows.length)} shown{tail.dropped > 0 && `, ${count(tail.dropped)} older ones no longer kept here`}
          </span>
        </div>
        {tail.rows.length === 0 ? (
          <Empty title={tail.state === "connecting" ? "Connecting…" : tail.state === "failed" ? "Not known at the moment" : "No event yet"}>{tail.state === "live" && <p>New events appear here at once.</p>}</Empty>
        ) : (
          <List label="Events" rows={tail.rows} columns={COLUMNS} id={id} href={href} follow={follow && !paused} onFollow={setFollow} dropped={tail.dropped} minWidth={910} />
        )}
      </section>
    </>
  );
}

function Past({ query, bar, note }: Props) {
  const found = useInfiniteQuery({
    queryKey: ["events", query],
    queryFn: ({ pageParam, signal }) => {
      const [since, until] = [parseTime(query.since), parseTime(query.until)];
      const id = query.id.length >= 8 && /^[0-9a-f-]+$/i.test(query.id) ? { eventId: query.id } : { deliveryId: query.id };
      const filter = {
        ...id,
        workflowId: query.workflow,
        type: query.type,
        source: query.source,
        subscription: query.subscription,
        statuses: query.status ? query.status.split(",").map(eventStatus.of) : [],
        since: since && timestampFromDate(since),
        until: until && timestampFromDate(until),
        contains: query.text,
      };
      return api.events.listEvents({ filter, withData: true, pageSize: 200, pageToken: pageParam }, { signal });
    },
    initialPageParam: "",
    getNextPageParam: (page) => page.nextPageToken || undefined,
    retry: false,
  });
  const rows = useMemo(() => found.data?.pages.flatMap((page) => page.events.flatMap(rowOf)) ?? [], [found.data]);
  useNote(rows, note);
  const scanned = found.data?.pages.reduce((sum, page) => sum + (page.search?.scanned ?? 0), 0) ?? 0;
  const more = () => {
    if (found.hasNextPage && !found.isFetchingNextPage) found.fetchNextPage();
  };
  return (
    <>
      <Head title="Stream" sub="The history, the newest event first.">
        <button type="button" onClick={() => found.refetch()} disabled={found.isFetching}>
          Refresh
        </button>
        <Link className="button" href={to("/stream", { q: live(query) })}>
          Live
        </Link>
      </Head>
      {bar}
      {found.error && <Failed error={found.error} retry={found.refetch} />}
      <section className="panel" aria-label="Events">
        <div className="bulk" role="status">
          <Badge tone="info">history</Badge>
          <span className="dim tabular">
            {count(rows.length)} {found.hasNextPage ? "shown" : "found"}
            {query.text && `, ${plural(scanned, "payload")} searched`}
          </span>
          {found.hasNextPage && (
            <button type="button" className="small" onClick={more} disabled={found.isFetchingNextPage}>
              {found.isFetchingNextPage ? "Searching…" : query.text ? "Search further back" : "Load older ones"}
            </button>
          )}
        </div>
        {!found.data ? (
          <Loading of="events" failed={found.error !== null} />
        ) : rows.length === 0 ? (
          <Empty title={found.hasNextPage ? "None so far" : "No event matches"} />
        ) : (
          <List label="Events" rows={rows} columns={COLUMNS} id={id} href={href} onEnd={query.text ? undefined : more} minWidth={910} />
        )}
      </section>
    </>
  );
}

/** What the end of the log can answer of a query. */
const live = (query: Query) =>
  (["workflow", "type", "source"] as const)
    .filter((name) => query[name])
    .map((name) => `${name}:${quoted(query[name])}`)
    .join(" ");

const rowOf = ({ event, status, deliveries }: ListedEvent): Row[] => (event ? [{ event, status, deliveries }] : []);

function State({ tail }: { tail: Tail }) {
  if (tail.state === "failed") {
    return (
      <>
        <Badge tone="bad">disconnected</Badge>
        <span className="wrap">
          <Text>{message(tail.error)}</Text>
        </span>
      </>
    );
  }
  if (tail.state === "paused") return <Badge tone="warn">paused; continues without a gap</Badge>;
  if (tail.state === "connecting") return <Badge tone="info">connecting</Badge>;
  return <Badge tone="good">live, {count(tail.rate)}/s</Badge>;
}

/** The start of a payload, in one line. */
function preview(event: Event): string {
  const text = textOf(event.data.subarray(0, 400));
  // The cut may be inside of a character.
  return text?.replace(/\s+/g, " ").slice(0, 240) ?? textOf(event.data.subarray(0, 397))?.slice(0, 240) ?? `${event.data.length} bytes`;
}

interface SettledProps {
  row: Row;
  show: "status" | "attempts" | "latency";
}

/** What has become of an event, as long as it is in view. */
function Settled({ row, show }: SettledProps) {
  const [wanted, setWanted] = useState(row.status !== undefined);
  // Rows that only fly past are not asked for.
  useEffect(() => {
    const timer = setTimeout(() => setWanted(true), 350);
    return () => clearTimeout(timer);
  }, []);
  return wanted ? <Known row={row} show={show} /> : <span className="dim">…</span>;
}

function Known({ row, show }: SettledProps) {
  const { eventId, receivedAt } = row.event;
  const { data = row } = useQuery<Pick<Row, "status" | "deliveries">>({
    queryKey: ["event", eventId],
    queryFn: () => api.events.getEvent({ eventId }),
    enabled: !isSettled(row.status),
    refetchInterval: ({ state }) => (isSettled(state.data?.status) ? false : 2500),
    staleTime: 2000,
  });
  const { status, deliveries = [] } = data;
  if (!status) return <span className="dim">…</span>;
  if (show === "status") return <Status of={eventStatus.word(status)} />;
  if (show === "attempts") return <>{count(deliveries.reduce((sum, delivery) => sum + delivery.attemptCount, 0))}</>;
  const settled = deliveries.map((delivery) => dateOf(delivery.settledAt)?.getTime() ?? 0);
  const last = Math.max(0, ...settled);
  const received = dateOf(receivedAt);
  if (!last || !received || settled.some((at) => at === 0)) return <span className="dim">–</span>;
  return <>{durationText(last - received.getTime())}</>;
}

const SETTLED = [EventStatus.DELIVERED, EventStatus.RESOLVED, EventStatus.DISCARDED, EventStatus.UNROUTED];
const isSettled = (status?: EventStatus) => status !== undefined && SETTLED.includes(status);

/** Follows the log. A pause keeps the place: it continues where it was. */
function useTail(workflowId: string, type: string, source: string, paused: boolean): Tail {
  const [tail, setTail] = useState<Tail>({ rows: [], state: "connecting", dropped: 0, rate: 0 });
  const cursor = useRef("");
  const selection = JSON.stringify([workflowId, type, source]);
  const shownSelection = useRef(selection);
  useEffect(() => {
    if (shownSelection.current !== selection) {
      shownSelection.current = selection;
      cursor.current = "";
      setTail({ rows: [], state: "connecting", dropped: 0, rate: 0 });
    }
    if (paused) {
      setTail((now) => ({ ...now, state: "paused", rate: 0 }));
      return;
    }
    const abort = new AbortController();
    let arrived: Row[] = [];
    let timer: ReturnType<typeof setTimeout> | undefined;
    let updated = Number.NEGATIVE_INFINITY;
    let seconds: number[] = [];
    const flush = () => {
      timer = undefined;
      updated = performance.now();
      const fresh = arrived;
      arrived = [];
      const now = performance.now();
      seconds = [...seconds, ...fresh.map(() => now)].filter((at) => now - at < 1000).slice(-100_000);
      setTail((before) => {
        const rows = before.rows.concat(fresh);
        const over = Math.max(0, rows.length - ROWS_MAX);
        return { ...before, rows: over ? rows.slice(over) : rows, dropped: before.dropped + over, rate: seconds.length };
      });
    };
    const calm = setInterval(() => {
      const now = performance.now();
      seconds = seconds.filter((at) => now - at < 1000);
      setTail((before) => (before.rate === seconds.length ? before : { ...before, rate: seconds.length }));
    }, 1000);
    const run = async () => {
      while (!abort.signal.aborted) {
        try {
          setTail((now) => ({ ...now, state: "connecting" }));
          if (!cursor.current) {
            // What came last, so that the stream does not begin empty; it continues after the newest of it.
            const page = await api.events.listEvents({ filter: { workflowId, type, source }, withData: true, pageSize: RECENT }, { signal: abort.signal });
            const rows = page.events.flatMap(rowOf).reverse();
            cursor.current = rows.at(-1)?.event.eventId ?? "";
            setTail((now) => ({ ...now, rows }));
          }
          const request = { filter: { workflowId, type, source }, since: cursor.current };
          // The answer's head comes with its first event, so the state is live as soon as the request is on its way.
          const live = setTimeout(() => setTail((now) => (now.state === "connecting" ? { ...now, state: "live" } : now)), 300);
          try {
            for await (const { event, cursor: after } of api.events.tailEvents(request, { signal: abort.signal })) {
              clearTimeout(live);
              cursor.current = after;
              if (event) arrived.push({ event });
              timer ??= setTimeout(flush, Math.max(0, updated + UPDATE_PAUSE - performance.now()));
              setTail((now) => (now.state === "live" ? now : { ...now, state: "live" }));
            }
          } finally {
            clearTimeout(live);
          }
        } catch (error) {
          if (abort.signal.aborted) return;
          setTail((now) => ({ ...now, state: "failed", error, rate: 0 }));
          const code = error instanceof ConnectError ? error.code : Code.Unknown;
          if (code === Code.InvalidArgument || code === Code.OutOfRange || code === Code.PermissionDenied) return;
        }
        await new Promise((resolve) => setTimeout(resolve, RECONNECT_PAUSE));
      }
    };
    run();
    return () => {
      abort.abort();
      clearInterval(calm);
      clearTimeout(timer);
      if (arrived.length > 0) flush();
    };
  }, [selection, paused, workflowId, type, source]);
  return tail;
}
