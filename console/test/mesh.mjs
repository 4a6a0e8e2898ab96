// A whole mesh for the tests: `weft up`, a receiver that fails as it is asked to, and a sender that signs.

import { spawn } from "node:child_process";
import { createHmac, randomUUID } from "node:crypto";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

const WEFT = process.env.WEFT ?? new URL("../../target/debug/weft", import.meta.url).pathname;
const SECRET = "whsec_dGVzdHMtb2YtdGhlLWNvbnNvbGUtc2hvcC1zMDE=";
const START_TIMEOUT = 120_000;

/** Receives deliveries. An event whose data has `fail` is answered with that status until `mend` is called. */
export async function startReceiver() {
  const deliveries = [];
  let broken = true;
  const server = createServer((request, response) => {
    const parts = [];
    request.on("data", (part) => parts.push(part));
    request.on("end", () => {
      const event = JSON.parse(Buffer.concat(parts).toString());
      const fail = broken && event.data?.fail;
      if (!fail) deliveries.push({ path: request.url, event, replay: request.headers["weft-replay"] === "true" });
      response.statusCode = fail || 200;
      response.end(fail ? `the receiver does not take ${event.data.orderId}` : "ok");
    });
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    deliveries,
    mend: () => {
      broken = false;
    },
    fail: () => {
      broken = true;
    },
    stop: () => {
      server.closeAllConnections();
      return new Promise((resolve) => server.close(resolve));
    },
  };
}

const base = (data) => `
data = "${data}"
[gateway]
listen = "127.0.0.1:0"
rate_limit = { per_ip = "off", per_source = "off", per_key = "off" }
[admin]
listen = "127.0.0.1:0"
[ops]
listen = "127.0.0.1:0"
`;

const catalog = (receiver, data) => `
[[source]]
name = "shop"
verify = { scheme = "standard", secrets = ["${SECRET}"] }
workflow = { pointer = "/data/orderId" }
data = { pointer = "/data" }
schema = [{ type = "typed.*", json_schema = "file:${data}/order.json", mode = "reject" }]

[[subscription]]
name = "billing"
types = ["order.*", "<*"]
destination = { type = "http", url = "${receiver}/billing", secret = "whsec_Y29uc29sZS1iaWxsaW5nLXNlY3JldC0wMDAwMDE=" }
retry = { max_retries = 1, base = "100ms", factor = 1.0, max = "1s" }

[[subscription]]
name = "warehouse"
types = ["stock.*"]
destination = { type = "http", url = "${receiver}/warehouse", secret = "whsec_Y29uc29sZS1iaWxsaW5nLXNlY3JldC0wMDAwMDI=" }
retry = { max_retries = 0, base = "100ms" }
on_exhausted = "block"
`;

/** Starts a mesh; `stop` ends it and removes its folder. Without a receiver it has neither sources nor subscriptions. */
export async function startMesh(receiver) {
  const data = await mkdtemp(join(tmpdir(), "weft-console-test-"));
  await writeFile(join(data, "order.json"), JSON.stringify({ type: "object", required: ["total"], properties: { total: { type: "number" } } }));
  const file = join(data, "weft.toml");
  await writeFile(file, base(data) + (receiver ? catalog(receiver.url, data) : ""));
  const child = spawn(WEFT, ["up", "--config", file], { stdio: ["ignore", "pipe", "pipe"] });
  let log = "";
  child.stderr.on("data", (part) => {
    log = (log + part).slice(-20_000);
  });
  const lines = {};
  const ended = new Promise((resolve) => child.once("exit", resolve));
  await new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`weft up is not ready:\n${log}`)), START_TIMEOUT);
    ended.then((code) => reject(new Error(`weft up ended with ${code}:\n${log}`)));
    createInterface({ input: child.stdout }).on("line", (line) => {
      const [name, value] = line.split(" ");
      if (value) lines[name] = value;
      if (line === "ready") {
        clearTimeout(timer);
        resolve();
      }
    });
  });
  const client = await readFile(join(data, "client.toml"), "utf8");
  const token = client.match(/^token\s*=\s*"([^"]+)"/m)[1];
  return {
    admin: lines.admin,
    gateway: lines.gateway,
    token,
    data,
    log: () => log,
    /** Sends one signed event; its receipt, or what was answered. */
    async send(type, eventData, { id = `msg_${randomUUID()}`, secret = SECRET, source = "shop" } = {}) {
      const body = JSON.stringify({ type, data: eventData });
      const timestamp = String(Math.floor(Date.now() / 1000));
      const key = Buffer.from(secret.slice("whsec_".length), "base64");
      const signature = createHmac("sha256", key).update(`${id}.${timestamp}.${body}`).digest("base64");
      const response = await fetch(`${lines.gateway}/api/v1/webhooks/${source}`, {
        method: "POST",
        headers: { "content-type": "application/json", "webhook-id": id, "webhook-timestamp": timestamp, "webhook-signature": `v1,${signature}` },
        body,
      });
      return { status: response.status, ...(await response.json()) };
    },
    async stop() {
      child.kill("SIGTERM");
      await ended;
      await rm(data, { recursive: true, force: true });
    },
  };
}

/** Waits until something is so. */
export async function until(what, patience = 20_000) {
  const end = Date.now() + patience;
  for (;;) {
    const value = await what();
    if (value) return value;
    if (Date.now() > end) throw new Error(`still not so after ${patience} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
