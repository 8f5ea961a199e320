import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { writeJsonFile } from "../../src/embedded/json-file.ts";
import type { ProcessSpec } from "../../src/embedded/managed-process.ts";
import { eventually, identify, signal } from "../../src/embedded/process-identity.ts";
import { readSiteStatus } from "../../src/embedded/site-leader.ts";
import { killSite, SITE_MARK, siteProcessesAlive } from "../../src/embedded/site-processes.ts";

const PROGRAM = new URL("../../src/main/leeward.ts", import.meta.url).pathname;
/** Starts a grandchild, as the master target starts QEMU, and lives on. */
const PARENT = `const { spawn } = require("node:child_process"); spawn(process.execPath, ["-e", "setInterval(() => {}, 1000)"], { stdio: "ignore" }); setInterval(() => {}, 1000);`;

function site(t: TestContext): { folder: string; lead: () => number } {
  const folder = mkdtempSync(join(tmpdir(), "leeward-site-"));
  const spec = (name: string, script: string, more: Partial<ProcessSpec> = {}): ProcessSpec => ({
    name,
    command: [process.execPath, "-e", script],
    environment: {},
    folder: join(folder, name),
    logFile: join(folder, "logs", `${name}.log`),
    needs: [],
    ...more,
  });
  writeJsonFile(join(folder, "site.json"), {
    site: "test",
    processes: [
      spec("parent", PARENT),
      spec("later", "setInterval(() => {}, 1000)", { needs: [join(folder, "permit")] }),
    ],
  });
  t.after(async () => {
    await killSite(folder, undefined);
    rmSync(folder, { recursive: true, force: true });
  });
  return {
    folder,
    lead: () => {
      const child = spawn(process.execPath, [PROGRAM, "site-leader", "--folder", folder], {
        detached: true,
        stdio: "ignore",
        env: { ...process.env, [SITE_MARK]: folder },
      });
      child.unref();
      assert.ok(child.pid);
      return child.pid;
    },
  };
}

const process_ = (folder: string, name: string) => readSiteStatus(folder)?.processes.find((one) => one.name === name);

test("a leader starts a process again that was killed, and one that waits for a file only when it is there", async (t) => {
  const { folder, lead } = site(t);
  lead();
  assert.ok(await eventually(() => process_(folder, "parent")?.state === "running", 10_000));
  assert.equal(process_(folder, "later")?.state, "waiting");
  const first = process_(folder, "parent")?.pid ?? 0;
  const identity = identify(first);
  assert.ok(identity !== undefined && signal(identity, "SIGKILL"));
  assert.ok(
    await eventually(
      () => process_(folder, "parent")?.state === "running" && process_(folder, "parent")?.pid !== first,
      10_000,
    ),
  );
  writeJsonFile(join(folder, "permit"), true);
  assert.ok(await eventually(() => process_(folder, "later")?.state === "running", 10_000));
});

test("losing a site ends every process of it, grandchildren too, and no other", async (t) => {
  const { folder, lead } = site(t);
  const other = site(t);
  lead();
  other.lead();
  assert.ok(
    await eventually(
      () => siteProcessesAlive(folder).length >= 3 && siteProcessesAlive(other.folder).length >= 3,
      15_000,
    ),
  );
  await killSite(folder, readSiteStatus(folder)?.leader);
  assert.deepEqual(siteProcessesAlive(folder), []);
  assert.ok(siteProcessesAlive(other.folder).length >= 3);
});

test("a leader that follows a killed one ends what the other left, then starts everything anew", async (t) => {
  const { folder, lead } = site(t);
  const first = lead();
  assert.ok(await eventually(() => siteProcessesAlive(folder).length >= 3, 15_000));
  const left = siteProcessesAlive(folder).filter((one) => one.pid !== first);
  const leader = identify(first);
  assert.ok(leader !== undefined && signal(leader, "SIGKILL"));
  const second = lead();
  assert.ok(
    await eventually(
      () => readSiteStatus(folder)?.leader.pid === second && process_(folder, "parent")?.state === "running",
      15_000,
    ),
  );
  for (const one of left) assert.notDeepEqual(identify(one.pid), one, "a process of the former leader is alive");
  assert.match(readFileSync(join(folder, "logs", "parent.log"), "utf8"), /start parent/);
});
