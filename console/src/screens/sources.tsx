// Senders: how their requests are verified, and what their side must be set to.

import { useQuery } from "@tanstack/react-query";
import { api } from "../api";
import { count } from "../format";
import { SchemaMode } from "../gen/weft/v1/catalog_pb";
import type { SourceView } from "../gen/weft/v1/catalog_service_pb";
import { Link, sourcePath, to, useFilters } from "../router";
import { useSession } from "../session";
import { deliveryIdText, kindOf, ruleText, schemeOf, secretCount } from "../source";
import { Badge, Empty, Failed, FilterInput, Head, Loading, Text } from "../ui/basics";

export function useSources() {
  const { isLimited } = useSession();
  return useQuery({
    enabled: !isLimited,
    queryKey: ["sources"],
    queryFn: async ({ signal }) => {
      const all: SourceView[] = [];
      let pageToken = "";
      do {
        const page = await api.catalog.listSources({ pageSize: 1000, pageToken }, { signal });
        all.push(...page.sources);
        pageToken = page.nextPageToken;
      } while (pageToken);
      return all;
    },
    refetchInterval: 10_000,
  });
}

export function Sources() {
  const { may } = useSession();
  const [filters, setFilters] = useFilters(["name"] as const);
  const found = useSources();
  const shown = found.data?.filter((view) => view.source?.name.includes(filters.name)) ?? [];
  return (
    <>
      <Head title="Sources" sub="Who sends, and how their requests are verified.">
        {may("admin") && (
          <Link className="button primary" href="/sources/new?create=1">
            New source
          </Link>
        )}
      </Head>
      <div className="filters">
        <FilterInput label="Name" value={filters.name} onChange={(name) => setFilters({ name })} className="grow" />
      </div>
      {found.error && <Failed error={found.error} retry={found.refetch} />}
      <section className="panel" aria-label="Sources">
        {!found.data ? (
          <Loading of="sources" failed={found.error !== null} />
        ) : shown.length === 0 ? (
          <Empty title={filters.name ? "No source has that in its name" : "No source yet"}>
            <p>A source is a sender of webhooks: how its requests are signed, and where they name workflow and type.</p>
          </Empty>
        ) : (
          <div className="scroll" tabIndex={0} role="group" aria-label="Sources">
            <table>
              <thead>
                <tr>
                  <th>Name</th>
                  <th>Verified by</th>
                  <th className="num">Secrets</th>
                  <th>Workflow</th>
                  <th>Type</th>
                  <th>Delivery id</th>
                  <th>Schemas</th>
                </tr>
              </thead>
              <tbody>
                {shown.map(({ source }) =>
                  source ? (
                    <tr key={source.name}>
                      <td>
                        <Link href={sourcePath(source.name)}>
                          <Text>{source.name}</Text>
                        </Link>
                      </td>
                      <td>{schemeOf(source) === "none" ? <Badge tone="warn">unsigned</Badge> : kindOf(schemeOf(source)).title}</td>
                      <td className="num">{secretCount(source) ?? "–"}</td>
                      <td>
                        <code>
                          <Text>{ruleText(source.workflow) || "the path"}</Text>
                        </code>
                      </td>
                      <td>
                        <code>
                          <Text>{ruleText(source.type) || "the default"}</Text>
                        </code>
                      </td>
                      <td>
                        <Text>{deliveryIdText(source)}</Text>
                      </td>
                      <td>{source.schemas.length ? <Link href={to("/schemas", { source: source.name })}>{count(source.schemas.length)}</Link> : <span className="dim">none</span>}</td>
                    </tr>
                  ) : null,
                )}
              </tbody>
            </table>
          </div>
        )}
      </section>
    </>
  );
}

export const MODES: Record<number, string> = { [SchemaMode.WARN]: "warn", [SchemaMode.REJECT]: "reject", [SchemaMode.QUARANTINE]: "quarantine" };
