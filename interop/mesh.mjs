// One `weft up` in a temporary folder, on free ports, that ends with its test.

import { spawn } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

/** The binary under test: `WEFT`, as `make test-interop` sets it. */
const program = process.env.WEFT ?? fileURLToPath(new URL("../target/debug/weft", import.meta.url));

/** How long the mesh may take to be ready, and a delivery to arrive. */
const PATIENCE_MS = 60_000;

/** Starts a mesh with these sources and subscriptions, in TOML. */
export async function startMesh(config) {
  const folder = await mkdtemp(join(tmpdir(), "weft-interop-"));
  const file = join(folder, "weft.toml");
  const data = join(folder, "data");
  const listen = 'listen = "127.0.0.1:0"';
  await writeFile(
    file,
    `data = ${JSON.stringify(data)}\n[gateway]\n${listen}\n[admin]\n${listen}\n[ops]\n${listen}\n${config}`,
  );
  const child = spawn(program, ["up", "--config", file], { stdio: ["ignore", "pipe", "pipe"] });
  let log = "";
  child.stderr.on("data", (text) => (log += text));
  const ended = new Promise((resolve) => child.once("exit", resolve));
  const endpoints = await ready(child, () => log);
  const client = await readFile(join(data, "client.toml"), "utf8");
  return {
    gateway: endpoints.gateway,
    admin: endpoints.admin,
    /** The bootstrap key. */
    key: /token = "(.*)"/.exec(client)[1],
    /** The data folder. */
    data,
    /** The URL of subscribers, in a file. */
    tailUrl: join(data, "nats/tail.url"),
    /** The same as JSON. */
    tail: async () => JSON.parse(await readFile(join(data, "nats/context/tail.json"), "utf8")),
    async stop() {
      child.kill("SIGTERM");
      await ended;
      await rm(folder, { recursive: true });
    },
  };
}

async function ready(child, log) {
  const endpoints = {};
  const late = setTimeout(() => child.kill("SIGKILL"), PATIENCE_MS);
  try {
    for await (const line of createInterface({ input: child.stdout })) {
      if (line === "ready") return endpoints;
      const [name, place] = line.split(" ");
      endpoints[name] = place;
    }
  } finally {
    clearTimeout(late);
  }
  throw new Error(`weft ended before it was ready: ${log()}`);
}

/** Posts a body; the status and the JSON of the answer. */
export async function post(url, headers, body) {
  const response = await fetch(url, { method: "POST", headers, body });
  return { status: response.status, json: await response.json() };
}

/** The same body with one byte changed. */
export function tampered(body) {
  const bytes = Buffer.from(body);
  const place = bytes.indexOf("1");
  bytes[place] = "2".charCodeAt(0);
  return bytes;
}

/** A receiver on a free port that keeps what comes and answers 200. Options are those of the server of Node.js. */
export async function startReceiver(options = {}) {
  const arrived = [];
  let told = () => {};
  const server = createServer(options, async (request, response) => {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    arrived.push({ headers: request.headers, body: Buffer.concat(chunks) });
    response.end();
    told();
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${server.address().port}/hooks`,
    /** Waits for so many deliveries. */
    async deliveries(count) {
      const deadline = Date.now() + PATIENCE_MS;
      while (arrived.length < count) {
        const left = deadline - Date.now();
        if (left <= 0) throw new Error(`only ${arrived.length} of ${count} deliveries came`);
        await new Promise((resolve) => {
          told = resolve;
          setTimeout(resolve, left).unref();
        });
      }
      return arrived;
    },
    stop: () => new Promise((resolve) => server.close(resolve)),
  };
}
