// Secrets: made here or entered, shown once, rotated without a gap.

import { useId, useState } from "react";
import { plural } from "../format";
import { newSecret } from "../secret";
import { Action } from "./action";
import { Badge, Copy, Dialog, Panel } from "./basics";

/** A secret that is made here, or entered. */
export function SecretField({ value, onChange, canMake, hint, label = "Secret" }: { value: string; onChange: (value: string, made: boolean) => void; canMake: boolean; hint?: string; label?: string }) {
  const [made, setMade] = useState(false);
  const id = useId();
  return (
    <div className="field wide">
      <label htmlFor={id}>{label}</label>
      <div className="with-button">
        <input
          id={id}
          aria-describedby={`${id}-hint`}
          type={made ? "text" : "password"}
          className="mono"
          required
          value={value}
          autoComplete="new-password"
          spellCheck={false}
          onChange={(event) => {
            setMade(false);
            onChange(event.target.value, false);
          }}
          placeholder={canMake ? "enter it, or make one" : "enter the sender's"}
        />
        {canMake && (
          <button
            type="button"
            onClick={() => {
              setMade(true);
              onChange(newSecret(), true);
            }}
          >
            Make one
          </button>
        )}
      </div>
      <span className="hint" id={`${id}-hint`}>
        {made ? "Made here, of 32 random bytes. It is shown once more when it is saved." : hint}
      </span>
    </div>
  );
}

/** Shows a secret for the only time. */
export function ShownOnce({ secret, onClose, children }: { secret: string; onClose: () => void; children: React.ReactNode }) {
  return (
    <Dialog title="The secret" onClose={onClose}>
      <p>It is shown this once. Give it to the other side now.</p>
      <pre className="block wrap" data-testid="new-secret" tabIndex={0}>
        {secret}
      </pre>
      {children}
      <div className="buttons">
        <Copy text={secret} name="the secret" />
        <button type="button" className="primary" data-first onClick={onClose}>
          Done
        </button>
      </div>
    </Dialog>
  );
}

interface Change {
  secrets?: string[];
  remove?: number[];
}

interface Props {
  of: string;
  count: number;
  canMake: boolean;
  hint?: string;
  /** What the other side is, such as `the sender`. */
  other: string;
  may: boolean;
  save: (change: Change, reason: string, requestId: string) => Promise<unknown>;
}

/** The stored secrets, of which nobody is shown more than their number. */
export function Secrets({ of, count, canMake, hint, other, may, save }: Props) {
  const [adding, setAdding] = useState(false);
  const [{ secret, made }, setSecret] = useState({ secret: "", made: false });
  const [shown, setShown] = useState("");
  const [removing, setRemoving] = useState<number>();
  const title = (place: number) => (count === 1 ? "The secret" : place === 0 ? "Newest" : place === count - 1 ? "Oldest" : `No. ${place + 1}`);
  return (
    <Panel
      title="Secrets"
      tools={
        may && (
          <button type="button" className="small" onClick={() => { setSecret({ secret: "", made: false }); setAdding(true); }}>
            Rotate…
          </button>
        )
      }
    >
      <table>
        <tbody>
          {Array.from({ length: count }, (_, place) => (
            <tr key={place}>
              <td>
                <code>••••••••</code>
              </td>
              <td>{title(place)}</td>
              <td className="right">
                {count > 1 && may && (
                  <button type="button" className="small danger" onClick={() => setRemoving(place)} aria-label={`Remove the secret: ${title(place)}`}>
                    Remove…
                  </button>
                )}
              </td>
            </tr>
          ))}
        </tbody>
      </table>
      {count > 1 && (
        <p className="body dim">
          <Badge tone="warn">rotation</Badge> {plural(count, "secret")} count. Remove the old one once {other} has the new one.
        </p>
      )}
      {adding && (
        <Action
          title={`Rotate the secret of ${of}`}
          verb="Add"
          ready={secret.trim() !== ""}
          act={async (reason, requestId) => {
            await save({ secrets: [secret.trim()] }, reason, requestId);
            if (made) setShown(secret.trim());
          }}
          onClose={() => setAdding(false)}
        >
          <div className="stack">
            <p>The new one counts at once, and the old one until you remove it.</p>
            <SecretField label="New secret" value={secret} onChange={(value, isMade) => setSecret({ secret: value, made: isMade })} canMake={canMake} hint={hint} />
          </div>
        </Action>
      )}
      {shown && !adding && (
        <ShownOnce secret={shown} onClose={() => setShown("")}>
          <p>Then remove the old one here.</p>
        </ShownOnce>
      )}
      {removing !== undefined && (
        <Action
          title={`Remove a secret of ${of}`}
          verb="Remove"
          danger
          act={(reason, requestId) => save({ remove: [removing] }, reason, requestId)}
          onClose={() => setRemoving(undefined)}
        >
          <p>
            {title(removing)} of {plural(count, "secret")}. What is signed with it is refused within a second.
          </p>
        </Action>
      )}
    </Panel>
  );
}
