// One source: what its sender must be set to, whether requests come, its definition and its secrets.

import { create } from "@bufbuild/protobuf";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useRef, useState } from "react";
import { api } from "../api";
import { useDraft } from "../draft";
import { dateOf, durationText, plural } from "../format";
import { BodyKind, OnIdReuse, ReplayGuard, type Source as Entry, SourceSchema } from "../gen/weft/v1/catalog_pb";
import type { SourceView } from "../gen/weft/v1/catalog_service_pb";
import { eventPath, Link, navigate, sourcePath, to, useLocation } from "../router";
import { useSession } from "../session";
import { apply, deliveryIdText, draftOf, kindOf, ruleText, schemeOf, secretCount, settings } from "../source";
import { Action } from "../ui/action";
import { Badge, Copy, Facts, Failed, Field, Head, Loading, Panel, Text, Time } from "../ui/basics";
import { Editor } from "../ui/editor";
import { SampleButton } from "../ui/sample";
import { SecretField, Secrets, ShownOnce } from "../ui/secrets";
import { SourceFields } from "../ui/source-fields";

const GATEWAY = "weft.gateway";

export function Source({ name }: { name: string }) {
  const { may } = useSession();
  const { search } = useLocation();
  if (search.get("create") && may("admin")) return <Create />;
  return <Existing name={name} />;
}

