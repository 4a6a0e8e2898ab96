// Requests that gateways refused, with the difference between what was expected and what was given.

import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { useInfiniteQuery, useQuery, useQueryClient } from "@tanstack/react-query";
import { useMemo, useState } from "react";
import { api } from "../api";
import { bytesText, dateOf, parseTime, plural } from "../format";
import type { Rejected as Request, RetriedRejected } from "../gen/weft/v1/rejected_service_pb";
import { eventPath, Link, useFilters } from "../router";
import { useSession } from "../session";
import { Action } from "../ui/action";
import { Badge, Cut, Empty, Facts, Failed, FilterInput, Head, Loading, Panel, Select, Text, Time } from "../ui/basics";
import { type Column, List } from "../ui/list";
import { Payload } from "../ui/payload";

const CODES = ["signature_missing", "signature_invalid", "timestamp_out_of_window", "key_missing", "key_invalid", "malformed_body", "missing_workflow", "invalid_workflow", "missing_type", "missing_delivery_id", "id_reused", "body_too_large", "unsupported_media_type", "schema_invalid", "rate_limited"];

/** What is usually wrong, and where to look. */
const ADVICE: Record<string, { expected: string; advice: string }> = {
  signature_missing: { expected: "the signature header of the source's scheme", advice: "Set the secret at the sender, or check that a proxy does not remove the header." },
  signature_invalid: { expected: "a signature of these exact bytes with one of the source's secrets", advice: "The secrets differ, or something between has changed the body. Correct the secret of the source, then retry." },
  timestamp_out_of_window: { expected: "a timestamp within the tolerance of the source", advice: "The sender's clock is wrong, or the request was held back. A retry verifies without freshness." },
  key_missing: { expected: "x-api-key, or Authorization: Bearer", advice: "Give the sender a key with scope ingest." },
  key_invalid: { expected: "a key that is known and has not expired", advice: "The key was revoked, has expired, or is of another mesh." },
  malformed_body: { expected: "a body of the source's kind", advice: "The source takes JSON unless its body is any." },
  missing_workflow: { expected: "a workflow id where the source's rule looks", advice: "Correct the rule of the source, or send to …/{source}/{workflowId}." },
  invalid_workflow: { expected: "a workflow id of 1 to 128 bytes", advice: "Correct the rule of the source." },
  missing_type: { expected: "a type where the source's rule looks", advice: "Correct the rule of the source." },
  missing_delivery_id: { expected: "a delivery id where the source's rule looks", advice: "Correct the rule of the source." },
  id_reused: { expected: "the body that the delivery id came with before", advice: "The sender used one id for two bodies; set on_id_reuse if that is its habit." },
  schema_invalid: { expected: "data that the source's schema allows", advice: "Correct the schema or the sender, then retry." },
  body_too_large: { expected: "a smaller body", advice: "Raise max_body of the source, at most that of the gateway." },
};

