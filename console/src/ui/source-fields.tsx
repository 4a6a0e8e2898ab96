// The fields of a source.

import type { ReactNode } from "react";
import { textInput } from "../draft";
import { OnIdReuse, ReplayGuard } from "../gen/weft/v1/catalog_pb";
import { Field } from "./basics";
import { kindOf, SCHEMES, type Scheme, type SourceDraft } from "../source";

interface Props {
  draft: SourceDraft;
  set: (changes: Partial<SourceDraft>) => void;
  /** The secret, where one is entered with it. */
  secret?: ReactNode;
}

const PLACES: [SourceDraft["workflowFrom"], string][] = [
  ["pointer", "JSON pointer"],
  ["header", "header"],
  ["fixed", "always"],
];
const EXAMPLES: Record<string, string> = { pointer: "/data/orderId", header: "X-Order-Id", fixed: "orders" };

export function SourceFields({ draft, set, secret }: Props) {
  const kind = kindOf(draft.scheme);
  const text = textInput(draft, set);
  return (
    <div className="form">
      <Field label="Verified by" hint={draft.scheme === "none" ? "Anyone who reaches the gateway can send" : draft.scheme === "apiKey" ? "Keys with scope ingest, made under Keys" : undefined}>
        <select
          value={draft.scheme}
          onChange={(event) => {
            const scheme = event.target.value as Scheme;
            set({ scheme, ...(!kindOf(scheme).hasId && !draft.idFrom ? { idFrom: "digest" as const } : {}) });
          }}
        >
          {SCHEMES.map(({ scheme, title }) => (
            <option key={scheme} value={scheme}>
              {title}
            </option>
          ))}
        </select>
      </Field>
      {kind.timed && (
        <Field label="Tolerance, in seconds" hint="How far a signed time may be off">
          <input type="number" min="1" max="86400" step="any" {...text("tolerance")} placeholder="300" />
        </Field>
      )}
      {secret}
      {draft.scheme === "hmac" && (
        <>
          <Field label="Header of the signature">
            <input required {...text("header")} placeholder="X-Signature" />
          </Field>
          <Field label="Text before it">
            <input {...text("prefix")} placeholder="sha256=" />
          </Field>
          <Field label="Encoding">
            <select value={draft.base64 ? "base64" : "hex"} onChange={(event) => set({ base64: event.target.value === "base64" })}>
              <option value="hex">hexadecimal</option>
              <option value="base64">base64</option>
            </select>
          </Field>
          <Field label="Signed text" hint={<>Of {"{id}, {timestamp} and {body}"}</>}>
            <input {...text("template")} placeholder="{body}" />
          </Field>
          {draft.template.includes("{timestamp}") && (
            <Field label={<>Header of {"{timestamp}"}</>}>
              <input required {...text("timestampHeader")} placeholder="X-Timestamp" />
            </Field>
          )}
          {draft.template.includes("{id}") && (
            <Field label={<>Header of {"{id}"}</>}>
              <input required {...text("idHeader")} placeholder="X-Delivery-Id" />
            </Field>
          )}
        </>
      )}
      <Place label="Workflow" from={draft.workflowFrom} value={draft.workflow} absent="the path: …/{workflowId}" places={PLACES} onChange={(workflowFrom, workflow) => set({ workflowFrom, workflow })} hint="What its events are ordered by" />
      <Place label="Type" from={draft.typeFrom} value={draft.type} absent="where the scheme has it" places={PLACES} onChange={(typeFrom, type) => set({ typeFrom, type })} example={{ pointer: "/type", header: "X-Event-Type", fixed: "order.changed" }} />
      <Place
        label="Delivery id"
        from={draft.idFrom}
        value={draft.id}
        absent={kind.hasId ? "where the scheme has it" : undefined}
        places={[
          ["header", "header"],
          ["pointer", "JSON pointer"],
          ["digest", "the digest of the body"],
          ["none", "none: each request is a new event"],
        ]}
        onChange={(idFrom, id) => set({ idFrom, id })}
        example={{ pointer: "/id", header: "X-Delivery-Id" }}
        hint="The same id is accepted once"
      />
      <Field label="Data" hint="A JSON pointer into the body, such as /data">
        <input {...text("data")} placeholder="the whole body" />
      </Field>
      <details className="wide">
        <summary>More</summary>
        <div className="form">
          <Field label="Body">
            <select value={draft.anyBody ? "any" : "json"} onChange={(event) => set({ anyBody: event.target.value === "any" })}>
              <option value="json">JSON</option>
              <option value="any">any</option>
            </select>
          </Field>
          <Field label="A known id with another body">
            <select value={draft.onIdReuse} onChange={(event) => set({ onIdReuse: Number(event.target.value) })}>
              <option value={OnIdReuse.UNSPECIFIED}>the scheme's default</option>
              <option value={OnIdReuse.CONFLICT}>is refused: 409</option>
              <option value={OnIdReuse.RECEIPT}>is answered with the first receipt</option>
            </select>
          </Field>
          <Field label="A known body with another id">
            <select value={draft.replayGuard} onChange={(event) => set({ replayGuard: Number(event.target.value) })}>
              <option value={ReplayGuard.UNSPECIFIED}>the scheme's default</option>
              <option value={ReplayGuard.OFF}>is another event</option>
              <option value={ReplayGuard.BODY}>is answered with the first receipt</option>
            </select>
          </Field>
          <Field label="Kept headers">
            <input {...text("keepHeaders")} placeholder="none" />
          </Field>
          <Field label="Largest body, in KiB">
            <input type="number" min="0" step="any" {...text("maxBody")} placeholder="the gateway's" />
          </Field>
          <Field label="Payloads are erased after days">
            <input type="number" min="0" step="any" {...text("payloadDays")} placeholder="with the event" />
          </Field>
        </div>
      </details>
    </div>
  );
}

interface PlaceProps<From extends string> {
  label: string;
  from: From | "";
  value: string;
  /** What it is without a rule; `undefined`: a rule is needed. */
  absent?: string;
  places: [From | "", string][];
  onChange: (from: From | "", value: string) => void;
  example?: Record<string, string>;
  hint?: string;
}

/** Where a value is read from. */
function Place<From extends string>({ label, from, value, absent, places, onChange, example = EXAMPLES, hint }: PlaceProps<From>) {
  const valued = from === "pointer" || from === "header" || from === "fixed";
  return (
    <div className="field">
      <Field label={label}>
        <select required={absent === undefined} value={from} onChange={(event) => onChange(event.target.value as From | "", value)}>
          <option value="" disabled={absent === undefined}>
            {absent ?? "choose one"}
          </option>
          {places.map(([key, title]) => (
            <option key={key} value={key}>
              {title}
            </option>
          ))}
        </select>
      </Field>
      {valued && (
        <input
          required={from !== "pointer" || label !== "Type"}
          aria-label={`${label}: ${places.find(([key]) => key === from)?.[1]}`}
          value={value}
          onChange={(event) => onChange(from, event.target.value)}
          placeholder={example[from]}
          spellCheck={false}
          autoComplete="off"
        />
      )}
      {hint && <span className="hint">{hint}</span>}
    </div>
  );
}
