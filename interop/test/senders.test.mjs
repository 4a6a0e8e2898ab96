// Requests that senders' own libraries have signed are taken; with one byte changed they are not.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { after, before, test } from "node:test";

import { sign as signGithub } from "@octokit/webhooks-methods";
import { Webhook as StandardWebhook } from "standardwebhooks";
import Stripe from "stripe";
import { Webhook as SvixWebhook } from "svix";

import { post, startMesh, tampered } from "../mesh.mjs";

const GITHUB_SECRET = "It's a Secret to Everybody";
const STRIPE_SECRET = "whsec_test_secret_of_stripe";
const STANDARD_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

let mesh;

before(async () => {
  mesh = await startMesh(`
[[source]]
name = "github"
verify = { scheme = "github", secrets = ["${GITHUB_SECRET}"] }
[[source]]
name = "stripe"
verify = { scheme = "stripe", secrets = ["${STRIPE_SECRET}"] }
workflow = { pointer = "/data/object/id" }
[[source]]
name = "standard"
verify = { scheme = "standard", secrets = ["${STANDARD_SECRET}"] }
`);
});

after(() => mesh?.stop());

const webhook = (path) => `${mesh.gateway}/api/v1/webhooks/${path}`;

/** Posts what `headers(body)` signs, whole and with one byte changed, and again. */
async function takenOnlyWhole(url, body, headers) {
  const refused = await post(url, headers, tampered(body));
  assert.equal(refused.status, 401, JSON.stringify(refused.json));
  assert.equal(refused.json.code, "signature_invalid");
  const taken = await post(url, headers, body);
  assert.equal(taken.status, 202, JSON.stringify(taken.json));
  const again = await post(url, headers, body);
  assert.equal(again.status, 200);
  assert.deepEqual(again.json, { ...taken.json, duplicate: true });
  return taken.json;
}

test("GitHub: @octokit/webhooks-methods", async () => {
  const body = JSON.stringify({ action: "opened", number: 1 });
  const headers = {
    "content-type": "application/json",
    "x-github-event": "pull_request",
    "x-github-delivery": randomUUID(),
    "x-hub-signature-256": await signGithub(GITHUB_SECRET, body),
  };
  const receipt = await takenOnlyWhole(webhook("github/repo-1"), body, headers);
  assert.equal(receipt.sequenceNumber, 1);
});

test("Stripe: stripe", async () => {
  const body = JSON.stringify({ id: "evt_1", type: "charge.succeeded", data: { object: { id: "ch_7" } } });
  const header = Stripe.webhooks.generateTestHeaderString({ payload: body, secret: STRIPE_SECRET });
  const headers = { "content-type": "application/json", "stripe-signature": header };
  const receipt = await takenOnlyWhole(webhook("stripe"), body, headers);
  assert.equal(receipt.workflowId, "ch_7");
});

test("Stripe: a stale timestamp", async () => {
  const body = JSON.stringify({ id: "evt_2", type: "charge.succeeded", data: { object: { id: "ch_7" } } });
  const timestamp = Math.floor(Date.now() / 1000) - 3600;
  const header = Stripe.webhooks.generateTestHeaderString({ payload: body, secret: STRIPE_SECRET, timestamp });
  const refused = await post(webhook("stripe"), { "stripe-signature": header }, body);
  assert.equal(refused.status, 401);
  assert.equal(refused.json.code, "timestamp_out_of_window");
});

for (const [name, Webhook, prefix] of [
  ["standardwebhooks", StandardWebhook, "webhook"],
  ["svix", SvixWebhook, "svix"],
]) {
  test(`Standard Webhooks: ${name}`, async () => {
    const body = JSON.stringify({ type: "order.paid", data: { orderId: 1 } });
    const id = `msg_${randomUUID()}`;
    const now = new Date();
    const headers = {
      "content-type": "application/json",
      [`${prefix}-id`]: id,
      [`${prefix}-timestamp`]: String(Math.floor(now.getTime() / 1000)),
      [`${prefix}-signature`]: new Webhook(STANDARD_SECRET).sign(id, now, body),
    };
    const receipt = await takenOnlyWhole(webhook(`standard/${name}`), body, headers);
    assert.equal(receipt.workflowId, name);
  });
}
