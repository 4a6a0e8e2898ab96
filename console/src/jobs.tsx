// Redrives that are followed. The mesh does the work: a closed tab only stops looking, and an opened one looks again, because the
// same request id acts once and answers with its progress. A redrive is followed in the sessions of its operator only: another one
// would start what has not reached the admin, under the other's name.

import { fromJson, type JsonValue, toJson, create } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { useQueryClient } from "@tanstack/react-query";
import { useEffect, useMemo, useState, useSyncExternalStore } from "react";
import { api, message } from "./api";
import { count, plural } from "./format";
import { type RedriveDeadLettersResponse, RedriveDeadLettersRequestSchema } from "./gen/weft/v1/dead_letter_service_pb";
import { useSession } from "./session";
import { Action } from "./ui/action";
import { Badge, Text } from "./ui/basics";
import { RedriveStatus } from "./gen/weft/v1/dead_letter_service_pb";
import { receiverCondition } from "./words";

interface Job {
  /** The call, in JSON. */
  call: JsonValue;
  id: string;
  /** Who has started it. */
  operator: string;
  startedAt: number;
  selected: number;
  delivered: number;
  failed: number;
  notApplicable: number;
  /** Left open, because it was cancelled. */
  cancelled?: number;
  waiting?: string;
  state: "running" | "done" | "failed";
  error?: string;
}

const NAME = "weft.jobs";
/** Jobs that are remembered: those of a day's work. */
const JOBS_MAX = 20;

let jobs: Job[] = [];
try {
  const stored: unknown = JSON.parse(localStorage.getItem(NAME) ?? "[]");
  if (Array.isArray(stored)) jobs = stored as Job[];
} catch {
  // What is not a list of jobs is not one of ours.
}
const following = new Map<string, AbortController>();
const listeners = new Set<() => void>();

function put(next: Job[]) {
  jobs = next.slice(-JOBS_MAX);
  localStorage.setItem(NAME, JSON.stringify(jobs));
  for (const listener of listeners) listener();
}

const change = (id: string, changes: Partial<Job>) => put(jobs.map((job) => (job.id === id ? { ...job, ...changes } : job)));

/** Starts a redrive and follows it. */
export function startRedrive(call: Parameters<typeof api.deadLetters.redriveDeadLetters>[0], id: string, operator: string) {
  const request = create(RedriveDeadLettersRequestSchema, { ...call, requestId: id });
  const started = { call: toJson(RedriveDeadLettersRequestSchema, request) as JsonValue, id, operator, startedAt: Date.now() };
  put([...jobs, { ...started, selected: 0, delivered: 0, failed: 0, notApplicable: 0, state: "running" }]);
}

function progress(response: RedriveDeadLettersResponse): Partial<Job> {
  const waiting = response.status === RedriveStatus.WAITING ? response.waitsFor : [];
  return {
    selected: response.selected,
    delivered: response.delivered,
    failed: response.failed,
    notApplicable: response.notApplicable,
    cancelled: response.cancelled,
    waiting: waiting.map((each) => `${each.subscription} is ${receiverCondition.word(each.receiver?.state) || "away"}`).join(", ") || undefined,
  };
}

const PAUSE = 2000;

async function follow(job: Job, settled: () => void) {
  if (following.has(job.id)) return;
  const abort = new AbortController();
  following.set(job.id, abort);
  try {
    // A stream that was cut off, as by a restart of the admin, is opened again.
    for (;;) {
      try {
        const request = fromJson(RedriveDeadLettersRequestSchema, job.call, { ignoreUnknownFields: true });
        let shown = 0;
        let last: Partial<Job> = {};
        for await (const response of api.deadLetters.redriveDeadLetters(request, { signal: abort.signal })) {
          last = progress(response);
          if (performance.now() - shown > 100) {
            shown = performance.now();
            change(job.id, last);
          }
        }
        change(job.id, { ...last, waiting: undefined, state: "done" });
        settled();
        return;
      } catch (error) {
        if (abort.signal.aborted) return;
        const code = error instanceof ConnectError ? error.code : Code.Unknown;
        if (code === Code.Unauthenticated) return;
        if (code !== Code.Unavailable && code !== Code.Unknown && code !== Code.Aborted) {
          change(job.id, { state: "failed", error: message(error) });
          return;
        }
        await new Promise((resolve) => setTimeout(resolve, PAUSE));
        if (abort.signal.aborted) return;
      }
    }
  } finally {
    if (following.get(job.id) === abort) following.delete(job.id);
  }
}

/** Ends the session's streams; the redrives continue. */
function unfollow() {
  for (const abort of following.values()) abort.abort();
  following.clear();
}

const subscribe = (listener: () => void) => {
  listeners.add(listener);
  return () => listeners.delete(listener);
};

export function Jobs() {
  const queries = useQueryClient();
  const { operator, may } = useSession();
  const [cancelling, setCancelling] = useState<Job>();
  const all = useSyncExternalStore(subscribe, () => jobs);
  const shown = useMemo(() => all.filter((job) => job.operator === operator.operator), [all, operator]);
  useEffect(() => unfollow, []);
  useEffect(() => {
    for (const job of shown) {
      if (job.state === "running") follow(job, () => queries.invalidateQueries());
    }
  }, [shown, queries]);
  const drop = (id: string) => {
    following.get(id)?.abort();
    put(jobs.filter((job) => job.id !== id));
  };
  if (shown.length === 0) return null;
  return (
    <div className="jobs" role="region" aria-label="Redrives">
      {shown.slice(-3).map((job) => {
        const ended = job.delivered + job.failed + job.notApplicable + (job.cancelled ?? 0);
        return (
          <div className="job panel" key={job.id} data-job={job.id} data-state={job.state}>
            <header>
              <strong>
                {job.state === "running" ? "Redriving" : job.state === "failed" ? "Redrive failed" : job.cancelled ? "Redrive cancelled" : "Redriven"}{" "}
                {job.selected > 0 && plural(job.selected, "dead letter")}
              </strong>
              {job.state === "running" && may("operate") && (
                <button type="button" className="small danger" onClick={() => setCancelling(job)}>
                  Cancel…
                </button>
              )}
              <button type="button" className="plain small" onClick={() => drop(job.id)} aria-label={job.state === "running" ? "Stop following this redrive; it continues" : "Close"}>
                {job.state === "running" ? "Hide" : "Close"}
              </button>
            </header>
            {job.state === "running" && <progress aria-label="Progress" max={Math.max(1, job.selected)} value={job.selected ? ended : undefined} />}
            <div className="inline" aria-live="polite">
              <Badge tone="good">{count(job.delivered)} delivered</Badge>
              {job.failed > 0 && <Badge tone="bad">{count(job.failed)} failed again</Badge>}
              {job.notApplicable > 0 && <Badge>{count(job.notApplicable)} no longer open</Badge>}
              {(job.cancelled ?? 0) > 0 && <Badge tone="warn">{count(job.cancelled ?? 0)} left open</Badge>}
              {job.waiting && <Badge tone="warn">waits: {job.waiting}</Badge>}
            </div>
            {job.error && (
              <p className="wrap">
                <Text>{job.error}</Text>
              </p>
            )}
          </div>
        );
      })}
      {cancelling && (
        <Action
          title="Cancel the redrive"
          verb="Cancel it"
          danger
          act={(reason, requestId) => api.deadLetters.cancelDeadLetterOperation({ id: cancelling.id, reason, requestId })}
          onClose={() => setCancelling(undefined)}
        >
          <p>What is delivered stays so. What is being attempted ends with that attempt. All others stay open, and another redrive takes them.</p>
        </Action>
      )}
    </div>
  );
}
