// One subscription: how it stands, and its definition, which is tested before it is saved.

import { clone, create } from "@bufbuild/protobuf";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useEffect, useState } from "react";
import { api } from "../api";
import { textInput, useDraft } from "../draft";
import { count, dateOf, durationText, textOf } from "../format";
import { HttpFormat, OnExhausted, type Subscription as Entry, SubscriptionSchema } from "../gen/weft/v1/catalog_pb";
import type { SubscriptionView, TestSubscriptionResponse } from "../gen/weft/v1/catalog_service_pb";
import { useLaneCounts } from "../lane-counts";
import { Link, navigate, subscriptionPath, to, useLocation } from "../router";
import { useSession } from "../session";
import { destinationText, FORMATS, kindOf, retryText } from "../subscription";
import { Action } from "../ui/action";
import { Age, Badge, Facts, Failed, Field, Head, Loading, Panel, Text, Time } from "../ui/basics";
import { Editor } from "../ui/editor";
import { Payload } from "../ui/payload";
import { SecretField, Secrets } from "../ui/secrets";
import { Health, PauseButton } from "./subscriptions";
import { ReceiverCondition } from "../gen/weft/v1/status_pb";
import { receiverCondition } from "../words";

export function Subscription({ name }: { name: string }) {
  const { may } = useSession();
  const { search } = useLocation();
  if (search.get("create") && may("admin")) return <Create />;
  return <Existing name={name} />;
}

function Existing({ name }: { name: string }) {
  const { may } = useSession();
  const queries = useQueryClient();
  const [deleting, setDeleting] = useState(false);
  const found = useQuery({ queryKey: ["subscription", name], queryFn: () => api.catalog.getSubscription({ name }), refetchInterval: 3000 });
  const lanes = useLaneCounts().of(name);
  const crumb = <Link href="/subscriptions">Subscriptions</Link>;
  const subscription = found.data?.subscription;
  if (!subscription) {
    return (
      <>
        <Head title={<Text>{name}</Text>} crumb={crumb} />
        {found.error ? <Failed error={found.error} retry={found.refetch} /> : <Loading of="the subscription" />}
      </>
    );
  }
  const view = found.data as SubscriptionView;
  const http = subscription.destination?.kind.case === "http" ? subscription.destination.kind.value : undefined;
  const created = subscription.createdAtMs ? new Date(Number(subscription.createdAtMs)) : undefined;
  return (
    <>
      <Head title={<span className="inline"><Text>{name}</Text><Health view={view} /></span>} crumb={crumb}>
        <PauseButton view={view} />
        {may("admin") && (
          <button type="button" className="danger" onClick={() => setDeleting(true)}>
            Delete…
          </button>
        )}
      </Head>
      {found.error && <Failed error={found.error} retry={found.refetch} />}
      {subscription.paused && (
        <div className="note-box warn" role="status">
          <div className="wrap">
            Paused: <Text>{subscription.pauseReason || "no reason is recorded"}</Text>
          </div>
        </div>
      )}
      {view.receivers.map((receiver) => (
        <div className="note-box bad" role="status" key={receiver.shard}>
          <div className="wrap">
            <strong>{receiver.state === ReceiverCondition.AWAY ? "The receiver fails for every event; the circuit is open" : receiverCondition.word(receiver.state)}</strong> for <Age at={dateOf(receiver.since)} />: <Text>{receiver.reason}</Text>. Next probe <Time at={dateOf(receiver.nextAttemptAt)} />.
          </div>
        </div>
      ))}
      <div className="tiles">
        <Tile label="Retrying lanes" value={lanes.waiting} href={to("/stuck", { subscription: name, state: "waiting" })} tone="warn" />
        <Tile label="Blocked lanes" value={lanes.blocked} href={to("/stuck", { subscription: name, state: "blocked" })} tone="bad" />
        <Tile label="Open dead letters" value={lanes.deadLetters} href={to("/dead-letters", { subscription: name })} tone="bad" />
      </div>
      <div className="grid top">
        <div className="six stack wide-gap">
          <Panel title="Definition">
            <div className="body">
              <Facts
                of={[
                  ["Destination", <Text key="d">{destinationText(subscription)}</Text>],
                  ["Types", <code key="t"><Text>{subscription.types.join(", ")}</Text></code>],
                  ["Sources", subscription.sources.length ? <Text key="s">{subscription.sources.join(", ")}</Text> : "all"],
                  ["Filter", subscription.filter ? <code key="f"><Text>{subscription.filter}</Text></code> : "none"],
                  ["Transform", subscription.transform ? <code key="x"><Text>{subscription.transform}</Text></code> : "none"],
                  ["Time-out", subscription.timeoutMs ? durationText(Number(subscription.timeoutMs)) : "the default"],
                  ["Concurrency", subscription.concurrency ? count(subscription.concurrency) : "the default"],
                  ["Retry", retryText(subscription.retry)],
                  ["When exhausted", subscription.onExhausted === OnExhausted.BLOCK ? "the lane blocks" : "dead letter"],
                  ["Order", subscription.ordered === false ? "none" : "by workflow"],
                  ["Batch", subscription.batch ? `up to ${subscription.batch.maxEvents} events` : "one event an attempt"],
                  ["Created", <Time key="c" at={created} />],
                ]}
              />
            </div>
          </Panel>
          {http && http.secrets.length > 0 && (
            <Secrets
              of={name}
              count={http.secrets.length}
              canMake
              hint="whsec_ and base64, or a private key whsk_…"
              other="the receiver"
              may={may("admin")}
              save={async (secretsChange, reason, requestId) => {
                await api.catalog.updateSubscription({ subscription, revision: view.revision, secretsChange, reason, requestId });
                await queries.invalidateQueries();
              }}
            />
          )}
        </div>
        {may("admin") && <Edit view={view} />}
      </div>
      {deleting && (
        <Action
          title={`Delete ${name}`}
          verb="Delete"
          danger
          typed={name}
          act={async (reason, requestId) => {
            await api.catalog.deleteSubscription({ name, revision: view.revision, reason, requestId });
            navigate("/subscriptions");
          }}
          onClose={() => setDeleting(false)}
        >
          <p>What is pending for it is discarded. Its dead letters stay.</p>
        </Action>
      )}
    </>
  );
}

