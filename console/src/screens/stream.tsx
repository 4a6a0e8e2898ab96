// Events as they are accepted.

import { useQuery } from "@tanstack/react-query";
import { Code, ConnectError } from "@connectrpc/connect";
import { useCallback, useEffect, useMemo, useRef, useState } from "react";
import { api, message } from "../api";
import { count, dateOf, durationText, textOf } from "../format";
import type { Event } from "../gen/weft/v1/event_pb";
import { isTyping } from "../keys";
import { eventPath, Link, navigate, useFilters, workflowPath } from "../router";
import { Badge, Cut, Empty, Head, Status, Text, Time } from "../ui/basics";
import { type Column, List } from "../ui/list";
import { QueryInput } from "../ui/query";
import { parseQuery } from "../query";

/** Rows that are kept: the oldest go first. */
const ROWS_MAX = 10_000;
const RECONNECT_PAUSE = 1000;

interface Tail {
  rows: Event[];
  state: "connecting" | "live" | "paused" | "failed";
  error?: unknown;
  /** Rows that went, because there are more than are kept. */
  dropped: number;
  /** Events of the last second. */
  rate: number;
}

const STATUSES = ["pending", "delivering", "retrying", "paused", "blocked", "delivered", "dead_lettered", "resolved", "discarded", "unrouted"];

export function Stream() {
  const [filters, setFilters] = useFilters(["q", "from"] as const);
  const query = useMemo(() => parseQuery(filters.q), [filters.q]);
  const [paused, setPaused] = useState(false);
  const [follow, setFollow] = useState(true);
  const tail = useTail(query.workflow, query.type, query.source, query.since, filters.from === "oldest", paused);
  const shown = useMemo(() => {
    const text = query.text.toLowerCase();
    if (!text && !query.id) return tail.rows;
    return tail.rows.filter(
      (event) =>
        (!query.id || event.eventId.startsWith(query.id) || event.deliveryId === query.id) &&
        (!text || (textOf(event.data) ?? "").toLowerCase().includes(text)),
    );
  }, [tail.rows, query.text, query.id]);

  useEffect(() => {
    const press = (event: KeyboardEvent) => {
      if (event.key !== " " || isTyping(event.target) || (event.target as HTMLElement).closest?.("button,a,summary,dialog")) return;
      event.preventDefault();
      setPaused((value) => !value);
    };
    window.addEventListener("keydown", press);
    return () => window.removeEventListener("keydown", press);
  }, []);

  const known = useMemo(() => {
    const recent = tail.rows.slice(-500);
    const values = (of: (event: Event) => string) => [...new Set(recent.map(of))].sort().slice(0, 50);
    return { source: values((event) => event.source), type: values((event) => event.type), workflow: values((event) => event.workflowId), status: STATUSES };
  }, [tail.rows]);

  const columns = useMemo<Column<Event>[]>(
    () => [
      { title: "Time", width: "108px", show: (event) => <Time at={dateOf(event.receivedAt)} /> },
      { title: "No.", width: "48px", right: true, show: (event) => count(event.sequenceNumber) },
      {
        title: "Workflow",
        width: "minmax(100px, 1fr)",
        show: (event) => (
          <Link href={workflowPath(event.workflowId)} className="truncate" title={event.workflowId} tabIndex={-1}>
            <Text>{event.workflowId}</Text>
          </Link>
        ),
      },
      { title: "Type", width: "minmax(100px, 1fr)", show: (event) => <Cut>{event.type}</Cut> },
      { title: "Source", width: "minmax(60px, 0.6fr)", show: (event) => <Cut>{event.source}</Cut> },
      { title: "Status", width: "112px", show: (event) => <Settled id={event.eventId} show="status" /> },
      { title: "Attempts", width: "60px", right: true, show: (event) => <Settled id={event.eventId} show="attempts" /> },
      { title: "Latency", width: "66px", right: true, show: (event) => <Settled id={event.eventId} show="latency" received={dateOf(event.receivedAt)} /> },
      { title: "Payload", width: "minmax(120px, 2fr)", show: (event) => <Cut mono>{preview(event)}</Cut> },
    ],
    [],
  );
  const id = useCallback((event: Event) => `${event.eventId}:${event.workflowId}:${event.sequenceNumber}`, []);
  const href = useCallback((event: Event) => eventPath(event.eventId), []);

  return (
    <>
      <Head title="Stream" sub="Events as they are accepted, in the order of the log.">
        <button type="button" aria-pressed={paused} onClick={() => setPaused(!paused)}>
          {paused ? "Continue" : "Pause"}
        </button>
        <button type="button" aria-pressed={follow} onClick={() => setFollow(!follow)}>
          Follow
        </button>
        <button type="button" aria-pressed={filters.from === "oldest"} onClick={() => setFilters({ from: filters.from === "oldest" ? "" : "oldest" })} title="Begin with the oldest event that is kept">
          From the oldest
        </button>
      </Head>
      <div className="filters">
        <QueryInput
          value={filters.q}
          onChange={(q) => setFilters({ q })}
          onId={(found) => navigate(eventPath(found))}
          known={known}
        />
      </div>
      {query.problems.map((problem) => (
        <div className="note-box warn" role="status" key={problem}>
          <div>
            <Text>{problem}</Text>
          </div>
        </div>
      ))}
      <section className="panel" aria-label="Events">
        <div className="bulk" role="status">
          <State tail={tail} />
          <span className="dim tabular">
            {count(shown.length)} shown{tail.dropped > 0 && `, ${count(tail.dropped)} older ones no longer kept here`}
          </span>
        </div>
        {shown.length === 0 ? (
          <Empty title={tail.rows.length > 0 ? "None of these events has that text" : tail.state === "connecting" ? "Connecting…" : "No event yet"}>
            {tail.state === "live" && tail.rows.length === 0 && (
              <p>
                New events appear here at once. Show what is stored already with{" "}
                <button type="button" className="small" onClick={() => setFilters({ from: "oldest" })}>
                  From the oldest
                </button>
              </p>
            )}
          </Empty>
        ) : (
          <List label="Events" rows={shown} columns={columns} id={id} href={href} follow={follow && !paused} onFollow={setFollow} minWidth={900} />
        )}
      </section>
    </>
  );
}

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

