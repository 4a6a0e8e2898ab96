// Receivers: whether they take what they are sent, and how much waits for them.

import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { api } from "../api";
import { count } from "../format";
import type { SubscriptionView } from "../gen/weft/v1/catalog_service_pb";
import { useLaneCounts } from "../lane-counts";
import { Link, subscriptionPath, to, useFilters } from "../router";
import { useSession } from "../session";
import { Action } from "../ui/action";
import { Age, Badge, Cut, Empty, Failed, FilterInput, Head, Loading, Text } from "../ui/basics";
import { dateOf } from "../format";
import { useQueryClient } from "@tanstack/react-query";
import { destinationText } from "../subscription";
import { ReceiverCondition } from "../gen/weft/v1/status_pb";
import { receiverCondition } from "../words";

export function useSubscriptions() {
  const { isLimited } = useSession();
  return useQuery({
    enabled: !isLimited,
    queryKey: ["subscriptions"],
    queryFn: async ({ signal }) => {
      const all: SubscriptionView[] = [];
      let pageToken = "";
      let orphans: Awaited<ReturnType<typeof api.catalog.listSubscriptions>>["orphans"] = [];
      do {
        const page = await api.catalog.listSubscriptions({ pageSize: 1000, pageToken }, { signal });
        if (!pageToken) orphans = page.orphans;
        all.push(...page.subscriptions);
        pageToken = page.nextPageToken;
      } while (pageToken);
      return { all, orphans };
    },
    refetchInterval: 3000,
  });
}

/** The state of a receiver, in a word, with the reason. */
export function Health({ view }: { view: SubscriptionView }) {
  const subscription = view.subscription;
  if (subscription?.paused) return <Badge tone="warn" title={subscription.pauseReason}>paused</Badge>;
  const receiver = view.receivers[0];
  if (!receiver) return <Badge tone="good">delivering</Badge>;
  return (
    <Badge tone={receiver.state === ReceiverCondition.AWAY ? "bad" : "warn"} title={receiver.reason}>
      {receiver.state === ReceiverCondition.AWAY ? "circuit open" : receiverCondition.word(receiver.state)}
    </Badge>
  );
}

export function Subscriptions() {
  const { may } = useSession();
  const [filters, setFilters] = useFilters(["name"] as const);
  const found = useSubscriptions();
  const lanes = useLaneCounts();
  const shown = found.data?.all.filter((view) => view.subscription?.name.includes(filters.name)) ?? [];
  return (
    <>
      <Head title="Subscriptions" sub="Who receives which events, and how it stands.">
        {may("admin") && (
          <Link className="button primary" href="/subscriptions/new?create=1">
            New subscription
          </Link>
        )}
      </Head>
      <div className="filters">
        <FilterInput label="Name" value={filters.name} onChange={(name) => setFilters({ name })} className="grow" />
      </div>
      {found.error && <Failed error={found.error} retry={found.refetch} />}
      {(found.data?.orphans.length ?? 0) > 0 && (
        <div className="note-box warn" role="status">
          <div className="wrap">
            <strong>Missing from the catalog, though nobody has deleted them: </strong>
            {found.data?.orphans.map((orphan) => (
              <Text key={orphan.uid}>{`${orphan.name || orphan.uid} (${orphan.lanes} lanes) `}</Text>
            ))}
            Their backlog is kept. Use <code>weft subscription adopt</code> or <code>weft subscription discard</code>.
          </div>
        </div>
      )}
      <section className="panel" aria-label="Subscriptions">
        {!found.data ? (
          <Loading of="subscriptions" failed={found.error !== null} />
        ) : shown.length === 0 ? (
          <Empty title={filters.name ? "No subscription has that in its name" : "No subscription yet"}>
            <p>A subscription sends the events that match it to a receiver: an HTTP endpoint, a gRPC service, a NATS subject, or PostgreSQL.</p>
          </Empty>
        ) : (
          <div className="scroll" tabIndex={0} role="group" aria-label="Subscriptions">
            <table>
              <thead>
                <tr>
                  <th>Name</th>
                  <th>Health</th>
                  <th className="num">Retrying</th>
                  <th className="num">Blocked</th>
                  <th className="num">Dead letters</th>
                  <th>Takes</th>
                  <th>Destination</th>
                  <th>Since</th>
                </tr>
              </thead>
              <tbody>
                {shown.map((view) => {
                  const subscription = view.subscription;
                  if (!subscription) return null;
                  const own = lanes.of(subscription.name);
                  return (
                    <tr key={subscription.name}>
                      <td>
                        <Link href={subscriptionPath(subscription.name)}>
                          <Text>{subscription.name}</Text>
                        </Link>
                      </td>
                      <td>
                        <Health view={view} />
                      </td>
                      <td className="num">
                        <Figure value={own.waiting} href={to("/stuck", { subscription: subscription.name, state: "waiting" })} tone="warn" />
                      </td>
                      <td className="num">
                        <Figure value={own.blocked} href={to("/stuck", { subscription: subscription.name, state: "blocked" })} tone="bad" />
                      </td>
                      <td className="num">
                        <Figure value={own.deadLetters} href={to("/dead-letters", { subscription: subscription.name })} tone="bad" />
                      </td>
                      <td>
                        <Cut>{`${subscription.types.join(", ")}${subscription.sources.length ? ` from ${subscription.sources.join(", ")}` : ""}${subscription.filter ? ` if ${subscription.filter}` : ""}`}</Cut>
                      </td>
                      <td>
                        <Cut mono>{destinationText(subscription)}</Cut>
                      </td>
                      <td>
                        <Age at={dateOf(view.receivers[0]?.since)} />
                      </td>
                    </tr>
                  );
                })}
              </tbody>
            </table>
          </div>
        )}
      </section>
    </>
  );
}

function Figure({ value, href, tone }: { value?: number; href: string; tone: "warn" | "bad" }) {
  if (value === undefined) return <span className="dim">…</span>;
  if (value === 0) return <span className="dim">0</span>;
  return (
    <Link href={href} className={`badge ${tone}`}>
      {count(value)}
    </Link>
  );
}

export function PauseButton({ view }: { view: SubscriptionView }) {
  const { may } = useSession();
  const queries = useQueryClient();
  const [asked, setAsked] = useState(false);
  const subscription = view.subscription;
  if (!may("operate") || !subscription) return null;
  const { name, paused } = subscription;
  return (
    <>
      <button type="button" onClick={() => setAsked(true)}>
        {paused ? "Resume" : "Pause"}
      </button>
      {asked && (
        <Action
          title={`${paused ? "Resume" : "Pause"} ${name}`}
          verb={paused ? "Resume" : "Pause"}
          act={async (reason, requestId) => {
            if (paused) await api.catalog.resumeSubscription({ name, reason, requestId });
            else await api.catalog.pauseSubscription({ name, reason, requestId });
            await queries.invalidateQueries();
          }}
          onClose={() => setAsked(false)}
        >
          <p>{paused ? "Delivery continues where it was paused." : "No event is attempted until it is resumed. Its backlog is kept."}</p>
        </Action>
      )}
    </>
  );
}
