import { parseTime } from "./format";

// The query of the stream: `workflow:order-1 type:order.* "some text"`.

export const FIELDS = ["workflow", "type", "source", "status", "subscription", "since", "until", "id", "text"] as const;
export type Field = (typeof FIELDS)[number];

export type Query = Record<Field, string> & { problems: string[] };

const TOKEN = /(?:(\w+):)?(?:"((?:[^"\\]|\\.)*)"|(\S+))/g;

export function parseQuery(text: string): Query {
  const query: Query = { workflow: "", type: "", source: "", status: "", subscription: "", since: "", until: "", id: "", text: "", problems: [] };
  for (const [, name, quoted, plain] of text.matchAll(TOKEN)) {
    const value = quoted !== undefined ? quoted.replace(/\\(.)/g, "$1") : (plain ?? "");
    if (name === undefined) query.text = query.text ? `${query.text} ${value}` : value;
    else if ((FIELDS as readonly string[]).includes(name)) query[name as Field] = value;
    else query.text = query.text ? `${query.text} ${name}:${value}` : `${name}:${value}`;
  }
  for (const name of ["since", "until"] as const) {
    if (query[name] && !parseTime(query[name])) query.problems.push(`${name}: is neither an age, such as 15m, 2h or 1d, nor a time`);
  }
  return query;
}

/** Whether only the history can answer it: the end of the log knows no status, and no time but now. */
export const asksHistory = (query: Query) => Boolean(query.status || query.subscription || query.since || query.until || query.id || query.text);

/** A value as it stands in a query. */
export const quoted = (value: string) => (/[\s"]/.test(value) ? `"${value.replace(/(["\\])/g, "\\$1")}"` : value);
