// The admin, driven by grpcio from what reflection says.

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

test("every method of the admin answers by reflection, and refuses with a reason", async () => {
  const mesh = await startMesh("");
  try {
    const address = new URL(mesh.admin).host;
    const { stdout } = await promisify(execFile)(PYTHON, [join(HERE, "python/admin.py"), address, mesh.key]);
    const { methods, wrong } = JSON.parse(stdout);
    assert.deepEqual(wrong, []);
    assert.ok(methods.includes("weft.v1.AuditService/ListAudit") && methods.length > 45, `${methods.length} methods`);
    assert.ok(!methods.some((method) => method.includes("IngestService")), "what another port serves is not described");
  } finally {
    await mesh.stop();
  }
});
