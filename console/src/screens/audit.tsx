// What operators have done, and what became of it.

import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { useInfiniteQuery } from "@tanstack/react-query";
import { Fragment, useState } from "react";
import { api } from "../api";
import { count, dateOf, parseTime, plural } from "../format";
import { type AuditEntry, AuditResult, type AuditTarget, AuditTargetKind } from "../gen/weft/v1/audit_service_pb";
import { Link, subscriptionPath, to, useFilters } from "../router";
import { useSession } from "../session";
import { Badge, Cut, Empty, Failed, FilterInput, Head, Loading, Text, Time } from "../ui/basics";

const RESULTS: Record<number, [string, "good" | "warn" | "bad" | "info" | ""]> = {
  [AuditResult.UNSPECIFIED]: ["unknown", ""],
  [AuditResult.DONE]: ["done", "good"],
  [AuditResult.PENDING]: ["pending", "info"],
  [AuditResult.NOT_APPLICABLE]: ["not applicable", ""],
  [AuditResult.FAILED]: ["failed", "bad"],
};

function href(target: AuditTarget): string | undefined {
  switch (target.kind) {
    case AuditTargetKind.SOURCE:
      return `/sources/${encodeURIComponent(target.name)}`;
    case AuditTargetKind.SUBSCRIPTION:
      return subscriptionPath(target.name);
    case AuditTargetKind.REPLAY:
      return `/replays/${encodeURIComponent(target.name)}`;
    case AuditTargetKind.REJECTED:
      return `/rejected/${encodeURIComponent(target.name)}`;
    case AuditTargetKind.DEAD_LETTER:
      return to("/dead-letters", { status: "all", open: target.name });
    case AuditTargetKind.API_KEY:
      return "/keys";
    case AuditTargetKind.SHARD:
      return "/cluster";
    default:
      return undefined;
  }
}

function Target({ of }: { of: AuditTarget }) {
  const path = href(of);
  return path ? (
    <Link href={path}>
      <Text>{of.name}</Text>
    </Link>
  ) : (
    <Text>{of.name}</Text>
  );
}