function Tile({ label, value, href, tone }: { label: string; value?: number; href: string; tone: string }) {
  return (
    <Link className={`tile ${value ? tone : ""}`} href={href}>
      <div className="label">{label}</div>
      <div className="figure">{value === undefined ? "…" : count(value)}</div>
    </Link>
  );
}

const list = (text: string) => text.split(/[\s,]+/).filter(Boolean);

interface Draft {
  types: string;
  sources: string;
  filter: string;
  transform: string;
  timeout: string;
  concurrency: string;
  url: string;
  secret: string;
  format: HttpFormat;
  block: boolean;
}

function draftOf(subscription: Entry): Draft {
  const http = subscription.destination?.kind.case === "http" ? subscription.destination.kind.value : undefined;
  return {
    types: subscription.types.join(" "),
    sources: subscription.sources.join(" "),
    filter: subscription.filter,
    transform: subscription.transform,
    timeout: subscription.timeoutMs ? String(Number(subscription.timeoutMs) / 1000) : "",
    concurrency: subscription.concurrency ? String(subscription.concurrency) : "",
    url: http?.url ?? "",
    secret: "",
    format: http?.format || HttpFormat.ENVELOPE,
    block: subscription.onExhausted === OnExhausted.BLOCK,
  };
}

/** The stored definition with what was entered. Secrets that are empty are kept by the admin. */
function apply(subscription: Entry, draft: Draft): Entry {
  const next = clone(SubscriptionSchema, subscription);
  next.types = list(draft.types);
  next.sources = list(draft.sources);
  next.filter = draft.filter.trim();
  next.transform = draft.transform.trim();
  next.timeoutMs = BigInt(Math.round(Number(draft.timeout || 0) * 1000));
  next.concurrency = Math.round(Number(draft.concurrency || 0));
  next.onExhausted = draft.block ? OnExhausted.BLOCK : OnExhausted.DEAD_LETTER;
  if (next.destination?.kind.case === "http") {
    const http = next.destination.kind.value;
    http.url = draft.url.trim();
    http.format = draft.format;
    // The stored ones of an existing subscription are rotated on their own.
    if (draft.secret.trim()) http.secrets = [draft.secret.trim()];
  }
  return next;
}

