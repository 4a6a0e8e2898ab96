// A payload: as a tree where it is JSON, and as it was sent.

import { useMemo, useState } from "react";
import { bytesText, hexDump, plural, pretty, textOf } from "../format";
import { Copy, LongText, Text } from "./basics";

/** Larger ones are shown in parts. */
const PART = 64 * 1024;
/** Members of one object or list that are shown at first. */
const MEMBERS = 200;

type View = "tree" | "pretty" | "raw";

export function Payload({ bytes, contentType, name = "payload" }: { bytes: Uint8Array; contentType?: string; name?: string }) {
  const text = useMemo(() => textOf(bytes), [bytes]);
  const parsed = useMemo(() => {
    if (text === undefined || !text.trim()) return undefined;
    try {
      return { value: JSON.parse(text) as unknown };
    } catch {
      return undefined;
    }
  }, [text]);
  const [view, setView] = useState<View>("tree");
  const [parts, setParts] = useState(1);
  const shown: View = parsed ? view : "raw";
  const whole = useMemo(() => {
    if (text === undefined) return hexDump(bytes, 64 * 1024);
    return shown === "pretty" ? (pretty(text) ?? text) : text;
  }, [bytes, text, shown]);
  const cut = whole.slice(0, PART * parts);
  const views: [View, string][] = [["tree", "Tree"], ["pretty", "Indented"], ["raw", "Raw"]];
  return (
    <div className="stack">
      <div className="inline">
        {parsed && (
          <div className="tabs" role="tablist" aria-label={`Form of the ${name}`}>
            {views.map(([key, title]) => (
              <button key={key} type="button" role="tab" className="small" aria-selected={shown === key} onClick={() => setView(key)}>
                {title}
              </button>
            ))}
          </div>
        )}
        <span className="dim">
          {bytesText(bytes.length)}
          {contentType ? `, ${contentType}` : ""}
          {text === undefined ? ", not text" : ""}
        </span>
        {text !== undefined && <Copy text={text} name={name} />}
      </div>
      {bytes.length === 0 ? (
        <p className="dim">Empty.</p>
      ) : shown === "tree" && parsed ? (
        <div className="tree" data-testid="tree">
          <Node value={parsed.value} source={text ?? ""} depth={0} />
        </div>
      ) : (
        <>
          <pre className="block wrap" tabIndex={0} aria-label={name}>
            <Text lines>{cut}</Text>
          </pre>
          {cut.length < whole.length && (
            <div>
              <button type="button" className="small" onClick={() => setParts(parts + 4)}>
                Show more ({bytesText(whole.length - cut.length)} left)
              </button>
            </div>
          )}
        </>
      )}
    </div>
  );
}

function Node({ name, value, source, depth }: { name?: string; value: unknown; source: string; depth: number }) {
  const [open, setOpen] = useState(depth < 2);
  const [all, setAll] = useState(false);
  const label = name !== undefined && (
    <>
      <span className="name">
        <Text>{name}</Text>
      </span>
      {": "}
    </>
  );
  if (value === null || typeof value !== "object") {
    return (
      <div>
        {label}
        <Scalar value={value} source={source} />
      </div>
    );
  }
  const members = Array.isArray(value) ? value.map((item, at) => [String(at), item] as const) : Object.entries(value);
  const summary = Array.isArray(value) ? `[${plural(members.length, "item")}]` : `{${plural(members.length, "member")}}`;
  if (members.length === 0) return <div>{label}{Array.isArray(value) ? "[]" : "{}"}</div>;
  return (
    <details open={open} onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>
        {label}
        <span className="dim">{summary}</span>
      </summary>
      {open && (
        <ul>
          {members.slice(0, all ? undefined : MEMBERS).map(([key, item]) => (
            <li key={key}>
              <Node name={key} value={item} source={source} depth={depth + 1} />
            </li>
          ))}
          {!all && members.length > MEMBERS && (
            <li>
              <button type="button" className="small" onClick={() => setAll(true)}>
                Show {plural(members.length - MEMBERS, "more item", "more items")}
              </button>
            </li>
          )}
        </ul>
      )}
    </details>
  );
}

function Scalar({ value, source }: { value: unknown; source: string }) {
  if (typeof value === "string") {
    return (
      <span className="string">
        "<LongText>{value}</LongText>"
      </span>
    );
  }
  if (typeof value === "number") {
    // A number that JavaScript cannot hold exactly is read in the raw form.
    const text = String(value);
    const exact = Number.isSafeInteger(value) || source.includes(text);
    return (
      <span className="number" title={exact ? undefined : "rounded; the raw form has all digits"}>
        {exact ? text : `≈ ${text}`}
      </span>
    );
  }
  return <span className="literal">{String(value)}</span>;
}
