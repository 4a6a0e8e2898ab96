// Destinations that other libraries read or implement: a JetStream stream read by nats-py, and a gRPC service by grpcio.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { post, startMesh } from "../mesh.mjs";

/** A python with interop/requirements.txt, as `make test-interop` provides it. */
const PYTHON = process.env.WEFT_INTEROP_PYTHON ?? fileURLToPath(new URL("../../target/interop/bin/python", import.meta.url));
const HERE = fileURLToPath(new URL("..", import.meta.url));
/** How long a program may take to print a line. */
const PATIENCE_MS = 90_000;
const NUMBERS = [1, 2, 3];

/** Starts a python program; `line` is its next line. */
function start(program, ...args) {
  const child = spawn(PYTHON, [join(HERE, "python", program), ...args], { stdio: ["ignore", "pipe", "inherit"] });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  return {
    async line() {
      const late = setTimeout(() => child.kill("SIGKILL"), PATIENCE_MS);
      const { value, done } = await lines.next();
      clearTimeout(late);
      assert.ok(!done, `${program} ended without another line`);
      return value;
    },
    stop: () => child.kill("SIGKILL"),
  };
}

/** Publishes an event of workflow `order.42`. */
async function send(mesh, number) {
  const headers = { "x-api-key": mesh.key, "content-type": "application/json", "idempotency-key": `evt_${number}` };
  const body = JSON.stringify({ type: "order.paid", workflowId: "order.42", data: { number } });
  const accepted = await post(`${mesh.gateway}/api/v1/events`, headers, body);
  assert.equal(accepted.status, 202, JSON.stringify(accepted.json));
}

test("a stream of the mesh's server, read by nats-py", async () => {
  const mesh = await startMesh(`
[nats]
publish = ["orders.>"]
[[subscription]]
name = "orders"
retry = { max_retries = 50, base = "100ms", max = "1s" }
destination = { type = "nats", subject = "orders.{workflow}.{type}", stream = "ORDERS" }
`);
  const stream = start("stream.py", join(mesh.data, "nats/app.url"), "ORDERS", "orders.>", String(NUMBERS.length));
  try {
    assert.equal(await stream.line(), "created");
    for (const number of NUMBERS) await send(mesh, number);
    const stored = JSON.parse(await stream.line());
    stored.forEach((message, index) => {
      assert.equal(message.subject, "orders.order%2E42.order%2Epaid");
      assert.deepEqual(message.data, { number: NUMBERS[index] });
      assert.equal(Number(message.headers["ce-sequence"]), NUMBERS[index]);
      assert.equal(message.headers["ce-type"], "order.paid");
      assert.equal(message.headers["ce-partitionkey"], "order.42");
      assert.equal(message.headers["Nats-Msg-Id"], message.headers["ce-id"]);
      assert.equal(message.headers["weft-subscription"], "orders");
    });
  } finally {
    stream.stop();
    await mesh.stop();
  }
});

test("a service of grpcio", async () => {
  const handler = start("handler.py", join(HERE, "../proto/proto"), String(NUMBERS.length));
  try {
    const port = await handler.line();
    const mesh = await startMesh(`
[[subscription]]
name = "billing"
retry = { max_retries = 10, base = "50ms", max = "1s" }
destination = { type = "grpc", url = "http://127.0.0.1:${port}" }
`);
    try {
      for (const number of NUMBERS) await send(mesh, number);
      const handled = JSON.parse(await handler.line());
      handled.forEach((delivery, index) => {
        assert.equal(delivery.subscription, "billing");
        assert.deepEqual([delivery.workflow, delivery.type], ["order.42", "order.paid"]);
        assert.equal(delivery.sequence, NUMBERS[index]);
        assert.deepEqual(delivery.data, { number: NUMBERS[index] });
        assert.ok(delivery.attempt >= 2 && delivery.epoch > 0, JSON.stringify(delivery));
        assert.equal(delivery.previous, index === 0 ? "" : handled[index - 1].id);
        assert.ok(delivery.deadline > 0 && delivery.deadline <= 15, JSON.stringify(delivery));
      });
    } finally {
      await mesh.stop();
    }
  } finally {
    handler.stop();
  }
});