/** What has become of an event, as long as it is in view. */
function Settled({ id, show, received }: { id: string; show: "status" | "attempts" | "latency"; received?: Date }) {
  const [wanted, setWanted] = useState(false);
  // Rows that only fly past are not asked for.
  useEffect(() => {
    const timer = setTimeout(() => setWanted(true), 350);
    return () => clearTimeout(timer);
  }, []);
  const { data } = useQuery({
    queryKey: ["event", id],
    queryFn: () => api.events.getEvent({ eventId: id }),
    enabled: wanted,
    refetchInterval: ({ state }) => (isSettled(state.data?.status) ? false : 2500),
    staleTime: 2000,
  });
  if (!data) return <span className="dim">…</span>;
  if (show === "status") return <Status of={data.status} />;
  if (show === "attempts") return <>{count(data.deliveries.reduce((sum, delivery) => sum + delivery.attemptCount, 0))}</>;
  const settled = data.deliveries.map((delivery) => dateOf(delivery.settledAt)?.getTime() ?? 0);
  const last = Math.max(0, ...settled);
  if (!last || !received || settled.some((at) => at === 0)) return <span className="dim">–</span>;
  return <>{durationText(last - received.getTime())}</>;
}

const isSettled = (status?: string) => status !== undefined && ["delivered", "resolved", "discarded", "unrouted"].includes(status);

/** Follows the log. A pause keeps the place: it continues where it was. */
function useTail(workflowId: string, type: string, source: string, since: string, oldest: boolean, paused: boolean): Tail {
  const [tail, setTail] = useState<Tail>({ rows: [], state: "connecting", dropped: 0, rate: 0 });
  const cursor = useRef("");
  const selection = JSON.stringify([workflowId, type, source, since, oldest]);
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
    let arrived: Event[] = [];
    let frame = 0;
    let seconds: number[] = [];
    const flush = () => {
      frame = 0;
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
          const from = cursor.current || since;
          const request = { filter: { workflowId, type, source }, since: from, fromBeginning: oldest && !from };
          // The answer's head comes with its first event, so the state is live as soon as the request is on its way.
          const live = setTimeout(() => setTail((now) => (now.state === "connecting" ? { ...now, state: "live" } : now)), 300);
          try {
            for await (const { event, cursor: after } of api.events.tailEvents(request, { signal: abort.signal })) {
              clearTimeout(live);
              cursor.current = after;
              if (event) arrived.push(event);
              if (!frame) frame = requestAnimationFrame(flush);
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
      if (frame) cancelAnimationFrame(frame);
      if (arrived.length > 0) flush();
    };
  }, [selection, paused, workflowId, type, source, since, oldest]);
  return tail;
}
