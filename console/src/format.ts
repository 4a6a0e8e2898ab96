// How values are shown.

import { type Timestamp, timestampDate } from "@bufbuild/protobuf/wkt";

const clock = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  fractionalSecondDigits: 3,
  hourCycle: "h23",
});
const day = new Intl.DateTimeFormat(undefined, { year: "2-digit", month: "2-digit", day: "2-digit" });
const minute = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const number = new Intl.NumberFormat();
const compact = new Intl.NumberFormat(undefined, { notation: "compact", maximumFractionDigits: 1 });

export const dateOf = (time?: Timestamp) => (time ? timestampDate(time) : undefined);

/** Time of the day in the operator's zone; with the date unless it is of today. */
export function timeText(date: Date, now = new Date()): string {
  return date.toDateString() === now.toDateString() ? clock.format(date) : `${day.format(date)} ${minute.format(date)}`;
}

export const utcText = (date: Date) => date.toISOString().replace("T", " ").replace("Z", " UTC");

/** A duration in its two largest units. */
export function durationText(ms: number): string {
  const sign = ms < 0 ? "-" : "";
  const value = Math.abs(ms);
  if (value < 1) return `${sign}${value.toFixed(1)} ms`;
  if (value < 1000) return `${sign}${Math.round(value)} ms`;
  if (value < 60_000) return `${sign}${(value / 1000).toFixed(value < 10_000 ? 1 : 0)} s`;
  const units: [number, string][] = [
    [86_400_000, "d"],
    [3_600_000, "h"],
    [60_000, "min"],
    [1000, "s"],
  ];
  const at = units.findIndex(([length]) => value >= length);
  const [large, small] = [units[at], units[at + 1]];
  if (!large) return `${sign}${value} ms`;
  const whole = Math.floor(value / large[0]);
  const rest = small ? Math.floor((value % large[0]) / small[0]) : 0;
  return `${sign}${whole} ${large[1]}${rest && small ? ` ${rest} ${small[1]}` : ""}`;
}

export const ageText = (date: Date, now = Date.now()) => durationText(Math.max(0, now - date.getTime()));

export const count = (value: number | bigint) => number.format(value);
export const shortCount = (value: number | bigint) => compact.format(value);

export function bytesText(value: number | bigint): string {
  let size = Number(value);
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (size < 1024) return `${unit === "B" ? size : size.toFixed(1)} ${unit}`;
    size /= 1024;
  }
  return `${size.toFixed(1)} TiB`;
}

export const plural = (n: number | bigint, one: string, many = `${one}s`) => `${count(n)} ${Number(n) === 1 ? one : many}`;

const decoder = new TextDecoder("utf-8", { fatal: true });

/** The text of some bytes; `undefined`: they are not UTF-8. */
export function textOf(bytes: Uint8Array): string | undefined {
  try {
    return decoder.decode(bytes);
  } catch {
    return undefined;
  }
}

/** JSON with each number as it was written: a large one would lose digits as a JavaScript number. */
export function pretty(json: string): string | undefined {
  try {
    JSON.parse(json);
  } catch {
    return undefined;
  }
  let out = "";
  let depth = 0;
  let quoted = false;
  for (let at = 0; at < json.length; at++) {
    const char = json[at] as string;
    if (quoted) {
      out += char;
      if (char === "\\") out += json[++at] ?? "";
      else if (char === '"') quoted = false;
    } else if (char === '"') {
      quoted = true;
      out += char;
    } else if (char === "{" || char === "[") {
      const close = json.slice(at + 1).match(/^\s*([}\]])/);
      if (close) {
        out += char + close[1];
        at += close[0].length;
      } else {
        depth++;
        out += `${char}\n${"  ".repeat(depth)}`;
      }
    } else if (char === "}" || char === "]") {
      depth--;
      out += `\n${"  ".repeat(depth)}${char}`;
    } else if (char === ",") out += `,\n${"  ".repeat(depth)}`;
    else if (char === ":") out += ": ";
    else if (!/\s/.test(char)) out += char;
  }
  return out;
}

export function hexDump(bytes: Uint8Array, max = 4096): string {
  const lines: string[] = [];
  for (let at = 0; at < Math.min(bytes.length, max); at += 16) {
    const line = [...bytes.slice(at, at + 16)];
    const hex = line.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
    const text = line.map((byte) => (byte >= 32 && byte < 127 ? String.fromCharCode(byte) : ".")).join("");
    lines.push(`${at.toString(16).padStart(8, "0")}  ${hex.padEnd(47)}  ${text}`);
  }
  return lines.join("\n");
}

/** A time as an operator types it: RFC 3339, a local date with time, or an age such as `15m`. */
export function parseTime(text: string, now = Date.now()): Date | undefined {
  const age = text.trim().match(/^(\d+)\s*(s|m|min|h|d)$/);
  if (age) {
    const unit = { s: 1000, m: 60_000, min: 60_000, h: 3_600_000, d: 86_400_000 }[age[2] as "s"];
    return new Date(now - Number(age[1]) * unit);
  }
  const at = Date.parse(text);
  return text && !Number.isNaN(at) ? new Date(at) : undefined;
}
