/** Wrong input gives a coded error with a remedy, the exit code of docs/surface.md, and changes nothing. */
import assert from "node:assert/strict";
import { truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { numberedImage, runLeeward, startSystem, until, type Answer } from "../support/system.ts";

interface Refusal {
  readonly error: { readonly code: string; readonly message: string; readonly hint?: string };
}

function refused(answer: Answer, exit: number, code: string): Refusal["error"] {
  assert.equal(answer.code, exit, `${answer.stderr}\n${answer.stdout}`);
  const { error } = JSON.parse(answer.stdout) as Refusal;
  assert.equal(error.code, code, error.message);
  assert.ok(error.hint !== undefined && error.hint.length > 10, `"${error.message}" says nothing about what to do`);
  return error;
}

test("commands that need a running system say how to start one", async () => {
  refused(await runLeeward(["--state", "/nonexistent/leeward", "status", "--json"]), 4, "NOT_FOUND");
});

test("unknown commands and options exit with 2", async () => {
  assert.equal((await runLeeward(["frobnicate"])).code, 2);
  assert.equal((await runLeeward(["group", "protect", "x"])).code, 2);
  assert.equal((await runLeeward(["--version"])).code, 0);
  assert.equal((await runLeeward(["failover", "--help"])).code, 0);
});

test("wrong input to a running system", { timeout: 240_000 }, async (t) => {
  const system = await startSystem(t);
  const image = join(system.folder, "disk.img");
  await numberedImage(image, 8 << 20, 1);
  const groups = async () => (await system.client.groups()).map((group) => group.name);

  await t.test("an image that is not there", async () => {
    refused(
      await system.leeward("group", "protect", "one", "--disk", "tap:/nowhere/disk.img", "--json"),
      1,
      "IMAGE_MISSING",
    );
    assert.deepEqual(await groups(), []);
  });
  await t.test("an image without a byte in it", async () => {
    const empty = join(system.folder, "empty.img");
    writeFileSync(empty, "");
    truncateSync(empty, 0);
    refused(await system.leeward("group", "protect", "one", "--disk", `tap:${empty}`, "--json"), 1, "IMAGE_INVALID");
    assert.deepEqual(await groups(), []);
  });
  await t.test("a disk without a known kind, a name with bad letters, a machine without an agent", async () => {
    refused(await system.leeward("group", "protect", "one", "--disk", `floppy:${image}`, "--json"), 2, "USAGE");
    refused(await system.leeward("group", "protect", "No Name!", "--disk", `tap:${image}`, "--json"), 2, "USAGE");
    refused(
      await system.leeward("group", "protect", "one", "--machine", "nobody", "--disk", `tap:${image}`, "--json"),
      1,
      "AGENT_UNREACHABLE",
    );
    assert.deepEqual(await groups(), []);
  });
  await t.test("a group that is not there", async () => {
    refused(await system.leeward("group", "show", "nobody", "--json"), 4, "NOT_FOUND");
    refused(await system.leeward("failover", "nobody", "--source-lost", "--yes", "--json"), 4, "NOT_FOUND");
    refused(await system.leeward("operation", "show", "nothing", "--json"), 4, "NOT_FOUND");
  });
  await t.test("a protected group", async () => {
    const done = await system.leeward(
      "group",
      "protect",
      "one",
      "--disk",
      `tap:${image}`,
      "--interval",
      "1s",
      "--json",
    );
    assert.equal(done.code, 0, done.stderr);
    await until("protected", 60_000, async () => (await system.client.group("one")).phase === "protected");
    const epoch = (await system.client.group("one")).epoch;
    refused(
      await system.leeward("group", "protect", "two", "--disk", `tap:${image}`, "--json"),
      3,
      "DISK_ALREADY_PROTECTED",
    );
    const other = join(system.folder, "other.img");
    await numberedImage(other, 4 << 20, 2);
    refused(await system.leeward("group", "protect", "one", "--disk", `tap:${other}`, "--json"), 3, "REFUSED");
    refused(
      await system.leeward("failover", "one", "--point", "@nothing", "--source-lost", "--yes", "--json"),
      4,
      "POINT_NOT_FOUND",
    );
    refused(await system.leeward("failover", "one", "--json"), 2, "USAGE");
    refused(await system.leeward("test-failover", "cleanup", "one", "--json"), 4, "NOT_FOUND");
    refused(await system.leeward("export", "one", "--point", "@nothing", "--json"), 4, "POINT_NOT_FOUND");
    assert.deepEqual(await groups(), ["one"]);
    const after = await system.client.group("one");
    assert.equal(after.phase, "protected");
    assert.equal(after.epoch, epoch);
  });
});
