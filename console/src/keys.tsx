// The keyboard: `g` and a letter opens a screen, `/` goes to the filter, `?` shows all.

import { useEffect, useState } from "react";
import { navigate } from "./router";
import { Dialog } from "./ui/basics";

const SCREENS: [string, string, string][] = [
  ["o", "/", "Overview"],
  ["s", "/stream", "Stream"],
  ["d", "/dead-letters", "Dead letters"],
  ["k", "/stuck", "Stuck"],
  ["j", "/rejected", "Rejected"],
  ["r", "/replays", "Replays"],
  ["u", "/subscriptions", "Subscriptions"],
  ["c", "/sources", "Sources"],
  ["e", "/schemas", "Schemas"],
  ["y", "/keys", "Keys"],
  ["w", "/alerts", "Alerts"],
  ["a", "/audit", "Audit"],
  ["l", "/cluster", "Cluster"],
];

/** Keys that screens add, shown in the help. */
const OTHERS: [string, string][] = [
  ["/", "Go to the first filter"],
  ["↑ ↓", "Move in a list; also j and k"],
  ["Enter", "Open the row"],
  ["x", "Select the row, where rows can be selected"],
  ["Space", "Pause and continue the live stream"],
  ["Esc", "Close a dialog; leave a field"],
  ["?", "Show these keys"],
];

export const isTyping = (target: EventTarget | null) =>
  target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|SELECT|TEXTAREA)$/.test(target.tagName));

export function Shortcuts() {
  const [open, setOpen] = useState(false);
  useEffect(() => {
    let prefix = Number.NEGATIVE_INFINITY;
    const press = (event: KeyboardEvent) => {
      if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
      if (isTyping(event.target)) {
        if (event.key === "Escape") (event.target as HTMLElement).blur();
        return;
      }
      const screen = SCREENS.find(([key]) => key === event.key);
      if (screen && event.timeStamp - prefix < 1500) {
        prefix = Number.NEGATIVE_INFINITY;
        event.preventDefault();
        event.stopPropagation();
        navigate(screen[1]);
      } else if (event.key === "g") prefix = event.timeStamp;
      else if (event.key === "?") setOpen(true);
      else if (event.key === "/") {
        const filter = document.querySelector<HTMLElement>("main .filters input, main .filters select");
        if (filter) {
          event.preventDefault();
          filter.focus();
        }
      }
    };
    window.addEventListener("keydown", press, true);
    return () => window.removeEventListener("keydown", press, true);
  }, []);
  if (!open) return null;
  return (
    <Dialog title="Keys" onClose={() => setOpen(false)}>
      <div className="keys">
        {OTHERS.map(([key, text]) => (
          <Line key={key} keys={key.split(" ")} text={text} />
        ))}
        {SCREENS.map(([key, , text]) => (
          <Line key={key} keys={["g", key]} text={text} />
        ))}
      </div>
      <div className="buttons">
        <button type="button" autoFocus onClick={() => setOpen(false)}>
          Close
        </button>
      </div>
    </Dialog>
  );
}

function Line({ keys, text }: { keys: string[]; text: string }) {
  return (
    <>
      <span className="inline">
        {keys.map((key) => (
          <kbd key={key}>{key}</kbd>
        ))}
      </span>
      <span>{text}</span>
    </>
  );
}
