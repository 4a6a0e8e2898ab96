// Asks before something is changed: what, how many, and why.

import { type ReactNode, useEffect, useRef, useState } from "react";
import { message, requestId } from "../api";
import { Dialog, Failed, Text } from "./basics";

interface Props {
  title: string;
  /** What will happen, in a sentence or two. */
  children?: ReactNode;
  verb: string;
  danger?: boolean;
  /** The number of things, which is asked for before it is done. */
  count?: (signal: AbortSignal) => Promise<string>;
  /** Does it; the same request id on a second try. */
  act: (reason: string, requestId: string) => Promise<unknown>;
  onClose: () => void;
  /** A reason is needed. */
  needsReason?: boolean;
  /** What is entered above is complete. */
  ready?: boolean;
  /** A name that is typed before it is done. */
  typed?: string;
}

export function Action({ title, children, verb, danger, count, act, onClose, needsReason = true, ready = true, typed }: Props) {
  const [name, setName] = useState("");
  const [reason, setReason] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const [counted, setCounted] = useState<string>();
  const [countError, setCountError] = useState<unknown>();
  const id = useRef(requestId());
  const ask = useRef(count);
  useEffect(() => {
    const abort = new AbortController();
    ask.current?.(abort.signal).then(setCounted, (failure) => {
      if (!abort.signal.aborted) setCountError(failure);
    });
    return () => abort.abort();
  }, []);
  const submit = async () => {
    setBusy(true);
    setError(undefined);
    try {
      await act(reason.trim(), id.current);
      onClose();
    } catch (failure) {
      setError(failure);
      setBusy(false);
    }
  };
  return (
    <Dialog title={title} onClose={onClose}>
      <form
        className="stack"
        onSubmit={(event) => {
          event.preventDefault();
          submit();
        }}
      >
        {children && <div className="wrap">{children}</div>}
        {count && (
          <p aria-live="polite" data-testid="count">
            {countError !== undefined ? <Text>{message(countError)}</Text> : <strong>{counted ?? "Counting…"}</strong>}
          </p>
        )}
        {typed !== undefined && (
          <label className="field">
            <span>
              Type <code>{typed}</code> to confirm
            </span>
            <input autoFocus required value={name} onChange={(event) => setName(event.target.value)} autoComplete="off" spellCheck={false} />
          </label>
        )}
        {needsReason && (
          <label className="field">
            <span>Reason</span>
            <input autoFocus={typed === undefined} required value={reason} maxLength={500} onChange={(event) => setReason(event.target.value)} placeholder="It is kept in the audit log" />
          </label>
        )}
        {error !== undefined && <Failed error={error} />}
        <div className="buttons">
          <button type="button" onClick={onClose}>
            Cancel
          </button>
          <button type="submit" className={danger ? "danger" : "primary"} disabled={busy || !ready || (typed !== undefined && name.trim() !== typed) || (needsReason && !reason.trim()) || (!!count && counted === undefined && countError === undefined)}>
            {busy ? "Working…" : verb}
          </button>
        </div>
      </form>
    </Dialog>
  );
}
