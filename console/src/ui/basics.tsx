// The parts of every screen.

import { cloneElement, type ReactElement, type ReactNode, useEffect, useId, useRef, useState } from "react";
import { ageText, timeText, utcText } from "../format";
import { message } from "../api";

// Control characters, and marks that change the direction of what follows: shown, so that they cannot hide or reorder anything.
const HARMFUL = /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb]/u;
const HARMFUL_PARTS = new RegExp(`(${HARMFUL.source})`, "u");

/** A text from outside: isolated, with invisible characters made visible. `lines`: line ends and tabs are kept. */
export function Text({ children, lines = false }: { children: string; lines?: boolean }) {
  const shown = (part: string) => HARMFUL.test(part) && !(lines && (part === "\n" || part === "\t" || part === "\r"));
  if (!HARMFUL.test(children)) return <bdi>{children}</bdi>;
  return (
    <bdi>
      {children.split(HARMFUL_PARTS).map((part, at) => {
        if (part.length !== 1 || !shown(part)) return part;
        const code = (part.codePointAt(0) ?? 0).toString(16).toUpperCase().padStart(4, "0");
        return (
          <span className="ctrl" title={`U+${code}`} key={at}>
            {`U+${code}`}
          </span>
        );
      })}
    </bdi>
  );
}

/** A text of one line, cut where there is no room; the whole is in its title. */
export function Cut({ children, mono = false }: { children: string; mono?: boolean }) {
  return (
    <span className={mono ? "truncate mono" : "truncate"} title={children}>
      <Text>{children}</Text>
    </span>
  );
}

/** Characters of a long text that are shown at first. */
const LONG = 600;

/** A text that may be very long: its beginning, and the whole on demand. */
export function LongText({ children }: { children: string }) {
  const [whole, setWhole] = useState(false);
  if (whole || children.length <= LONG * 1.2) return <Text lines>{children}</Text>;
  return (
    <>
      <Text lines>{children.slice(0, LONG)}</Text>…{" "}
      <button type="button" className="small" onClick={() => setWhole(true)}>
        Show all {children.length.toLocaleString()} characters
      </button>
    </>
  );
}

/** A time in the operator's zone; in UTC on hover. */
export function Time({ at }: { at?: Date }) {
  if (!at) return <span className="dim">–</span>;
  return (
    <time dateTime={at.toISOString()} title={utcText(at)} className="nowrap tabular">
      {timeText(at)}
    </time>
  );
}

/** How long ago, kept current. */
export function Age({ at }: { at?: Date }) {
  const [, tick] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => tick((n) => n + 1), 1000);
    return () => clearInterval(timer);
  }, []);
  if (!at) return <span className="dim">–</span>;
  return (
    <time dateTime={at.toISOString()} title={`${timeText(at)} · ${utcText(at)}`} className="nowrap tabular">
      {ageText(at)}
    </time>
  );
}

type Tone = "good" | "warn" | "bad" | "info" | "";

const TONES: Record<string, Tone> = {
  delivered: "good",
  redriven: "good",
  resolved: "good",
  done: "good",
  consistent: "good",
  active: "good",
  open: "info",
  new: "info",
  pending: "info",
  delivering: "info",
  running: "info",
  redriving: "info",
  retrying: "warn",
  waiting: "warn",
  paused: "warn",
  away: "warn",
  held: "warn",
  blocked: "bad",
  dead_lettered: "bad",
  failed: "bad",
  stopped: "bad",
  expired: "bad",
};

/** A status in words. */
export function Status({ of, tone }: { of: string; tone?: Tone }) {
  return <span className={`badge ${tone ?? TONES[of] ?? ""}`}>{of.replaceAll("_", " ")}</span>;
}

export function Badge({ tone = "", title, children }: { tone?: Tone; title?: string; children: ReactNode }) {
  return (
    <span className={`badge ${tone}`} title={title}>
      {children}
    </span>
  );
}

/** Copies a text. */
export function Copy({ text, label = "Copy", name }: { text: string; label?: string; name: string }) {
  const [copied, setCopied] = useState(false);
  useEffect(() => {
    if (!copied) return;
    const timer = setTimeout(() => setCopied(false), 1500);
    return () => clearTimeout(timer);
  }, [copied]);
  return (
    <button type="button" className="small" aria-label={`Copy ${name}`} onClick={async () => setCopied(await copy(text))}>
      {copied ? "Copied" : label}
    </button>
  );
}