export function Audit() {
  const { isLimited } = useSession();
  const [filters, setFilters] = useFilters(["operator", "action", "target", "request", "since", "until"] as const);
  const [open, setOpen] = useState<ReadonlySet<string>>(new Set());
  const found = useInfiniteQuery({
    queryKey: ["audit", filters],
    queryFn: ({ pageParam }) => {
      const [since, until] = [parseTime(filters.since), parseTime(filters.until)];
      const { operator, action, target, request: requestId } = filters;
      return api.audit.listAudit({ operator, action, target, requestId, since: since && timestampFromDate(since), until: until && timestampFromDate(until), pageSize: 100, pageToken: pageParam });
    },
    initialPageParam: "",
    getNextPageParam: (page) => page.nextPageToken || undefined,
    refetchInterval: ({ state }) => ((state.data?.pages.length ?? 0) > 2 ? false : 5000),
    enabled: !isLimited,
  });
  const entries = found.data?.pages.flatMap((page) => page.entries) ?? [];
  const toggle = (id: string) => {
    const next = new Set(open);
    if (!next.delete(id)) next.add(id);
    setOpen(next);
  };
  return (
    <>
      <Head title="Audit" sub="Who changed what, why, and what became of it." />
      <div className="filters">
        <FilterInput label="Operator" value={filters.operator} onChange={(operator) => setFilters({ operator })} placeholder="Operator: a key's id" />
        <FilterInput label="Action" value={filters.action} onChange={(action) => setFilters({ action })} placeholder="Action, such as *Lane" />
        <FilterInput label="Target" value={filters.target} onChange={(target) => setFilters({ target })} placeholder="Target: name or id" className="grow" />
        <FilterInput label="Since" value={filters.since} onChange={(since) => setFilters({ since })} placeholder="Since: 1h or a time" />
        <FilterInput label="Until" value={filters.until} onChange={(until) => setFilters({ until })} placeholder="Until" />
      </div>
      {found.error && <Failed error={found.error} retry={found.refetch} />}
      <section className="panel" aria-label="Audit log">
        {isLimited ? (
          <Empty title="Your key is limited to some sources or workflows">
            <p>The audit log needs a key without limits.</p>
          </Empty>
        ) : !found.data ? (
          <Loading of="the audit log" failed={found.error !== null} />
        ) : entries.length === 0 && !found.hasNextPage ? (
          <Empty title={Object.values(filters).some(Boolean) ? "No entry matches" : "Nothing has been changed yet"} />
        ) : (
          <div className="scroll" tabIndex={0} role="group" aria-label="Entries">
            <table>
              <thead>
                <tr>
                  <th>Time</th>
                  <th>Operator</th>
                  <th>Action</th>
                  <th>Target</th>
                  <th>Result</th>
                  <th>Reason</th>
                  <th>
                    <span className="hidden">Details</span>
                  </th>
                </tr>
              </thead>
              <tbody>
                {entries.map((entry) => (
                  <Fragment key={entry.id}>
                    <tr>
                      <td>
                        <Time at={dateOf(entry.time)} />
                      </td>
                      <td>
                        <Cut mono>{entry.operator}</Cut>
                      </td>
                      <td className="nowrap">{entry.action}</td>
                      <td className="wrap">
                        {entry.targets[0] ? <Target of={entry.targets[0]} /> : <span className="dim">–</span>}
                        {entry.targetCount > 1 && <span className="dim"> and {count(entry.targetCount - 1)} more</span>}
                      </td>
                      <td>
                        <Badge tone={RESULTS[entry.result]?.[1]}>{RESULTS[entry.result]?.[0]}</Badge>
                      </td>
                      <td>
                        <Cut>{entry.reason || "–"}</Cut>
                      </td>
                      <td className="right">
                        <button type="button" className="small" aria-expanded={open.has(entry.id)} onClick={() => toggle(entry.id)}>
                          {open.has(entry.id) ? "Less" : "More"}
                          <span className="hidden"> of {entry.action}</span>
                        </button>
                      </td>
                    </tr>
                    {open.has(entry.id) && (
                      <tr>
                        <td colSpan={7}>
                          <Details entry={entry} />
                        </td>
                      </tr>
                    )}
                  </Fragment>
                ))}
              </tbody>
            </table>
          </div>
        )}
        {found.hasNextPage && (
          <div className="bulk">
            <button type="button" onClick={() => found.fetchNextPage()} disabled={found.isFetchingNextPage}>
              {found.isFetchingNextPage ? "Loading…" : "Load earlier entries"}
            </button>
          </div>
        )}
      </section>
    </>
  );
}

function Details({ entry }: { entry: AuditEntry }) {
  const counts = entry.counts;
  return (
    <div className="stack">
      {entry.reason && (
        <div className="wrap">
          <Text>{entry.reason}</Text>
        </div>
      )}
      <div className="inline dim">
        <span>
          request <code><Text>{entry.requestId}</Text></code>
        </span>
        {counts && counts.selected > 0 && (
          <span>
            {plural(counts.selected, "item")}: {count(counts.done)} done, {count(counts.failed)} failed, {count(counts.pending)} pending, {count(counts.notApplicable)} not applicable
          </span>
        )}
      </div>
      {entry.targets.length > 1 && (
        <ul>
          {entry.targets.slice(0, 20).map((target, at) => (
            <li key={at} className="wrap">
              <Target of={target} />
            </li>
          ))}
          {entry.targetCount > 20 && <li className="dim">and {count(entry.targetCount - 20)} more</li>}
        </ul>
      )}
      {entry.changes.length > 0 && (
        <pre className="block wrap" tabIndex={0} aria-label="Changes">
          {entry.changes.map((line, at) => (
            <div key={at} className={line.startsWith("+") ? "diff-add" : line.startsWith("-") ? "diff-remove" : undefined}>
              <Text>{line}</Text>
            </div>
          ))}
        </pre>
      )}
    </div>
  );
}
