// Senders: how their requests are verified, and what their side must be set to.

import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { api } from "../api";
import { count, dateOf, durationText, plural } from "../format";
import { BodyKind, OnIdReuse, SchemaMode, type Rule, type Source as Entry } from "../gen/weft/v1/catalog_pb";
import type { SourceView } from "../gen/weft/v1/catalog_service_pb";
import { Link, navigate, to, useFilters } from "../router";
import { useSession } from "../session";
import { Action } from "../ui/action";
import { Badge, Copy, Empty, Facts, Failed, FilterInput, Head, Loading, Panel, Text, Time } from "../ui/basics";

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

const SCHEMES: Record<string, string> = { standard: "Standard Webhooks", github: "GitHub", hmac: "HMAC", none: "none", stripe: "Stripe", slack: "Slack", shopify: "Shopify", apiKey: "API key" };

export const schemeOf = (source: Entry) => source.verification?.scheme.case ?? "none";

function ruleText(rule?: Rule): string {
  switch (rule?.from.case) {
    case "pointer":
      return `pointer ${rule.from.value || "(whole body)"}`;
    case "header":
      return `header ${rule.from.value}`;
    case "fixed":
      return `always ${rule.from.value}`;
    default:
      return "";
  }
}

function deliveryIdText(source: Entry): string {
  const from = source.deliveryId?.from;
  if (from?.case === "header" || from?.case === "pointer") return `${from.case} ${from.value}`;
  if (from?.case === "digest") return "the digest of the body";
  if (from?.case === "none") return "none: each request is a new event";
  return "the scheme's";
}

function secretCount(source: Entry): number | undefined {
  const value = source.verification?.scheme.value;
  return value && "secrets" in value ? value.secrets.length : undefined;
}