function Existing({ name }: { name: string }) {
  const { may } = useSession();
  const queries = useQueryClient();
  const [deleting, setDeleting] = useState(false);
  const found = useQuery({ queryKey: ["source", name], queryFn: () => api.catalog.getSource({ name }), refetchInterval: 10_000, retry: false });
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
  const view = found.data as SourceView;
  const kind = kindOf(schemeOf(source));
  const secrets = secretCount(source);
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
      {found.error && <Failed error={found.error} retry={found.refetch} />}
      <FirstRequest name={name} />
      <div className="grid top">
        <div className="six stack wide-gap">
          <AtTheSender source={source} />
          {may("admin") && schemeOf(source) !== "apiKey" && (
            <Panel title="Sample">
              <div className="body stack">
                <p className="dim">A request as its sender makes it, of type weft.test: signed with its secret, verified by a gateway, stored and delivered.</p>
                <div className="actions">
                  <SampleButton source={name} />
                </div>
              </div>
            </Panel>
          )}
          {secrets !== undefined && (
            <Secrets
              of={name}
              count={secrets}
              canMake={kind.secret === "either"}
              hint={kind.hint}
              other="the sender"
              may={may("admin")}
              save={async (secretsChange, reason, requestId) => {
                await api.catalog.updateSource({ source, revision: view.revision, secretsChange, reason, requestId });
                await queries.invalidateQueries();
              }}
            />
          )}
        </div>
        <div className="six stack wide-gap">
          <Definition source={source} />
          {may("admin") && <Edit view={view} />}
        </div>
      </div>
      {deleting && (
        <Action
          title={`Delete ${name}`}
          verb="Delete"
          danger
          typed={name}
          act={async (reason, requestId) => {
            await api.catalog.deleteSource({ name, revision: view.revision, reason, requestId });
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

/** Whether anything has come: the oldest event that is kept, or what was refused until now. */
function FirstRequest({ name }: { name: string }) {
  const first = useQuery({
    queryKey: ["source-first", name],
    queryFn: () => api.events.eventsSince({ filter: { source: name }, limit: 1 }),
    refetchInterval: ({ state }) => (state.data?.events.length ? false : 2000),
  });
  const refused = useQuery({
    queryKey: ["source-refused", name],
    queryFn: () => api.rejected.listRejected({ source: name, pageSize: 1 }),
    enabled: first.data?.events.length === 0,
    refetchInterval: 2000,
  });
  const waited = useRef(false);
  const oldest = first.data?.events[0];
  if (first.data && !oldest) waited.current = true;
  if (first.error) return <Failed error={first.error} retry={first.refetch} />;
  if (!first.data) return <div className="note-box" role="status"><div className="dim">Looking for its first request…</div></div>;
  if (!oldest) {
    const newest = refused.data?.rejected[0];
    return (
      <div className={`note-box ${newest ? "bad" : "info"}`} role="status">
        <div className="wrap">
          <strong>Waiting for the first request…</strong>
          {newest && (
            <>
              {" "}
              One came <Time at={dateOf(newest.receivedAt)} /> and was refused: <Text>{newest.detail || newest.code}</Text>.{" "}
              <Link href={`/rejected/${newest.id}`}>See why</Link>
            </>
          )}
        </div>
      </div>
    );
  }
  return (
    <div className={`note-box ${waited.current ? "good" : ""}`} role="status">
      <div className="wrap">
        {waited.current ? (
          <>
            <strong>First request received</strong> <Time at={dateOf(oldest.receivedAt)} />:{" "}
            <Link href={eventPath(oldest.eventId)}>
              <Text>{oldest.type}</Text>
            </Link>{" "}
            of workflow <Text>{oldest.workflowId}</Text>.
          </>
        ) : (
          <>
            The oldest event that is kept came <Time at={dateOf(oldest.receivedAt)} />.
          </>
        )}
      </div>
    </div>
  );
}

function AtTheSender({ source }: { source: Entry }) {
  const [gateway, setGateway] = useState(() => localStorage.getItem(GATEWAY) ?? `${location.protocol}//${location.hostname}:8080`);
  return (
    <Panel title="At the sender">
      <div className="body stack">
        <Field label="Address of your gateway" hint="As the sender reaches it. This browser remembers it.">
          <input
            type="url"
            value={gateway}
            onChange={(event) => {
              setGateway(event.target.value);
              localStorage.setItem(GATEWAY, event.target.value);
            }}
          />
        </Field>
        <Facts
          of={settings(source, gateway).map(([label, text]) => [
            label,
            <span className="copyable" key={label}>
              <code>
                <Text>{text}</Text>
              </code>
              {label.includes("URL") && <Copy text={text} name={`the ${label}`} />}
            </span>,
          ])}
        />
      </div>
    </Panel>
  );
}

const REUSE: Record<number, string> = { [OnIdReuse.RECEIPT]: "answered with the first receipt", [OnIdReuse.CONFLICT]: "refused: 409" };
const GUARD: Record<number, string> = { [ReplayGuard.OFF]: "another event", [ReplayGuard.BODY]: "answered with the first receipt" };

function Definition({ source }: { source: Entry }) {
  const value = source.verification?.scheme.value;
  const tolerance = value && "toleranceMs" in value ? value.toleranceMs : undefined;
  return (
    <Panel title="Definition">
      <div className="body">
        <Facts
          of={[
            ["Verified by", schemeOf(source) === "none" ? <Badge key="v" tone="warn">unsigned</Badge> : kindOf(schemeOf(source)).title],
            ...(tolerance !== undefined ? [["Tolerance", durationText(Number(tolerance))] as [string, string]] : []),
            ["Workflow", <Text key="w">{ruleText(source.workflow) || "from the path"}</Text>],
            ["Type", <Text key="t">{ruleText(source.type) || "where the scheme has it"}</Text>],
            ["Delivery id", <Text key="d">{deliveryIdText(source)}</Text>],
            ["Data", <Text key="p">{source.dataPointer || "the whole body"}</Text>],
            ["Body", source.body === BodyKind.ANY ? "any" : "JSON"],
            ["Id with another body", REUSE[source.onIdReuse] ?? "the scheme's default"],
            ["Body with another id", GUARD[source.replayGuard] ?? "the scheme's default"],
            ["Kept headers", <Text key="k">{source.keepHeaders.join(", ") || "none"}</Text>],
            ["Payloads", source.payloadRetentionMs ? `erased after ${durationText(Number(source.payloadRetentionMs))}` : "kept as long as the event"],
            [
              "Schemas",
              source.schemas.length ? (
                <Link key="s" href={to("/schemas", { source: source.name })}>
                  {plural(source.schemas.length, "rule")}
                </Link>
              ) : (
                "none; they are set with weft.toml"
              ),
            ],
          ]}
        />
      </div>
    </Panel>
  );
}

function Edit({ view }: { view: SourceView }) {
  const source = view.source as Entry;
  const form = useDraft(draftOf(source));
  const { draft, set } = form;
  const [secret, setSecret] = useState("");
  const kind = kindOf(draft.scheme);
  // The secret of one scheme is none of another's.
  const other = draft.scheme !== schemeOf(source) && kind.secret !== undefined;
  return (
    <Editor
      name={source.name}
      draft={form}
      save={(reason, requestId) => api.catalog.updateSource({ source: apply(source, draft, other ? secret : ""), revision: view.revision, reason, requestId })}
      note="It counts for requests from now on, within a second."
    >
      <SourceFields draft={draft} set={set} secret={other && <SecretField value={secret} onChange={setSecret} canMake={kind.secret === "either"} hint={kind.hint} />} />
    </Editor>
  );
}

function Create() {
  const empty = create(SourceSchema, { verification: { scheme: { case: "standard", value: {} } }, body: BodyKind.JSON });
  const [draft, setDraft] = useState(() => ({ ...draftOf(empty), workflowFrom: "pointer" as const, workflow: "" }) as ReturnType<typeof draftOf>);
  const [{ secret, isMade }, setSecret] = useState({ secret: "", isMade: false });
  const [saving, setSaving] = useState(false);
  const [created, setCreated] = useState(false);
  const kind = kindOf(draft.scheme);
  const next = apply(empty, draft, kind.secret ? secret : "");
  return (
    <>
      <Head title="New source" crumb={<Link href="/sources">Sources</Link>} sub="A sender of webhooks. It can be changed later; only its name stays." />
      <Panel title="Definition" className="form-page">
        <form
          className="body stack"
          onSubmit={(event) => {
            event.preventDefault();
            setSaving(true);
          }}
        >
          <div className="form">
            <Field label="Name" hint={<>It is in the address: /api/v1/webhooks/{draft.name || "name"}</>}>
              <input required pattern="[a-z0-9\-]{1,40}" title="a to z, digits and hyphens" value={draft.name} onChange={(event) => setDraft((now) => ({ ...now, name: event.target.value }))} autoFocus spellCheck={false} autoComplete="off" placeholder="shop" />
            </Field>
          </div>
          <SourceFields draft={draft} set={(changes) => setDraft((now) => ({ ...now, ...changes }))} secret={kind.secret && <SecretField value={secret} onChange={(value, made) => setSecret({ secret: value, isMade: made })} canMake={kind.secret === "either"} hint={kind.hint} />} />
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
            await api.catalog.createSource({ source: next, reason, requestId });
            if (kind.secret && isMade) setCreated(true);
            else navigate(sourcePath(next.name));
          }}
          onClose={() => setSaving(false)}
        />
      )}
      {created && !saving && (
        <ShownOnce secret={secret.trim()} onClose={() => navigate(sourcePath(next.name))}>
          <Facts of={settings(next, localStorage.getItem(GATEWAY) ?? `${location.protocol}//${location.hostname}:8080`).map(([label, text]) => [label, <Text key={label}>{text}</Text>])} />
        </ShownOnce>
      )}
    </>
  );
}