export function Rejected() {
  const { may, isLimited } = useSession();
  const [filters, setFilters] = useFilters(["source", "code", "since", "until"] as const);
  const [selected, setSelected] = useState<ReadonlySet<string>>(new Set());
  const [retrying, setRetrying] = useState(false);
  const [results, setResults] = useState<RetriedRejected[]>();
  const queries = useQueryClient();
  const found = useInfiniteQuery({
    queryKey: ["rejected", filters],
    queryFn: ({ pageParam }) => {
      const [since, until] = [parseTime(filters.since), parseTime(filters.until)];
      return api.rejected.listRejected({ source: filters.source, code: filters.code, since: since && timestampFromDate(since), until: until && timestampFromDate(until), pageSize: 200, pageToken: pageParam });
    },
    initialPageParam: "",
    getNextPageParam: (page) => page.nextPageToken || undefined,
    refetchInterval: ({ state }) => ((state.data?.pages.length ?? 0) > 2 ? false : 4000),
  });
  const rows = useMemo(() => found.data?.pages.flatMap((page) => page.rejected) ?? [], [found.data]);
  const canRetry = may("operate") && !isLimited;
  const toggle = (row: Request) =>
    setSelected((now) => {
      const next = new Set(now);
      if (!next.delete(row.id)) next.add(row.id);
      return next;
    });
  const columns: Column<Request>[] = [
    ...(canRetry
      ? [{ title: <span className="hidden">Selected</span>, width: "18px", show: (row: Request) => <input type="checkbox" tabIndex={-1} aria-label={`Select ${row.id}`} checked={selected.has(row.id)} disabled={row.truncated || row.redacted} onChange={() => toggle(row)} /> }]
      : []),
    { title: "Received", width: "150px", show: (row) => <Time at={dateOf(row.receivedAt)} /> },
    { title: "Source", width: "minmax(80px, 0.6fr)", show: (row) => <Cut>{row.source}</Cut> },
    { title: "Code", width: "180px", show: (row) => <Badge tone="bad">{row.code.replaceAll("_", " ")}</Badge> },
    { title: "Detail", width: "minmax(200px, 2fr)", show: (row) => <Cut>{row.detail}</Cut> },
    { title: "From", width: "120px", show: (row) => <Cut mono>{row.client}</Cut> },
    { title: "Size", width: "80px", right: true, show: (row) => bytesText(row.bodySize) },
  ];
  return (
    <>
      <Head title="Rejected" sub="Requests that gateways refused, as far as they are kept. A retry verifies again with today's secrets." />
      <div className="filters">
        <FilterInput label="Source" value={filters.source} onChange={(source) => setFilters({ source })} />
        <Select label="Code" value={filters.code} onChange={(code) => setFilters({ code })} options={[["", "Every code"], ...CODES.map((code) => [code, code.replaceAll("_", " ")] as const)]} />
        <FilterInput label="Since" value={filters.since} onChange={(since) => setFilters({ since })} placeholder="Since: 1h or a time" />
        <FilterInput label="Until" value={filters.until} onChange={(until) => setFilters({ until })} placeholder="Until" />
      </div>
      {found.error && <Failed error={found.error} retry={found.refetch} />}
      {results && <Results of={results} onClose={() => setResults(undefined)} />}
      <section className="panel" aria-label="Rejected requests">
        {canRetry && rows.length > 0 && (
          <div className="bulk">
            <button type="button" disabled={selected.size === 0} onClick={() => setRetrying(true)}>
              Retry {selected.size > 0 && plural(selected.size, "request")}
            </button>
            <button type="button" className="plain small" onClick={() => setSelected(new Set(selected.size ? [] : rows.filter((row) => !row.truncated && !row.redacted).slice(0, 1000).map((row) => row.id)))}>
              {selected.size ? "Select none" : "Select all that are shown"}
            </button>
          </div>
        )}
        {!found.data ? (
          <Loading of="rejected requests" failed={found.error !== null} />
        ) : rows.length === 0 ? (
          <Empty title={Object.values(filters).some(Boolean) ? "No refused request matches" : "No request was refused"}>
            <p>A request with a wrong signature, without a workflow, or that breaks a schema appears here.</p>
          </Empty>
        ) : (
          <List
            label="Rejected requests"
            rows={rows}
            columns={columns}
            id={(row) => row.id}
            href={(row) => `/rejected/${row.id}`}
            selected={selected}
            onSelect={canRetry ? toggle : undefined}
            onEnd={() => { if (found.hasNextPage && !found.isFetchingNextPage) found.fetchNextPage(); }}
            minWidth={860}
            height={`min(max(320px, calc(100vh - 300px)), ${rows.length * 34 + 36}px)`}
          />
        )}
      </section>
      {retrying && (
        <Action
          title={`Retry ${plural(selected.size, "request")}`}
          verb="Retry"
          act={async (reason, requestId) => {
            const answer = await api.rejected.retryRejected({ ids: [...selected], reason, requestId });
            setResults(answer.results);
            setSelected(new Set());
            await queries.invalidateQueries();
          }}
          onClose={() => setRetrying(false)}
        >
          <p>Each is verified again with today's secrets, without freshness, and accepted if it is right now.</p>
        </Action>
      )}
    </>
  );
}

