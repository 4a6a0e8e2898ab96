// A long list: only the rows in view exist. Arrow keys move, Enter opens, x selects.

import { useVirtualizer } from "@tanstack/react-virtual";
import { type KeyboardEvent, type ReactNode, useEffect, useRef, useState } from "react";
import { navigate } from "../router";

export interface Column<Row> {
  title: ReactNode;
  /** Width, as of a grid. */
  width: string;
  show: (row: Row) => ReactNode;
  right?: boolean;
}

interface Props<Row> {
  label: string;
  rows: Row[];
  columns: Column<Row>[];
  id: (row: Row) => string;
  /** Where Enter and a click lead. */
  href?: (row: Row) => string;
  onOpen?: (row: Row) => void;
  selected?: ReadonlySet<string>;
  onSelect?: (row: Row) => void;
  /** Called when the end comes into view. */
  onEnd?: () => void;
  /** Follows the newest row, which is the last. */
  follow?: boolean;
  /** Called when the operator scrolls away from the end, and back. */
  onFollow?: (follow: boolean) => void;
  minWidth?: number;
  height?: string;
  footer?: ReactNode;
}

const ROW = 34;
const HEAD = 32;

export function List<Row>({ label, rows, columns, id, href, onOpen, selected, onSelect, onEnd, follow, onFollow, minWidth = 760, height, footer }: Props<Row>) {
  const box = useRef<HTMLDivElement>(null);
  const [at, setAt] = useState<string>();
  const virtual = useVirtualizer({
    count: rows.length,
    getScrollElement: () => box.current,
    estimateSize: () => ROW,
    overscan: 12,
    scrollMargin: HEAD,
  });
  const items = virtual.getVirtualItems();
  const last = items.at(-1)?.index ?? -1;
  useEffect(() => {
    if (rows.length > 0 && last >= rows.length - 10) onEnd?.();
  }, [last, rows.length, onEnd]);
  // biome-ignore lint: every change of the rows scrolls
  useEffect(() => {
    if (follow && box.current) box.current.scrollTop = box.current.scrollHeight;
  }, [rows, follow]);

  const template = { gridTemplateColumns: columns.map((column) => column.width).join(" ") };
  const open = (row: Row) => {
    if (onOpen) onOpen(row);
    else if (href) navigate(href(row));
  };
  const press = (event: KeyboardEvent) => {
    if (event.target !== box.current) return;
    const now = rows.findIndex((row) => id(row) === at);
    const page = Math.max(1, Math.floor((box.current?.clientHeight ?? 0) / ROW) - 2);
    const steps: Record<string, number> = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: page, PageUp: -page, Home: -rows.length, End: rows.length };
    const step = steps[event.key];
    const row = rows[now];
    if (step !== undefined && rows.length > 0) {
      event.preventDefault();
      const next = Math.min(rows.length - 1, Math.max(0, now < 0 ? 0 : now + step));
      const target = rows[next];
      if (target !== undefined) setAt(id(target));
      if (next < rows.length - 1) onFollow?.(false);
      virtual.scrollToIndex(next);
    } else if (row !== undefined && event.key === "Enter") {
      // Else the key would also press the button that a dialog focuses.
      event.preventDefault();
      open(row);
    } else if (row !== undefined && event.key === "x" && onSelect) onSelect(row);
  };
  const scrolled = () => {
    if (!onFollow || !box.current) return;
    const { scrollHeight, scrollTop, clientHeight } = box.current;
    const isAtEnd = scrollHeight - scrollTop - clientHeight < ROW;
    if (!isAtEnd && follow && wheeled.current) onFollow(false);
    wheeled.current = false;
  };
  const wheeled = useRef(false);
  const hand = () => {
    wheeled.current = true;
  };
  return (
    <div
      ref={box}
      className="list"
      role="grid"
      aria-label={label}
      aria-rowcount={rows.length + 1}
      aria-activedescendant={at && items.some((item) => { const row = rows[item.index]; return row !== undefined && id(row) === at; }) ? rowId(at) : undefined}
      tabIndex={0}
      onKeyDown={press}
      onScroll={scrolled}
      onWheel={hand}
      onTouchMove={hand}
      onPointerDown={hand}
      style={{ ...(height ? { height } : {}), ["--list-width" as string]: `${minWidth}px` }}
    >
      <div className="columns" role="row" aria-rowindex={1} style={template}>
        {columns.map((column, index) => (
          <span key={index} role="columnheader" className={column.right ? "right" : undefined}>
            {column.title}
          </span>
        ))}
      </div>
      <div className="rows" role="rowgroup" style={{ height: virtual.getTotalSize() }}>
        {items.map((item) => {
          const row = rows[item.index];
          if (row === undefined) return null;
          const key = id(row);
          return (
            <div
              key={key}
              id={rowId(key)}
              className="row"
              role="row"
              aria-rowindex={item.index + 2}
              aria-selected={selected ? selected.has(key) || key === at : key === at}
              style={{ ...template, transform: `translateY(${item.start - HEAD}px)` }}
              onClick={(event) => {
                setAt(key);
                const target = event.target as HTMLElement;
                if (!target.closest("a,button,input,label") && !getSelection()?.toString()) open(row);
              }}
            >
              {columns.map((column, index) => (
                <span key={index} role="gridcell" className={column.right ? "right" : undefined}>
                  {column.show(row)}
                </span>
              ))}
            </div>
          );
        })}
      </div>
      {footer}
    </div>
  );
}

const rowId = (key: string) => `row-${key.replace(/[^\w-]/g, "_")}`;
