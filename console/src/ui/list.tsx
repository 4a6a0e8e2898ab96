// A long list: only the rows in view exist. Arrow keys move, Enter opens, x selects.

import { useVirtualizer } from "@tanstack/react-virtual";
import { type CSSProperties, type KeyboardEvent, memo, type ReactNode, useEffect, useLayoutEffect, useMemo, useRef, useState } from "react";
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
  /** How many rows have gone from the start: what is in view stays there. */
  dropped?: number;
  /** Called when the operator scrolls away from the end, and back. */
  onFollow?: (follow: boolean) => void;
  minWidth?: number;
  height?: string;
  footer?: ReactNode;
}

const ROW = 34;
const HEAD = 32;

export function List<Row>({ label, rows, columns, id, href, onOpen, selected, onSelect, onEnd, follow = false, dropped = 0, onFollow, minWidth = 760, height, footer }: Props<Row>) {
  const box = useRef<HTMLDivElement>(null);
  const [at, setAt] = useState<string>();
  const virtual = useVirtualizer({
    count: rows.length,
    getScrollElement: () => box.current,
    estimateSize: () => ROW,
    overscan: 6,
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

  const gone = useRef(dropped);
  useLayoutEffect(() => {
    if (!follow && box.current && dropped > gone.current) box.current.scrollTop -= (dropped - gone.current) * ROW;
    gone.current = dropped;
  }, [dropped, follow]);

  const template = useMemo(() => ({ gridTemplateColumns: columns.map((column) => column.width).join(" ") }), [columns]);
  // While rows only fly past, their elements are used again. Otherwise an element stays with its row, and so does the focus in it.
  const elements = useRef(1);
  elements.current = Math.max(elements.current, items.length);
  const open = (row: Row) => {
    if (onOpen) onOpen(row);
    else if (href) navigate(href(row));
  };
  const clicked = useRef<(row: Row) => void>(open);
  clicked.current = (row) => {
    setAt(id(row));
    open(row);
  };
  const click = useMemo(() => (row: Row) => clicked.current(row), []);
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
          const isAt = key === at;
          return (
            <Line
              key={follow ? item.index % elements.current : key}
              row={row}
              id={key}
              index={item.index}
              top={item.start - HEAD}
              isSelected={selected?.has(key) || isAt}
              columns={columns}
              template={template}
              onClick={click}
            />
          );
        })}
      </div>
      {footer}
    </div>
  );
}

interface LineProps<Row> {
  row: Row;
  id: string;
  index: number;
  top: number;
  isSelected: boolean;
  columns: Column<Row>[];
  template: CSSProperties;
  onClick: (row: Row) => void;
}

const Line = memo(function Line<Row>({ row, id, index, top, isSelected, columns, template, onClick }: LineProps<Row>) {
  return (
    <div
      id={rowId(id)}
      className="row"
      role="row"
      aria-rowindex={index + 2}
      aria-selected={isSelected}
      style={{ ...template, transform: `translateY(${top}px)` }}
      onClick={(event) => {
        const target = event.target as HTMLElement;
        if (!target.closest("a,button,input,label") && !getSelection()?.toString()) onClick(row);
      }}
    >
      {columns.map((column, at) => (
        <span key={at} role="gridcell" className={column.right ? "right" : undefined}>
          {column.show(row)}
        </span>
      ))}
    </div>
  );
}) as <Row>(props: LineProps<Row>) => ReactNode;

const rowId = (key: string) => `row-${key.replace(/[^\w-]/g, "_")}`;
