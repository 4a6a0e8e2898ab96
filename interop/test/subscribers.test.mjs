// Subscribers read events by the tail user's file alone, with the client library's own consumers.

import assert from "node:assert/strict";
import { test } from "node:test";

import { AckPolicy, jetstream, jetstreamManager } from "@nats-io/jetstream";
import { connect } from "@nats-io/transport-node";
import { Webhook } from "standardwebhooks";

import { post, startMesh } from "../mesh.mjs";

const SENDER = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

test("a subscriber", async () => {
  const mesh = await startMesh(`
[[source]]
name = "shop"
verify = { scheme = "standard", secrets = ["${SENDER}"] }
`);
  try {
    for (const number of [1, 2, 3]) {
      const [id, now, body] = [`evt_${number}`, new Date(), JSON.stringify({ type: "order.changed", number })];
      const headers = {
        "webhook-id": id,
        "webhook-timestamp": String(Math.floor(now.getTime() / 1000)),
        "webhook-signature": new Webhook(SENDER).sign(id, now, body),
      };
      const taken = await post(`${mesh.gateway}/api/v1/webhooks/shop/order-42`, headers, body);
      assert.equal(taken.status, 202, JSON.stringify(taken.json));
    }
    const { url: servers, user, password: pass } = await mesh.tail();
    const connection = await connect({ servers, user, pass });
    try {
      const js = jetstream(connection);
      const consumer = await js.consumers.get("EVENTS", { filter_subjects: "events.order-42" });
      const sequences = [];
      const messages = await consumer.consume();
      for await (const event of messages) {
        assert.equal(event.subject, "events.order-42");
        sequences.push(Number(event.headers.get("ce-sequence")));
        if (sequences.length === 3) messages.stop();
      }
      assert.deepEqual(sequences, [1, 2, 3]);

      // What is refused says so at once.
      const manager = await jetstreamManager(connection);
      const create = (config) => manager.consumers.add("EVENTS", config);
      await assert.rejects(create({ durable_name: "mine", ack_policy: AckPolicy.None }), /durable/);
      await assert.rejects(create({ name: "mine", ack_policy: AckPolicy.Explicit }), /ack_policy/);
      await assert.rejects(manager.streams.delete("EVENTS"));
      assert.equal((await manager.streams.info("EVENTS")).state.messages, 3);
    } finally {
      await connection.close();
    }
  } finally {
    await mesh.stop();
  }
});
