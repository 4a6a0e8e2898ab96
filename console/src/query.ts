// The query of the stream: `workflow:order-1 type:order.* "some text"`.

export const FIELDS = ["workflow", "type", "source", "status", "since", "id", "text"] as const;
export type Field = (typeof FIELDS)[number];

export type Query = Record<Field, string> & { problems: string[] };

const TOKEN = /(?:(\w+):)?(?:"((?:[^"\\]|\\.)*)"|(\S+))/g;

export function parseQuery(text: string): Query {
  const query: Query = { workflow: "", type: "", source: "", status: "", since: "", id: "", text: "", problems: [] };
  for (const [, name, quoted, plain] of text.matchAll(TOKEN)) {
    const value = quoted !== undefined ? quoted.replace(/\\(.)/g, "$1") : (plain ?? "");
    if (name === undefined) query.text = query.text ? `${query.text} ${value}` : value;
    else if ((FIELDS as readonly string[]).includes(name)) query[name as Field] = value;
    else query.text = query.text ? `${query.text} ${name}:${value}` : `${name}:${value}`;
  }
  return query;
}

/** A value as it stands in a query. */
export const quoted = (value: string) => (/[\s"]/.test(value) ? `"${value.replace(/(["\\])/g, "\\$1")}"` : value);
