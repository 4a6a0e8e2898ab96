// The filter bar of the stream, with completion of fields and of values that were seen.

import { type KeyboardEvent, useId, useMemo, useState } from "react";
import { FIELDS, quoted } from "../query";
import { Text, useTyped } from "./basics";

interface Props {
  value: string;
  onChange: (value: string) => void;
  /** Called with an event id that was entered whole. */
  onId: (id: string) => void;
  known: Partial<Record<string, string[]>>;
}

const UUID = /^(id:)?([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})$/i;

export function QueryInput({ value, onChange, onId, known }: Props) {
  const [text, setText, sent] = useTyped(value, onChange, 300);
  const [at, setAt] = useState(-1);
  const [open, setOpen] = useState(false);
  const id = useId();

  const word = text.match(/(?:\w+:"[^"]*|\S*)$/)?.[0] ?? "";
  const suggestions = useMemo(() => {
    const [field, start] = word.includes(":") ? [word.slice(0, word.indexOf(":")), word.slice(word.indexOf(":") + 1)] : ["", word];
    if (!field) return FIELDS.filter((name) => name.startsWith(start)).map((name) => `${name}:`);
    const lower = start.replace(/^"/, "").toLowerCase();
    const values = (known[field] ?? []).filter((item) => item.toLowerCase().includes(lower) && item !== lower);
    return values.slice(0, 8).map((item) => `${field}:${quoted(item)}`);
  }, [word, known]);
  const shown = open ? suggestions : [];

  const take = (suggestion: string) => {
    const next = text.slice(0, text.length - word.length) + suggestion + (suggestion.endsWith(":") ? "" : " ");
    setText(next);
    setAt(-1);
  };
  const press = (event: KeyboardEvent) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      setOpen(true);
      const step = event.key === "ArrowDown" ? 1 : -1;
      setAt((now) => (shown.length ? (now + step + shown.length) % shown.length : -1));
    } else if ((event.key === "Enter" || event.key === "Tab") && shown[at]) {
      event.preventDefault();
      take(shown[at]);
    } else if (event.key === "Enter") {
      const found = text.trim().match(UUID);
      if (found?.[2]) onId(found[2].toLowerCase());
      sent.current = text;
      onChange(text.trim());
      setOpen(false);
    } else if (event.key === "Escape" && shown.length > 0) {
      event.stopPropagation();
      setOpen(false);
    }
  };
  return (
    <div className="suggest grow">
      <input
        style={{ width: "100%" }}
        role="combobox"
        aria-label="Filter"
        aria-expanded={shown.length > 0}
        aria-controls={id}
        aria-activedescendant={shown[at] ? `${id}-${at}` : undefined}
        aria-autocomplete="list"
        placeholder="workflow: type: source: status: subscription: since: until: id: text:"
        spellCheck={false}
        autoComplete="off"
        value={text}
        onChange={(event) => {
          setText(event.target.value);
          setOpen(true);
          setAt(-1);
        }}
        onFocus={() => setOpen(true)}
        onBlur={() => setOpen(false)}
        onKeyDown={press}
      />
      {shown.length > 0 && (
        <ul id={id} role="listbox" aria-label="Completions">
          {shown.map((suggestion, index) => (
            <li
              key={suggestion}
              id={`${id}-${index}`}
              role="option"
              aria-selected={index === at}
              onPointerDown={(event) => {
                event.preventDefault();
                take(suggestion);
              }}
            >
              <Text>{suggestion}</Text>
            </li>
          ))}
        </ul>
      )}
    </div>
  );
}
