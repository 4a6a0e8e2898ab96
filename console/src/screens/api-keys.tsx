// API keys: a new one is shown once.

import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useRef, useState } from "react";
import { api, requestId } from "../api";
import { dateOf } from "../format";
import { Scope } from "../gen/weft/v1/catalog_pb";
import type { ApiKeyView } from "../gen/weft/v1/catalog_service_pb";
import { useSession } from "../session";
import { Action } from "../ui/action";
import { Age, Badge, Copy, Cut, Dialog, Empty, Failed, Head, Loading, Time } from "../ui/basics";

const SCOPES: [Scope, string, string][] = [
  [Scope.INGEST, "ingest", "send events"],
  [Scope.READ, "read", "read events and their outcomes"],
  [Scope.OPERATE, "operate", "redrive, replay, pause"],
  [Scope.ADMIN, "admin", "everything, with the catalog"],
];

export function Keys() {
  const { may } = useSession();
  const queries = useQueryClient();
  const [creating, setCreating] = useState(false);
  const [revoking, setRevoking] = useState<ApiKeyView>();
  const found = useQuery({
    queryKey: ["api-keys"],
    queryFn: async ({ signal }) => {
      const all: ApiKeyView[] = [];
      let pageToken = "";
      do {
        const page = await api.catalog.listApiKeys({ pageSize: 1000, pageToken }, { signal });
        all.push(...page.keys);
        pageToken = page.nextPageToken;
      } while (pageToken);
      return all;
    },
    refetchInterval: 5000,
  });
  return (
    <>
      <Head title="Keys" sub="Only the digest of a key is stored. A revoked key stops within a second, and so do its sessions here.">
        {may("admin") && (
          <button type="button" className="primary" onClick={() => setCreating(true)}>
            New key
          </button>
        )}
      </Head>
      {found.error && <Failed error={found.error} retry={found.refetch} />}
      <section className="panel" aria-label="Keys">
        {!found.data ? (
          <Loading of="keys" failed={found.error !== null} />
        ) : (found.data ?? []).length === 0 ? (
          <Empty title="No key yet">
            <p>The admin token of the configuration works without one. Give each person and each program a key of their own.</p>
          </Empty>
        ) : (
          <div className="scroll" tabIndex={0} role="group" aria-label="Keys">
            <table>
              <thead>
                <tr>
                  <th>Name</th>
                  <th>Id</th>
                  <th>May</th>
                  <th>Limited to</th>
                  <th>Created</th>
                  <th>Expires</th>
                  <th>Last used</th>
                  {may("admin") && <th />}
                </tr>
              </thead>
              <tbody>
                {found.data?.map((view) => {
                  const key = view.key;
                  if (!key) return null;
                  const expires = key.expiresAtMs ? new Date(Number(key.expiresAtMs)) : undefined;
                  const limits = [...key.sources.map((name) => `source ${name}`), ...key.workflowPrefixes.map((prefix) => `workflows ${prefix}…`)];
                  return (
                    <tr key={key.id}>
                      <td>
                        <Cut>{key.name || "–"}</Cut>
                      </td>
                      <td>
                        <code>{key.id}</code>
                      </td>
                      <td>
                        <span className="inline">
                          {key.scopes.map((scope) => (
                            <Badge key={scope} tone={scope === Scope.ADMIN ? "warn" : ""}>
                              {SCOPES.find(([value]) => value === scope)?.[1] ?? "unknown"}
                            </Badge>
                          ))}
                        </span>
                      </td>
                      <td>{limits.length ? <Cut>{limits.join(", ")}</Cut> : <span className="dim">nothing</span>}</td>
                      <td>
                        <Time at={new Date(Number(key.createdAtMs))} />
                      </td>
                      <td>{expires ? expires.getTime() < Date.now() ? <Badge tone="bad">expired</Badge> : <Time at={expires} /> : <span className="dim">never</span>}</td>
                      <td>{view.lastUsedAt ? <Age at={dateOf(view.lastUsedAt)} /> : <span className="dim">never</span>}</td>
                      {may("admin") && (
                        <td className="right">
                          <button type="button" className="small danger" onClick={() => setRevoking(view)} aria-label={`Revoke ${key.name || key.id}`}>
                            Revoke
                          </button>
                        </td>
                      )}
                    </tr>
                  );
                })}
              </tbody>
            </table>
          </div>
        )}
      </section>
      {creating && <CreateKey onClose={() => { setCreating(false); queries.invalidateQueries({ queryKey: ["api-keys"] }); }} />}
      {revoking?.key && (
        <Action
          title={`Revoke ${revoking.key.name || revoking.key.id}`}
          verb="Revoke"
          danger
          act={async (reason, id) => {
            await api.catalog.deleteApiKey({ id: revoking.key?.id, revision: revoking.revision, reason, requestId: id });
            await queries.invalidateQueries({ queryKey: ["api-keys"] });
          }}
          onClose={() => setRevoking(undefined)}
        >
          <p>Programs and people who use it are refused within a second.</p>
        </Action>
      )}
    </>
  );
}