function Results({ of, onClose }: { of: RetriedRejected[]; onClose: () => void }) {
  const accepted = of.filter((result) => result.eventId);
  const refused = of.filter((result) => !result.eventId);
  return (
    <div className={`note-box ${refused.length ? "warn" : "info"}`} role="status">
      <div className="stack">
        <strong>
          {plural(accepted.length, "request")} accepted, {refused.length} refused again
        </strong>
        <ul>
          {of.slice(0, 10).map((result) => (
            <li key={result.id} className="wrap">
              {result.id}: {result.eventId ? <Link href={eventPath(result.eventId)}>{result.duplicate ? "accepted before" : "accepted"}</Link> : <Text>{`${result.code}: ${result.detail}`}</Text>}
            </li>
          ))}
        </ul>
      </div>
      <button type="button" className="small" onClick={onClose}>
        Close
      </button>
    </div>
  );
}

export function RejectedRequest({ id }: { id: string }) {
  const { may, isLimited } = useSession();
  const [retrying, setRetrying] = useState(false);
  const [results, setResults] = useState<RetriedRejected[]>();
  const found = useQuery({ queryKey: ["rejected-request", id], queryFn: () => api.rejected.getRejected({ id }), retry: false });
  const request = found.data;
  const crumb = <Link href="/rejected">Rejected</Link>;
  if (!request) {
    return (
      <>
        <Head title="Rejected request" crumb={crumb} />
        {found.error ? <Failed error={found.error} retry={found.refetch} /> : <Loading of="the request" />}
      </>
    );
  }
  const advice = ADVICE[request.code];
  const cannot = request.truncated ? "Only its beginning was kept" : request.redacted ? "A secret was removed from it" : "";
  return (
    <>
      <Head title={<span className="inline"><Text>{request.source}</Text><Badge tone="bad">{request.code.replaceAll("_", " ")}</Badge></span>} crumb={crumb}>
        {may("operate") && !isLimited && (
          <button type="button" className="primary" disabled={!!cannot} title={cannot ? `${cannot}: it cannot be retried` : undefined} onClick={() => setRetrying(true)}>
            Retry…
          </button>
        )}
      </Head>
      {results && <Results of={results} onClose={() => setResults(undefined)} />}
      <div className="grid">
        <Panel title="Why it was refused" className="six">
          <div className="body">
            <Facts
              of={[
                ["Expected", advice?.expected ?? "a request that the gateway accepts"],
                ["Given", <Text key="g">{request.detail}</Text>],
                ["What to do", advice?.advice ?? "See the detail."],
                ...(cannot ? [["Retry", `${cannot}: it cannot be retried`] as [string, string]] : []),
              ]}
            />
          </div>
        </Panel>
        <Panel title="Request" className="six">
          <div className="body">
            <Facts
              of={[
                ["Received", <Time key="r" at={dateOf(request.receivedAt)} />],
                ["Request", <code key="p" className="wrap"><Text>{`${request.method} ${request.path}`}</Text></code>],
                ["From", <Text key="f">{request.client}</Text>],
                ["Size", bytesText(request.bodySize)],
              ]}
            />
          </div>
        </Panel>
        <Panel title="Headers" className="six">
          <div className="body">
            {request.headers.length === 0 ? (
              <span className="dim">None were kept.</span>
            ) : (
              <Facts of={request.headers.map((header, at) => [header.name, <code key={at} className="wrap"><Text>{header.value}</Text></code>])} />
            )}
          </div>
        </Panel>
        <Panel title="Body" className="six">
          <div className="body">
            <Payload bytes={request.body} name="body" />
          </div>
        </Panel>
      </div>
      {retrying && (
        <Action
          title="Retry the request"
          verb="Retry"
          act={async (reason, requestId) => {
            const answer = await api.rejected.retryRejected({ ids: [id], reason, requestId });
            setResults(answer.results);
          }}
          onClose={() => setRetrying(false)}
        >
          <p>It is verified again with today's secrets, without freshness, and accepted if it is right now.</p>
        </Action>
      )}
    </>
  );
}
