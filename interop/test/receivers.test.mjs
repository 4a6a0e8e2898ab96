// What Weft delivers is verified by receivers' own libraries; with one byte changed it is not.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { test } from "node:test";

import { Webhook as StandardWebhook } from "standardwebhooks";
import { Webhook as SvixWebhook } from "svix";

import { post, startMesh, startReceiver, tampered } from "../mesh.mjs";

const SENDER = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const RECEIVER = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

test("a delivery", async () => {
  const receiver = await startReceiver();
  const mesh = await startMesh(`
[[source]]
name = "shop"
verify = { scheme = "standard", secrets = ["${SENDER}"] }
[[subscription]]
name = "billing"
destination = { type = "http", url = "${receiver.url}", secret = "${RECEIVER}" }
`);
  try {
    const body = JSON.stringify({ type: "order.paid", total: 1 });
    const id = `msg_${randomUUID()}`;
    const now = new Date();
    const headers = {
      "webhook-id": id,
      "webhook-timestamp": String(Math.floor(now.getTime() / 1000)),
      "webhook-signature": new StandardWebhook(SENDER).sign(id, now, body),
    };
    const taken = await post(`${mesh.gateway}/api/v1/webhooks/shop/order-1`, headers, body);
    assert.equal(taken.status, 202);
    const [delivery] = await receiver.deliveries(1);
    for (const Webhook of [StandardWebhook, SvixWebhook]) {
      const verifier = new Webhook(RECEIVER);
      const envelope = verifier.verify(delivery.body.toString(), delivery.headers);
      assert.equal(envelope.eventId, taken.json.eventId);
      assert.deepEqual(envelope.data, JSON.parse(body));
      assert.throws(() => verifier.verify(tampered(delivery.body).toString(), delivery.headers));
    }
  } finally {
    await mesh.stop();
    await receiver.stop();
  }
});
