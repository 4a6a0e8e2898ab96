// The admin and the gateway, driven by grpcio from what reflection says.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

import { startMesh } from "../mesh.mjs";

/** A python with interop/requirements.txt, as `make test-interop` provides it. */
const PYTHON = process.env.WEFT_INTEROP_PYTHON ?? fileURLToPath(new URL("../../target/interop/bin/python", import.meta.url));
const HERE = fileURLToPath(new URL("..", import.meta.url));

test("every method of the admin and of the gateway answers by reflection, and refuses with a reason", async () => {
  const mesh = await startMesh("");
  try {
    const address = new URL(mesh.admin).host;
    const { stdout } = await promisify(execFile)(PYTHON, [join(HERE, "python/reflected.py"), address, mesh.key]);
    const { methods, wrong } = JSON.parse(stdout);
    assert.deepEqual(wrong, []);
    assert.ok(methods.includes("weft.v1.AuditService/ListAudit") && methods.length > 45, `${methods.length} methods`);
    assert.ok(!methods.some((method) => method.includes("IngestService")), "what another port serves is not described");

    const gateway = await promisify(execFile)(PYTHON, [join(HERE, "python/reflected.py"), new URL(mesh.gateway).host, mesh.key]);
    assert.deepEqual(JSON.parse(gateway.stdout), {
      methods: ["weft.v1.IngestService/Publish", "weft.v1.IngestService/PublishStream"],
      wrong: [],
    });
  } finally {
    await mesh.stop();
  }
});