export function Sources() {
  const [filters, setFilters] = useFilters(["name"] as const);
  const found = useSources();
  const shown = found.data?.filter((view) => view.source?.name.includes(filters.name)) ?? [];
  return (
    <>
      <Head title="Sources" sub="Who sends, and how their requests are verified. Sources are made and changed with weft.toml and weft apply." />
      <div className="filters">
        <FilterInput label="Name" value={filters.name} onChange={(name) => setFilters({ name })} className="grow" />
      </div>
      {found.error && <Failed error={found.error} retry={found.refetch} />}
      <section className="panel" aria-label="Sources">
        {!found.data && !found.error ? (
          <Loading of="sources" />
        ) : shown.length === 0 ? (
          <Empty title={filters.name ? "No source has that in its name" : "No source yet"}>
            <p>
              A source is a sender of webhooks. Add one to <code>weft.toml</code> and run <code>weft apply -f weft.toml</code>.
            </p>
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
                        <Link href={`/sources/${source.name}`}>
                          <Text>{source.name}</Text>
                        </Link>
                      </td>
                      <td>{schemeOf(source) === "none" ? <Badge tone="warn">unsigned</Badge> : SCHEMES[schemeOf(source)]}</td>
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

const GATEWAY = "weft.gateway";

/** What the sender's side must be set to. */
function settings(source: Entry, gateway: string): [string, string][] {
  const url = `${gateway.replace(/\/+$/, "")}/api/v1/webhooks/${source.name}${source.workflow ? "" : "/{workflowId}"}`;
  const content: [string, string] = ["Content type", source.body === BodyKind.ANY ? "any" : "application/json"];
  switch (schemeOf(source)) {
    case "github":
      return [["Payload URL", url], content, ["Secret", "the source's secret"], ["SSL verification", "enabled"], ["Events", "those that you want; ping is accepted as well"]];
    case "stripe":
      return [["Endpoint URL", url], content, ["Signing secret", "Stripe shows it (whsec_…); it is the source's secret"], ["API version", "your account's"], ["Events", "those that you want"]];
    case "slack":
      return [["Request URL", url], content, ["Signing secret", "Slack shows it under Basic Information; it is the source's secret"], ["Event subscriptions", "on"], ["Bot events", "those that you want"]];
    case "shopify":
      return [["Delivery URL", url], ["Format", "JSON"], ["Client secret", "Shopify shows it; it is the source's secret"], ["API version", "your app's"], ["Topics", "those that you want"]];
    case "hmac": {
      const hmac = source.verification?.scheme.case === "hmac" ? source.verification.scheme.value : undefined;
      return [["URL", url], content, ["Header", hmac?.header ?? ""], ["Signature", `HMAC-SHA256 over ${hmac?.template || "{body}"}${hmac?.prefix ? `, after ${hmac.prefix}` : ""}`], ["Secret", "the source's secret"]];
    }
    case "apiKey":
      return [["URL", url], ["Method", "POST"], content, ["Header", "x-api-key, or Authorization: Bearer"], ["Key", "an API key with scope ingest"]];
    case "none":
      return [["URL", url], ["Method", "POST"], content, ["Signature", "none: anyone who reaches the gateway can send"], ["Secret", "none"]];
    default:
      return [["URL", url], ["Method", "POST"], content, ["Headers", "webhook-id, webhook-timestamp, webhook-signature"], ["Secret", "the source's secret (whsec_…)"]];
  }
}

export function Source({ name }: { name: string }) {
  const { may } = useSession();
  const [deleting, setDeleting] = useState(false);
  const [gateway, setGateway] = useState(() => localStorage.getItem(GATEWAY) ?? `${location.protocol}//${location.hostname}:8080`);
  const found = useQuery({ queryKey: ["source", name], queryFn: () => api.catalog.getSource({ name }), refetchInterval: 10_000, retry: false });
  const first = useQuery({
    queryKey: ["source-first", name],
    queryFn: () => api.events.eventsSince({ filter: { source: name }, limit: 1 }),
    refetchInterval: ({ state }) => (state.data?.events.length ? false : 2000),
  });
  const crumb = <Link href="/sources">Sources</Link>;
  const source = found.data?.source;
  if (!source) {
    return (
      <>
        <Head title={<Text>{name}</Text>} crumb={crumb} />
        {found.error ? <Failed error={found.error} retry={found.refetch} /> : <Loading of="the source" />}
      </>
    );
  }
  const value = source.verification?.scheme.value;
  const tolerance = value && "toleranceMs" in value ? value.toleranceMs : undefined;
  const oldest = first.data?.events[0];
  return (
    <>
      <Head title={<Text>{name}</Text>} crumb={crumb}>
        <Link className="button" href={to("/stream", { q: `source:${name}` })}>
          Follow live
        </Link>
        <Link className="button" href={to("/rejected", { source: name })}>
          Rejected
        </Link>
        {may("admin") && (
          <button type="button" className="danger" onClick={() => setDeleting(true)}>
            Delete…
          </button>
        )}
      </Head>
      <div className={`note-box ${oldest ? "" : "info"}`} role="status">
        <div>
          {oldest ? (
            <>
              The oldest event that is kept came <Time at={dateOf(oldest.receivedAt)} />.
            </>
          ) : (
            "Waiting for the first request…"
          )}
        </div>
      </div>
      <div className="grid">
        <Panel title="At the sender" className="six">
          <div className="body stack">
            <label className="field">
              <span>Address of your gateway</span>
              <input
                type="url"
                value={gateway}
                onChange={(event) => {
                  setGateway(event.target.value);
                  localStorage.setItem(GATEWAY, event.target.value);
                }}
              />
            </label>
            <Facts
              of={settings(source, gateway).map(([label, text]) => [
                label,
                <span className="copyable" key={label}>
                  <code>{text}</code>
                  {label.includes("URL") && <Copy text={text} name={`the ${label}`} />}
                </span>,
              ])}
            />
          </div>
        </Panel>
        <Panel title="Definition" className="six">
          <div className="body">
            <Facts
              of={[
                ["Verified by", SCHEMES[schemeOf(source)] ?? schemeOf(source)],
                ["Secrets", secretCount(source) === undefined ? "none" : plural(secretCount(source) ?? 0, "secret")],
                ...(tolerance !== undefined ? [["Tolerance", durationText(Number(tolerance))] as [string, string]] : []),
                ["Workflow", <Text key="w">{ruleText(source.workflow) || "from the path"}</Text>],
                ["Type", <Text key="t">{ruleText(source.type) || "the default of the scheme"}</Text>],
                ["Delivery id", <Text key="d">{deliveryIdText(source)}</Text>],
                ["Data", <Text key="p">{source.dataPointer || "the whole body"}</Text>],
                ["Body", source.body === BodyKind.ANY ? "any" : "JSON"],
                ["Id with another body", source.onIdReuse === OnIdReuse.RECEIPT ? "answered with the first receipt" : source.onIdReuse === OnIdReuse.CONFLICT ? "409" : "the default of the scheme"],
                ["Kept headers", <Text key="k">{source.keepHeaders.join(", ") || "none"}</Text>],
                ["Schemas", source.schemas.length ? <Link key="s" href={to("/schemas", { source: name })}>{plural(source.schemas.length, "rule")}</Link> : "none"],
              ]}
            />
          </div>
        </Panel>
      </div>
      {deleting && (
        <Action
          title={`Delete ${name}`}
          verb="Delete"
          danger
          act={async (reason, requestId) => {
            await api.catalog.deleteSource({ name, revision: found.data?.revision ?? 0n, reason, requestId });
            navigate("/sources");
          }}
          onClose={() => setDeleting(false)}
        >
          <p>Its requests are answered 404 from then on. Its events stay.</p>
        </Action>
      )}
    </>
  );
}

export const MODES: Record<number, string> = { [SchemaMode.WARN]: "warn", [SchemaMode.REJECT]: "reject", [SchemaMode.QUARANTINE]: "quarantine" };
