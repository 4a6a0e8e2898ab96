// What Weft delivers in other formats and with other signatures is read by the libraries of receivers.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { createPublicKey, randomUUID, verify } from "node:crypto";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { HTTP } from "cloudevents";
import { Webhook } from "standardwebhooks";

import { post, startMesh, startReceiver, tampered } from "../mesh.mjs";

const SENDER = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const RECEIVER = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
/** Svix's published pair. */
const PRIVATE = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==";
const PUBLIC = "1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4=";
/** A python with interop/requirements.txt, as `make test-interop` provides it. */
const PYTHON = process.env.WEFT_INTEROP_PYTHON ?? fileURLToPath(new URL("../../target/interop/bin/python", import.meta.url));
const PROGRAM = fileURLToPath(new URL("../python/receiver.py", import.meta.url));

/** A mesh with one receiver, and a function that sends it events; `rest` is of the subscription. */
async function start(destination, options, rest = "") {
  const receiver = await startReceiver(options);
  const mesh = await startMesh(`
[[source]]
name = "shop"
verify = { scheme = "standard", secrets = ["${SENDER}"] }
[[subscription]]
name = "billing"
destination = { type = "http", url = "${receiver.url}", ${destination} }
${rest}
`);
  const send = async (data) => {
    const body = JSON.stringify(data);
    const id = `msg_${randomUUID()}`;
    const now = new Date();
    const headers = {
      "webhook-id": id,
      "webhook-timestamp": String(Math.floor(now.getTime() / 1000)),
      "webhook-signature": new Webhook(SENDER).sign(id, now, body),
    };
    const taken = await post(`${mesh.gateway}/api/v1/webhooks/shop/order-1`, headers, body);
    assert.equal(taken.status, 202, JSON.stringify(taken.json));
    return taken.json;
  };
  const stop = async () => {
    await mesh.stop();
    await receiver.stop();
  };
  return { receiver, send, stop };
}

/** What the python libraries make of a delivery. */
function python({ headers, body }) {
  const input = JSON.stringify({ headers, body: body.toString("base64") });
  const run = spawnSync(PYTHON, [PROGRAM, RECEIVER], { input, encoding: "utf8" });
  assert.equal(run.status, 0, run.stderr);
  return JSON.parse(run.stdout);
}

test("a CloudEvent, by both SDKs", async () => {
  const { receiver, send, stop } = await start(`secret = "${RECEIVER}", format = "cloudevents"`);
  try {
    const data = { type: "order.paid", total: 1, name: "Größe" };
    const { eventId } = await send(data);
    const [delivery] = await receiver.deliveries(1);
    new Webhook(RECEIVER).verify(delivery.body.toString(), delivery.headers);
    const event = HTTP.toEvent({ headers: delivery.headers, body: delivery.body.toString() });
    assert.ok(event.validate());
    assert.deepEqual([event.id, event.type, event.source, event.partitionkey], [eventId, "order.paid", "shop", "order-1"]);
    assert.equal(event.sequence, "1".padStart(20, "0"));
    assert.deepEqual(event.data, data);
    const expected = { id: eventId, type: "order.paid", source: "shop", partitionkey: "order-1", data };
    assert.deepEqual(python(delivery), { refused: true, event: expected });
  } finally {
    await stop();
  }
});

test("batches, by the CloudEvents SDK and as envelopes", async () => {
  for (const format of ["cloudevents", "envelope"]) {
    const rest = "batch = { max_events = 50 }";
    const { receiver, send, stop } = await start(`secret = "${RECEIVER}", format = "${format}"`, {}, rest);
    try {
      const ids = [];
      for (const number of [1, 2, 3, 4, 5]) ids.push((await send({ type: "order.changed", number })).eventId);
      const read = ({ headers, body }) => {
        new Webhook(RECEIVER).verify(body.toString(), headers);
        const events =
          format === "envelope" ? JSON.parse(body) : HTTP.toEvent({ headers, body: body.toString() });
        assert.equal(String(events.length), headers["weft-batch-size"]);
        const found = events.map((event) => event.eventId ?? event.id);
        assert.equal(found.at(-1), headers["webhook-id"]);
        return found;
      };
      let found = [];
      for (let count = 1; found.length < ids.length; count += 1) {
        found = (await receiver.deliveries(count)).flatMap(read);
      }
      assert.deepEqual(found, ids);
    } finally {
      await stop();
    }
  }
});

test("v1 by the python library, v1a by the cryptography of Node.js", async () => {
  for (const destination of [`secret = "${RECEIVER}"`, `secret = "${PRIVATE}", signature = "v1a"`]) {
    const { receiver, send, stop } = await start(destination);
    try {
      await send({ type: "order.paid", total: 1 });
      const [delivery] = await receiver.deliveries(1);
      const [version, signature] = delivery.headers["webhook-signature"].split(",");
      if (version === "v1") {
        assert.deepEqual(python(delivery), { refused: true, event: null });
        continue;
      }
      assert.equal(version, "v1a");
      const x = Buffer.from(PUBLIC, "base64").toString("base64url");
      const key = createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x }, format: "jwk" });
      const signed = (body) =>
        Buffer.concat([Buffer.from(`${delivery.headers["webhook-id"]}.${delivery.headers["webhook-timestamp"]}.`), body]);
      const holds = (body) => verify(null, signed(body), key, Buffer.from(signature, "base64"));
      assert.deepEqual([holds(delivery.body), holds(tampered(delivery.body))], [true, false]);
    } finally {
      await stop();
    }
  }
});

// Events come just when Node.js closes the idle connection.
test("a receiver of Node.js with a short keep-alive loses no attempt", async () => {
  const EVENTS = 10;
  const KEEP_ALIVE_MS = 1000;
  const { receiver, send, stop } = await start(`secret = "${RECEIVER}"`, { keepAliveTimeout: KEEP_ALIVE_MS });
  try {
    for (let sent = 1; sent <= EVENTS; sent += 1) {
      await send({ type: "order.changed", number: sent });
      await receiver.deliveries(sent);
      await new Promise((resolve) => setTimeout(resolve, KEEP_ALIVE_MS));
    }
    const deliveries = await receiver.deliveries(EVENTS);
    assert.deepEqual(
      deliveries.map(({ headers }) => [headers["weft-sequence"], headers["weft-attempt"]]),
      Array.from({ length: EVENTS }, (_, at) => [String(at + 1), "1"]),
    );
  } finally {
    await stop();
  }
});