function Fields({ draft, set, http, create: creating }: { draft: Draft; set: (changes: Partial<Draft>) => void; http: boolean; create?: boolean }) {
  const text = textInput(draft, set);
  return (
    <div className="form">
      {http && (
        <Field label="URL" wide>
          <input type="url" required {...text("url")} placeholder="https://billing.example/hooks" />
        </Field>
      )}
      <Field label="Types" hint="Patterns; * is any run of characters">
        <input {...text("types")} placeholder="order.* refund.*" />
      </Field>
      <Field label="Sources">
        <input {...text("sources")} placeholder="all" />
      </Field>
      <Field label="Filter" wide hint="A CEL expression over event and data; empty: all that match">
        <textarea rows={2} {...text("filter")} placeholder="data.total > 100 && event.source == 'shop'" />
      </Field>
      <Field label="Transform" wide hint="A CEL expression whose value is sent as data; empty: as it came">
        <textarea rows={2} {...text("transform")} placeholder="{'id': data.orderId, 'cents': data.total * 100}" />
      </Field>
      <Field label="Time-out, in seconds">
        <input type="number" min="0" step="any" {...text("timeout")} placeholder="the default" />
      </Field>
      <Field label="Attempts at a time">
        <input type="number" min="0" step="1" {...text("concurrency")} placeholder="the default" />
      </Field>
      {http && (
        <>
          <Field label="Format">
            <select value={draft.format} onChange={(event) => set({ format: Number(event.target.value) })}>
              {FORMATS.map(([value, title]) => (
                <option key={value} value={value}>
                  {title}
                </option>
              ))}
            </select>
          </Field>
          {creating && <SecretField label="Signing secret" value={draft.secret} onChange={(secret) => set({ secret })} canMake hint="whsec_ and base64: the receiver verifies with it" />}
        </>
      )}
      <label className="check wide">
        <input type="checkbox" checked={draft.block} onChange={(event) => set({ block: event.target.checked })} />
        When the attempts are used up, block the lane instead of making a dead letter
      </label>
    </div>
  );
}

function Edit({ view }: { view: SubscriptionView }) {
  const subscription = view.subscription as Entry;
  const form = useDraft(draftOf(subscription));
  const { draft, set } = form;
  const next = apply(subscription, draft);
  return (
    <Editor
      name={subscription.name}
      className="six"
      draft={form}
      save={(reason, requestId) => api.catalog.updateSubscription({ subscription: next, revision: view.revision, reason, requestId })}
      note="It counts for events from now on, within a second."
    >
      <Fields draft={draft} set={set} http={kindOf(subscription.destination) === "http"} />
      <Test draft={next} />
    </Editor>
  );
}

function Create() {
  const [name, setName] = useState("");
  const [kind, setKind] = useState<"http" | "grpc">("http");
  const [from, setFrom] = useState<"now" | "beginning">("now");
  const [saving, setSaving] = useState(false);
  const empty = create(SubscriptionSchema, { types: ["*"], destination: { kind: { case: "http", value: { format: HttpFormat.ENVELOPE } } } });
  const [draft, setDraft] = useState(() => draftOf(empty));
  const set = (changes: Partial<Draft>) => setDraft((now) => ({ ...now, ...changes }));
  const base = clone(SubscriptionSchema, empty);
  base.name = name.trim();
  if (kind === "grpc") base.destination = create(SubscriptionSchema, { destination: { kind: { case: "grpc", value: { url: draft.url } } } }).destination;
  const next = apply(base, draft);
  return (
    <>
      <Head title="New subscription" crumb={<Link href="/subscriptions">Subscriptions</Link>} sub="Destinations in NATS and PostgreSQL, client certificates and rates are set with weft.toml and weft apply." />
      <Panel title="Definition" className="form-page">
        <form
          className="body stack"
          onSubmit={(event) => {
            event.preventDefault();
            setSaving(true);
          }}
        >
          <div className="form">
            <Field label="Name">
              <input required pattern="[a-z0-9\-]{1,40}" title="a to z, digits and hyphens" value={name} onChange={(event) => setName(event.target.value)} autoFocus />
            </Field>
            <Field label="Destination">
              <select value={kind} onChange={(event) => setKind(event.target.value as "http" | "grpc")}>
                <option value="http">HTTP</option>
                <option value="grpc">gRPC</option>
              </select>
            </Field>
            <Field label="Begins">
              <select value={from} onChange={(event) => setFrom(event.target.value as "now" | "beginning")}>
                <option value="now">now: events from its creation on</option>
                <option value="beginning">with the oldest event that is kept</option>
              </select>
            </Field>
            {kind === "grpc" && (
              <Field label="URL">
                <input type="url" required value={draft.url} onChange={(event) => set({ url: event.target.value })} placeholder="https://svc:443" />
              </Field>
            )}
          </div>
          <Fields draft={draft} set={set} http={kind === "http"} create />
          {name && draft.url && <Test draft={next} />}
          <div className="actions">
            <button type="submit" className="primary">
              Create…
            </button>
          </div>
        </form>
      </Panel>
      {saving && (
        <Action
          title={`Create ${next.name}`}
          verb="Create"
          act={async (reason, requestId) => {
            await api.catalog.createSubscription({ subscription: next, start: { from: { case: from, value: true } }, reason, requestId });
            navigate(subscriptionPath(next.name));
          }}
          onClose={() => setSaving(false)}
        />
      )}
    </>
  );
}

