// Who is signed in, and what they may do. What a key may not do is not shown.

import { createContext, type FormEvent, useContext, useState } from "react";
import { type Operator, type Scope, signIn } from "./api";
import { Failed } from "./ui/basics";

export const Session = createContext<Operator>({ operator: "", scopes: [], sources: [], workflowPrefixes: [] });

export function useSession() {
  const operator = useContext(Session);
  const may = (scope: Scope) => operator.scopes.includes(scope) || operator.scopes.includes("admin");
  const isLimited = operator.sources.length > 0 || operator.workflowPrefixes.length > 0;
  return { operator, may, isLimited };
}

export function SignIn({ onSignedIn, ended }: { onSignedIn: (operator: Operator) => void; ended: boolean }) {
  const [key, setKey] = useState("");
  const [error, setError] = useState<unknown>();
  const [busy, setBusy] = useState(false);
  const submit = async (event: FormEvent) => {
    event.preventDefault();
    setBusy(true);
    setError(undefined);
    try {
      onSignedIn(await signIn(key));
    } catch (failure) {
      setError(failure);
      setBusy(false);
    }
  };
  return (
    <main className="sign-in">
      <form className="panel" onSubmit={submit}>
        <div className="inline">
          <img src="/icon.svg" width={32} height={32} alt="" />
          <h1>Sign in to Weft</h1>
        </div>
        {ended && !error && (
          <div className="note-box info" role="status">
            <div>The session has ended. Sign in again to continue where you were.</div>
          </div>
        )}
        <label className="field">
          <span>API key</span>
          <input type="password" name="key" autoComplete="current-password" autoFocus required value={key} onChange={(event) => setKey(event.target.value)} placeholder="weft_…" />
          <span className="hint">
            A key with scope <code>read</code>, or the admin token: <code>weft up</code> writes it to <code>client.toml</code> in its data folder.
          </span>
        </label>
        {error !== undefined && <Failed error={error} />}
        <button type="submit" className="primary" disabled={busy || !key.trim()}>
          {busy ? "Signing in…" : "Sign in"}
        </button>
      </form>
    </main>
  );
}
