// Subscribers read events with only the tail user's file, with the client libraries' own consumers; the programs of
// docs/nats.md run as they are printed.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { AckPolicy, jetstream, jetstreamManager } from "@nats-io/jetstream";
import { connect } from "@nats-io/transport-node";
import { Webhook } from "standardwebhooks";

import { post, startMesh } from "../mesh.mjs";

const SENDER = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const SOURCE = `
[[source]]
name = "shop"
verify = { scheme = "standard", secrets = ["${SENDER}"] }
`;
/** A python with interop/requirements.txt, as `make test-interop` provides it. */
const PYTHON = process.env.WEFT_INTEROP_PYTHON ?? fileURLToPath(new URL("../../target/interop/bin/python", import.meta.url));
const HERE = fileURLToPath(new URL("..", import.meta.url));
/** How long a program may take to print its lines. */
const PATIENCE_MS = 60_000;

/** Posts an event of workflow `order-42`. */
async function send(mesh, number) {
  const [id, now, body] = [`evt_${number}`, new Date(), JSON.stringify({ type: "order.changed", number })];
  const headers = {
    "webhook-id": id,
    "webhook-timestamp": String(Math.floor(now.getTime() / 1000)),
    "webhook-signature": new Webhook(SENDER).sign(id, now, body),
  };
  const accepted = await post(`${mesh.gateway}/api/v1/webhooks/shop/order-42`, headers, body);
  assert.equal(accepted.status, 202, JSON.stringify(accepted.json));
}

/** Starts a program; `lines` waits for its first `count` lines. */
function start(program, args, cwd) {
  const child = spawn(program, args, { cwd, env: { ...process.env, PYTHONUNBUFFERED: "1" } });
  const printed = [];
  let errors = "";
  let notify = () => {};
  createInterface({ input: child.stdout }).on("line", (line) => {
    printed.push(line);
    notify();
  });
  child.stderr.on("data", (text) => (errors += text));
  const ended = new Promise((resolve) => child.once("close", resolve));
  ended.then(() => notify());
  return {
    async lines(count) {
      const deadline = Date.now() + PATIENCE_MS;
      while (printed.length < count) {
        if (child.exitCode !== null) throw new Error(`ended with ${child.exitCode}: ${errors}`);
        if (Date.now() > deadline) throw new Error(`printed only ${JSON.stringify(printed)}: ${errors}`);
        await new Promise((resolve) => {
          notify = resolve;
          setTimeout(resolve, deadline - Date.now()).unref();
        });
      }
      return printed.slice(0, count);
    },
    async stop() {
      child.kill("SIGKILL");
      await ended;
    },
  };
}

/** The first block of a language in a page. */
async function block(page, language) {
  const text = await readFile(new URL(`../../${page}`, import.meta.url), "utf8");
  const found = new RegExp(`^\`\`\`${language}\\n([^]*?)^\`\`\`$`, "m").exec(text);
  assert.ok(found, `${page} has no block of ${language}`);
  return found[1];
}

test("nats.js", async () => {
  const mesh = await startMesh(SOURCE);
  try {
    for (const number of [1, 2, 3]) await send(mesh, number);
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

      // Refusals are immediate.
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

test("nats-py", async () => {
  const mesh = await startMesh(SOURCE);
  try {
    for (const number of [1, 2, 3]) await send(mesh, number);
    const subscriber = start(PYTHON, [join(HERE, "python/subscriber.py"), mesh.tailUrl, "events.order-42", "3"], HERE);
    const found = JSON.parse((await subscriber.lines(1))[0]);
    await subscriber.stop();
    assert.deepEqual(found.ordered, [1, 2, 3]);
    assert.deepEqual(found.pull, [1, 2, 3]);
    assert.match(found.durable, /durable/);
    assert.match(found.acks, /ack_policy/);
    for (const operation of ["publish", "delete", "purge", "commands"]) {
      assert.ok(found[operation], `${operation} is refused: ${JSON.stringify(found)}`);
    }
    assert.ok(found.violations.some((text) => /violation/i.test(text)), JSON.stringify(found));
    // Nothing was lost by it.
    await send(mesh, 4);
    const again = start(PYTHON, [join(HERE, "python/subscriber.py"), mesh.tailUrl, "events.>", "4"], HERE);
    assert.deepEqual(JSON.parse((await again.lines(1))[0]).ordered, [1, 2, 3, 4]);
    await again.stop();
  } finally {
    await mesh.stop();
  }
});

test("the programs of docs/nats.md", async (context) => {
  const mesh = await startMesh(SOURCE);
  // Below this folder, so that node finds the libraries.
  const folder = await mkdtemp(join(HERE, "node_modules/.weft-"));
  try {
    await symlink(mesh.data, join(folder, "weft-data"));
    await writeFile(join(folder, "tail.py"), await block("docs/nats.md", "python"));
    await writeFile(join(folder, "tail.mjs"), await block("docs/nats.md", "js"));
    for (const number of [1, 2]) await send(mesh, number);
    let sent = 2;
    for (const [program, file] of [[PYTHON, "tail.py"], [process.execPath, "tail.mjs"]]) {
      await context.test(file, async () => {
        const subscriber = start(program, [file], folder);
        try {
          const stored = await subscriber.lines(sent);
          stored.forEach((line, at) => assert.match(line, new RegExp(`^0*${at + 1} order.changed `)));
          // What is accepted later arrives as well.
          sent += 1;
          await send(mesh, sent);
          assert.match((await subscriber.lines(sent)).at(-1), new RegExp(`^0*${sent} order.changed .*number":${sent}`));
        } finally {
          await subscriber.stop();
        }
      });
    }
  } finally {
    await rm(folder, { recursive: true });
    await mesh.stop();
  }
});
