// Schemas of the data of events, by source, and what breaks them.

import { useQuery } from "@tanstack/react-query";
import { api } from "../api";
import { count, pretty } from "../format";
import { Link, to, useFilters } from "../router";
import { Badge, Empty, Failed, FilterInput, Head, Loading, Panel, Text } from "../ui/basics";
import { MODES, useSources } from "./sources";
import { DeadLetterReason, DeadLetterStatus } from "../gen/weft/v1/status_pb";

export function Schemas() {
  const [filters, setFilters] = useFilters(["source"] as const);
  const found = useSources();
  const broken = useQuery({
    queryKey: ["dead-letter-stats", "schema"],
    queryFn: () => api.deadLetters.deadLetterStats({ filter: { reason: DeadLetterReason.SCHEMA_INVALID, statuses: [DeadLetterStatus.OPEN] } }),
    refetchInterval: 5000,
  });
  const rejected = useQuery({
    queryKey: ["rejected", "schema"],
    queryFn: () => api.rejected.listRejected({ code: "schema_invalid", pageSize: 100 }),
    refetchInterval: 5000,
  });
  const shown = found.data?.flatMap(({ source }) => (source && (!filters.source || source.name === filters.source) ? source.schemas.map((rule) => ({ source: source.name, rule })) : [])) ?? [];
  const quarantined = broken.data?.counts.reduce((sum, each) => sum + each.count, 0n) ?? 0n;
  const refused = rejected.data?.rejected.filter((each) => !filters.source || each.source === filters.source).length ?? 0;
  return (
    <>
      <Head title="Schemas" sub="Rules for the data of events. The first rule of a source whose pattern matches the type applies." />
      <div className="filters">
        <FilterInput label="Source" value={filters.source} onChange={(source) => setFilters({ source })} className="grow" list={found.data?.map((view) => view.source?.name ?? "")} />
      </div>
      <div className="tiles">
        <Link className={`tile ${refused ? "warn" : ""}`} href={to("/rejected", { code: "schema_invalid", source: filters.source })}>
          <div className="label">Refused requests that are kept</div>
          <div className="figure">
            {rejected.data ? count(refused) : "…"}
            {rejected.data?.nextPageToken && "+"}
          </div>
          <div className="note">mode reject</div>
        </Link>
        <Link className={`tile ${quarantined ? "warn" : ""}`} href={to("/dead-letters", { reason: "schema_invalid", source: filters.source })}>
          <div className="label">Quarantined deliveries that are open</div>
          <div className="figure">{broken.data ? count(quarantined) : "…"}</div>
          <div className="note">mode quarantine</div>
        </Link>
      </div>
      {found.error && <Failed error={found.error} retry={found.refetch} />}
      {!found.data ? (
        <Loading of="schemas" failed={found.error !== null} />
      ) : shown.length === 0 ? (
        <section className="panel">
          <Empty title="No schema">
            <p>
              A source gets schemas with <code>{'schema = [{ type = "order.*", json_schema = "file:order.json", mode = "warn" }]'}</code> in <code>weft.toml</code>. Begin with the mode warn: it accepts everything, and counts what reject would refuse.
            </p>
          </Empty>
        </section>
      ) : (
        shown.map(({ source, rule }, at) => (
          <Panel
            key={at}
            title={
              <span className="inline">
                <Link href={`/sources/${source}`}>
                  <Text>{source}</Text>
                </Link>
                <code>
                  <Text>{rule.type}</Text>
                </code>
              </span>
            }
            tools={<Badge tone={MODES[rule.mode] === "warn" ? "warn" : "info"}>{MODES[rule.mode] ?? "reject"}</Badge>}
          >
            <div className="body">
              {rule.schema.case === "jsonSchema" ? (
                <details>
                  <summary>JSON Schema</summary>
                  <pre className="block" tabIndex={0}>
                    <Text lines>{pretty(rule.schema.value) ?? rule.schema.value}</Text>
                  </pre>
                </details>
              ) : rule.schema.case === "protobuf" ? (
                <>
                  Protobuf message <code>{rule.schema.value.message}</code>
                </>
              ) : (
                <span className="dim">none</span>
              )}
            </div>
          </Panel>
        ))
      )}
    </>
  );
}
