import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtemp, open, rm, stat, truncate } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { test, type TestContext } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { createGuestImages, ensureGuestTemplates } from "../../src/embedded/guest.ts";
import { findTool } from "../../src/embedded/tools.ts";

const run = promisify(execFile);

test("guest images are sparse, bootable, and fresh for each who asks", async (context) => {
  const folder = await temporaryFolder(context);
  const images = await createGuestImages(folder, { recordsPerSecond: 25 });
  assert.equal((await stat(images.system)).size, 96 << 20);
  assert.equal((await stat(images.data)).size, 32 << 20);
  assert.ok((await stat(images.system)).blocks * 512 < 40 << 20, "holes stay holes");

  await using file = await open(images.system, "r");
  const sector = Buffer.alloc(512);
  await file.read(sector, 0, 512, 0);
  assert.equal(sector.readUInt16LE(510), 0xaa55, "a boot sector");
  assert.notDeepEqual(sector.subarray(0, 16), Buffer.alloc(16), "with a boot loader in it");
  const { stdout } = await run(await findTool("debugfs"), [
    "-R",
    "cat /etc/ledger.conf",
    `${images.system}?offset=1048576`,
  ]);
  assert.equal(stdout, "hz=25\nport=8080\n");

  const templates = await ensureGuestTemplates();
  await truncate(images.system, 0);
  await createGuestImages(folder);
  assert.equal((await stat(images.system)).size, 96 << 20);
  assert.equal((await stat(templates.systemImage)).size, 96 << 20);
});

test("the ledger's own tests hold, and its program verifies files on this host", async (context) => {
  const sources = fileURLToPath(new URL("../../guest/ledgerd", import.meta.url));
  await run(await findTool("go"), ["test", "./..."], {
    cwd: sources,
    env: { ...process.env, CGO_ENABLED: "0", GOFLAGS: "" },
  });
  const { ledgerd } = await ensureGuestTemplates();
  const folder = await temporaryFolder(context);
  const { stdout } = await run(ledgerd, ["verify", path.join(folder, "none.log")]);
  assert.deepEqual(JSON.parse(stdout), { last: 0, last_ms: 0, ok: true, torn_tail_bytes: 0, chain: "genesis" });
});

async function temporaryFolder(context: TestContext): Promise<string> {
  const folder = await mkdtemp(path.join(tmpdir(), "leeward-guest-"));
  context.after(() => rm(folder, { recursive: true, force: true }));
  return folder;
}
