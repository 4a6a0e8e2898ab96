// What the CloudEvents SDK sends is taken, in each of its modes.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { after, before, test } from "node:test";

import { CloudEvent, HTTP } from "cloudevents";

import { post, startMesh } from "../mesh.mjs";

let mesh;

before(async () => {
  mesh = await startMesh("");
});

after(() => mesh?.stop());

const event = (fields) =>
  new CloudEvent({
    id: randomUUID(),
    source: "/orders",
    type: "order.paid",
    partitionkey: "order-42",
    data: { orderId: 42 },
    ...fields,
  });

const send = ({ headers, body }, key = mesh.key) =>
  post(`${mesh.gateway}/api/v1/events`, { ...headers, "x-api-key": key }, body);

for (const mode of ["binary", "structured"]) {
  test(`one event, ${mode}`, async () => {
    const sent = event();
    const taken = await send(HTTP[mode](sent));
    assert.equal(taken.status, 202, JSON.stringify(taken.json));
    assert.equal(taken.json.workflowId, "order-42");
    const again = await send(HTTP[mode](sent));
    assert.equal(again.status, 200);
    assert.deepEqual(again.json, { ...taken.json, duplicate: true });
    const kept = await fetch(`${mesh.gateway}/api/v1/events/${taken.json.eventId}`, {
      headers: { authorization: `Bearer ${mesh.key}` },
    });
    const envelope = await kept.json();
    assert.deepEqual(envelope.data, { orderId: 42 });
    assert.equal(envelope.deliveryId, sent.id);
    assert.equal(envelope.source, "/orders");
    assert.equal(envelope.time, sent.time);
  });
}

test("a batch keeps its order", async () => {
  const batch = [1, 2, 3].map((n) => event({ partitionkey: "batch", data: { n } }));
  const taken = await send({
    headers: { "content-type": "application/cloudevents-batch+json" },
    body: JSON.stringify(batch.map((one) => one.toJSON())),
  });
  assert.equal(taken.status, 200, JSON.stringify(taken.json));
  assert.deepEqual(
    taken.json.results.map(({ sequenceNumber }) => sequenceNumber),
    [1, 2, 3],
  );
});

test("a wrong key", async () => {
  const refused = await send(HTTP.binary(event()), `${mesh.key.slice(0, -1)}?`);
  assert.equal(refused.status, 401);
  assert.equal(refused.json.code, "key_invalid");
});