function CreateKey({ onClose }: { onClose: () => void }) {
  const [name, setName] = useState("");
  const [scopes, setScopes] = useState<ReadonlySet<Scope>>(new Set([Scope.READ]));
  const [sources, setSources] = useState("");
  const [prefixes, setPrefixes] = useState("");
  const [days, setDays] = useState("");
  const [reason, setReason] = useState("");
  const [error, setError] = useState<unknown>();
  const [made, setMade] = useState("");
  const id = useRef(requestId());
  if (made) {
    return (
      <Dialog title="The new key" onClose={onClose}>
        <p>It is shown this once. Keep it in a safe place now.</p>
        <pre className="block wrap" data-testid="new-key">
          {made}
        </pre>
        <div className="buttons">
          <Copy text={made} name="the key" />
          <button type="button" className="primary" onClick={onClose}>
            Done
          </button>
        </div>
      </Dialog>
    );
  }
  const words = (text: string) => text.split(/[\s,]+/).filter(Boolean);
  const submit = async () => {
    setError(undefined);
    try {
      const expiresAt = days ? timestampFromDate(new Date(Date.now() + Number(days) * 86_400_000)) : undefined;
      const { key } = await api.catalog.createApiKey({ name, scopes: [...scopes], sources: words(sources), workflowPrefixes: words(prefixes), expiresAt, reason, requestId: id.current });
      setMade(key);
    } catch (failure) {
      setError(failure);
    }
  };
  return (
    <Dialog title="New key" onClose={onClose}>
      <form className="stack" onSubmit={(event) => { event.preventDefault(); submit(); }}>
        <label className="field">
          <span>Name</span>
          <input required autoFocus value={name} onChange={(event) => setName(event.target.value)} placeholder="who or what uses it" />
        </label>
        <div className="stack" role="group" aria-label="Scopes">
          {SCOPES.map(([scope, title, text]) => (
            <label className="check" key={scope}>
              <input
                type="checkbox"
                checked={scopes.has(scope)}
                onChange={() => {
                  const next = new Set(scopes);
                  if (!next.delete(scope)) next.add(scope);
                  setScopes(next);
                }}
              />
              <span>
                <strong>{title}</strong> <span className="dim">{text}</span>
              </span>
            </label>
          ))}
        </div>
        <div className="form">
          <label className="field">
            <span>Only sources</span>
            <input value={sources} onChange={(event) => setSources(event.target.value)} placeholder="all" />
          </label>
          <label className="field">
            <span>Only workflows that begin with</span>
            <input value={prefixes} onChange={(event) => setPrefixes(event.target.value)} placeholder="all" />
          </label>
          <label className="field">
            <span>Expires after days</span>
            <input type="number" min="1" step="1" value={days} onChange={(event) => setDays(event.target.value)} placeholder="never" />
          </label>
          <label className="field">
            <span>Reason</span>
            <input required value={reason} onChange={(event) => setReason(event.target.value)} placeholder="It is kept in the audit log" />
          </label>
        </div>
        {error !== undefined && <Failed error={error} />}
        <div className="buttons">
          <button type="button" onClick={onClose}>
            Cancel
          </button>
          <button type="submit" className="primary" disabled={scopes.size === 0}>
            Create
          </button>
        </div>
      </form>
    </Dialog>
  );
}