const EXAMPLE = JSON.stringify({ type: "order.paid", source: "shop", workflowId: "order-1", data: { orderId: "order-1", total: 120 } }, null, 2);

/** What the definition would do with an event: as it is typed, without saving or sending. */
function Test({ draft }: { draft: Entry }) {
  const [eventId, setEventId] = useState("");
  const [text, setText] = useState(EXAMPLE);
  const [state, setState] = useState<{ answer?: TestSubscriptionResponse; error?: unknown }>({});
  const { types, sources, filter, transform } = draft;
  const key = JSON.stringify([types, sources, filter, transform, eventId.trim(), text, destinationText(draft)]);
  // biome-ignore lint: the key holds what counts
  useEffect(() => {
    const abort = new AbortController();
    const timer = setTimeout(async () => {
      try {
        const event = eventId.trim() ? undefined : new TextEncoder().encode(text);
        const answer = await api.catalog.testSubscription({ name: draft.name, draft, eventId: eventId.trim(), event }, { signal: abort.signal });
        setState({ answer });
      } catch (error) {
        if (!abort.signal.aborted) setState((before) => ({ ...before, error }));
      }
    }, 300);
    return () => {
      clearTimeout(timer);
      abort.abort();
    };
  }, [key]);
  const { answer, error } = state;
  const planned = answer?.planned;
  return (
    <fieldset className="panel stack" style={{ padding: 14 }} data-testid="test">
      <legend>
        <strong>Test</strong>
      </legend>
      <Field label="With the stored event">
        <input value={eventId} onChange={(event) => setEventId(event.target.value)} placeholder="an event id; empty: the event below" spellCheck={false} />
      </Field>
      {!eventId.trim() && (
        <Field label="With this event">
          <textarea rows={6} value={text} onChange={(event) => setText(event.target.value)} spellCheck={false} />
        </Field>
      )}
      <div aria-live="polite" className="stack">
        {error !== undefined && <Failed error={error} />}
        {error === undefined && answer && (
          <>
            <div className="inline">
              {answer.filterError ? <Badge tone="bad">the filter fails</Badge> : answer.matched ? <Badge tone="good">taken</Badge> : <Badge>not taken</Badge>}
              <span className="wrap">
                <Text>{answer.filterError || answer.mismatch || "the subscription takes this event"}</Text>
              </span>
            </div>
            {answer.matched && planned?.transformError && (
              <div className="note-box bad">
                <div className="wrap">
                  The transform fails: <Text>{planned.transformError}</Text>
                </div>
              </div>
            )}
            {planned?.refused && (
              <div className="note-box bad">
                <div className="wrap">
                  The address may not be called: <Text>{planned.refused}</Text>
                </div>
              </div>
            )}
            {answer.matched && planned?.request && (
              <details>
                <summary>What would be sent</summary>
                <pre className="block wrap" tabIndex={0}>
                  <Text lines>{`${planned.request.method} ${planned.request.target}\n${planned.request.headers.map((header) => `${header.name}: ${header.value}`).join("\n")}\n\n${textOf(planned.request.body) ?? ""}`}</Text>
                </pre>
              </details>
            )}
            {answer.matched && planned && !planned.request && planned.data.length > 0 && <Payload bytes={planned.data} name="data" />}
          </>
        )}
      </div>
    </fieldset>
  );
}
