// The panel that edits an entry of the catalog.

import { useQueryClient } from "@tanstack/react-query";
import { type ReactNode, useState } from "react";
import type { useDraft } from "../draft";
import { Action } from "./action";
import { Badge, Conflict, Panel } from "./basics";

type Props = {
  /** The entry's name. */
  name: string;
  className?: string;
  draft: Pick<ReturnType<typeof useDraft>, "changed" | "conflict" | "keep" | "take">;
  save: (reason: string, requestId: string) => Promise<unknown>;
  /** What saving does. */
  note: string;
  children: ReactNode;
};

export function Editor({ name, className, draft: { changed, conflict, keep, take }, save, note, children }: Props) {
  const queries = useQueryClient();
  const [saving, setSaving] = useState(false);
  return (
    <Panel title="Edit" className={className} tools={changed && <Badge tone="warn">not saved</Badge>}>
      <form
        className="body stack"
        onSubmit={(event) => {
          event.preventDefault();
          setSaving(true);
        }}
      >
        {conflict && <Conflict keep={keep} take={take} />}
        {children}
        <div className="actions">
          <button type="submit" className="primary" disabled={!changed || conflict}>
            Save…
          </button>
          <button type="button" disabled={!changed} onClick={take}>
            Undo
          </button>
        </div>
      </form>
      {saving && (
        <Action
          title={`Save ${name}`}
          verb="Save"
          act={async (reason, requestId) => {
            await save(reason, requestId);
            await queries.invalidateQueries();
          }}
          onClose={() => setSaving(false)}
        >
          <p>{note}</p>
        </Action>
      )}
    </Panel>
  );
}