async function copy(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Without TLS, browsers offer the clipboard on the machine itself only.
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

export function Id({ value, name }: { value: string; name: string }) {
  return (
    <span className="copyable">
      <code>
        <Text>{value}</Text>
      </code>
      <Copy text={value} name={name} />
    </span>
  );
}

/** Stands where something will be. `failed`: it is not known what, which an error above explains. */
export function Loading({ of, failed = false }: { of: string; failed?: boolean }) {
  const [shown, setShown] = useState(false);
  useEffect(() => {
    const timer = setTimeout(() => setShown(true), 200);
    return () => clearTimeout(timer);
  }, []);
  return (
    <div className="loading" role="status">
      {failed ? "Not known at the moment: see above." : shown ? `Loading ${of}…` : "\u00a0"}
    </div>
  );
}

export function Failed({ error, retry }: { error: unknown; retry?: () => void }) {
  return (
    <div className="note-box bad" role="alert">
      <div className="wrap">
        <Text>{message(error)}</Text>
      </div>
      {retry && (
        <button type="button" className="small" onClick={retry}>
          Try again
        </button>
      )}
    </div>
  );
}

export function Empty({ title, children }: { title: string; children?: ReactNode }) {
  return (
    <div className="empty">
      <strong>{title}</strong>
      {children}
    </div>
  );
}

export function Head({ title, sub, crumb, children }: { title: ReactNode; sub?: ReactNode; crumb?: ReactNode; children?: ReactNode }) {
  return (
    <div className="head">
      <div className="title">
        {crumb && <div className="crumb">{crumb}</div>}
        <h1 className="wrap">{title}</h1>
        {sub && <p className="sub">{sub}</p>}
      </div>
      {children && <div className="actions">{children}</div>}
    </div>
  );
}

export function Panel({ title, tools, children, className = "" }: { title: ReactNode; tools?: ReactNode; children: ReactNode; className?: string }) {
  return (
    <section className={`panel ${className}`}>
      <header>
        <h2>{title}</h2>
        {tools && <div className="actions">{tools}</div>}
      </header>
      {children}
    </section>
  );
}

export function Facts({ of }: { of: [string, ReactNode][] }) {
  return (
    <dl className="facts">
      {of.map(([name, value], at) => (
        <div key={`${name}:${at}`} style={{ display: "contents" }}>
          <dt className="wrap"><Text>{name}</Text></dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

/** A text as it is typed; it is handed on once typing has stopped for this many milliseconds. */
export function useTyped(value: string, onChange: (value: string) => void, pause: number) {
  const [text, setText] = useState(value);
  const sent = useRef(value);
  useEffect(() => {
    if (value !== sent.current) {
      sent.current = value;
      setText(value);
    }
  }, [value]);
  useEffect(() => {
    if (text === sent.current) return;
    const timer = setTimeout(() => {
      sent.current = text;
      onChange(text.trim());
    }, pause);
    return () => clearTimeout(timer);
  }, [text, onChange, pause]);
  return [text, setText, sent] as const;
}

/** A field of filters that is written to the address when typing stops. */
export function FilterInput({ value, onChange, label, list, ...rest }: { value: string; onChange: (value: string) => void; label: string; list?: string[]; className?: string; placeholder?: string }) {
  const [text, setText] = useTyped(value, onChange, 250);
  const id = useId();
  return (
    <>
      <input aria-label={label} placeholder={label} value={text} list={list ? id : undefined} onChange={(event) => setText(event.target.value)} spellCheck={false} autoComplete="off" {...rest} />
      {list && (
        <datalist id={id}>
          {list.map((item) => (
            <option key={item} value={item} />
          ))}
        </datalist>
      )}
    </>
  );
}

/** A field of a form: its name, the field itself, and a hint that describes it. */
export function Field({ label, hint, wide, children }: { label: ReactNode; hint?: ReactNode; wide?: boolean; children: ReactElement<{ id?: string; "aria-describedby"?: string }> }) {
  const id = useId();
  return (
    <div className={wide ? "field wide" : "field"}>
      <label htmlFor={id}>{label}</label>
      {cloneElement(children, { id, "aria-describedby": hint ? `${id}-hint` : undefined })}
      {hint && (
        <span className="hint" id={`${id}-hint`}>
          {hint}
        </span>
      )}
    </div>
  );
}

/** Says that someone else has changed what is being edited. */
export function Conflict({ keep, take }: { keep: () => void; take: () => void }) {
  return (
    <div className="note-box warn" role="alert">
      <div>It has been changed in the meantime.</div>
      <button type="button" className="small" onClick={take}>
        Show the new one
      </button>
      <button type="button" className="small" onClick={keep}>
        Keep what I entered
      </button>
    </div>
  );
}

export function Select({ value, onChange, label, options }: { value: string; onChange: (value: string) => void; label: string; options: (readonly [string, string])[] }) {
  return (
    <select aria-label={label} value={value} onChange={(event) => onChange(event.target.value)}>
      {options.map(([key, text]) => (
        <option key={key} value={key}>
          {text}
        </option>
      ))}
    </select>
  );
}

/** A dialog; Escape closes it. */
export function Dialog({ title, onClose, children }: { title: string; onClose: () => void; children: ReactNode }) {
  const dialog = useRef<HTMLDialogElement>(null);
  const id = useId();
  useEffect(() => {
    const element = dialog.current;
    element?.showModal();
    element?.querySelector<HTMLElement>("[data-first]")?.focus();
    return () => element?.close();
  }, []);
  return (
    <dialog ref={dialog} aria-labelledby={id} onCancel={(event) => { event.preventDefault(); onClose(); }}>
      <div className="inner">
        <h2 id={id}>{title}</h2>
        {children}
      </div>
    </dialog>
  );
}
