/** Who holds which secret, checked on the running system: the table of docs/decisions and of the design is a test. */
import assert from "node:assert/strict";
import { closeSync, openSync, readdirSync, readFileSync, readSync, statSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { siteFolder } from "../../src/embedded/layout.ts";
import { siteProcessesAlive } from "../../src/embedded/site-processes.ts";
import { numberedImage, startSystem, until, type System } from "../support/system.ts";

test(
  "no process and no file of the primary site knows the secondary's store, its disk keys, or Temporal",
  { timeout: 240_000 },
  async (t) => {
    const system = await startSystem(t);
    const image = join(system.folder, "disk.img");
    await numberedImage(image, 16 << 20, 3);
    await system.client.protect({ name: "secrets", disks: [`tap:${image}`], policy: { intervalMs: 1_000 } });
    await until("a point", 120_000, async () => (await system.client.group("secrets")).newestPoint !== undefined);

    const secrets = secretsOfSecondary(system);
    assert.ok(secrets.length >= 4, "the test found too few secrets to look for");

    await t.test("environment and arguments of every process", () => {
      const processes = siteProcessesAlive(siteFolder(system.state, "primary"));
      assert.ok(processes.length >= 6);
      for (const { pid } of processes) {
        for (const file of ["environ", "cmdline"])
          assertNone(secrets, readFileSync(`/proc/${pid}/${file}`, "latin1"), `/proc/${pid}/${file}`);
      }
    });
    await t.test("memory of every process", () => {
      for (const { pid } of siteProcessesAlive(siteFolder(system.state, "primary"))) {
        for (const [what, text] of secrets.filter(([name]) => name !== "Temporal's address"))
          assert.equal(memoryHas(pid, text), false, `${what} is in the memory of process ${pid}`);
      }
    });
    await t.test("files of the site", () => {
      for (const file of filesBelow(siteFolder(system.state, "primary"))) {
        if (statSync(file).size < 8 << 20) assertNone(secrets, readFileSync(file, "latin1"), file);
      }
    });
    await t.test("environment and arguments at the secondary, where only its store may carry credentials", () => {
      for (const { pid } of siteProcessesAlive(siteFolder(system.state, "secondary"))) {
        const command = readFileSync(`/proc/${pid}/cmdline`, "latin1");
        assertNone(
          secrets.filter(([name]) => name.startsWith("disk key")),
          command,
          `/proc/${pid}/cmdline`,
        );
        if (!command.includes("versitygw"))
          assertNone(
            secrets.filter(([name]) => name !== "Temporal's address"),
            readFileSync(`/proc/${pid}/environ`, "latin1"),
            `/proc/${pid}/environ`,
          );
      }
    });
  },
);

/** [what it is, its text] */
function secretsOfSecondary(system: System): [string, string][] {
  const folder = join(siteFolder(system.state, "secondary"), "master-target");
  const credentials = JSON.parse(readFileSync(join(folder, "s3-credentials.json"), "utf8")) as Record<string, string>;
  const keys = readFileSync(join(folder, "disk-keys.json"), "utf8").match(/[A-Za-z0-9+/=_-]{40,}/g) ?? [];
  const ports = JSON.parse(readFileSync(join(system.state, "ports.json"), "utf8")) as Record<string, number>;
  return [
    ["S3 access key", credentials["accessKey"] ?? ""],
    ["S3 secret key", credentials["secretKey"] ?? ""],
    ...keys.map((key, index): [string, string] => [`disk key ${index}`, key]),
    ["Temporal's address", `127.0.0.1:${ports["temporal"]}`],
  ];
}

function assertNone(secrets: readonly (readonly [string, string])[], text: string, where: string): void {
  for (const [what, secret] of secrets) assert.equal(text.includes(secret), false, `${what} stands in ${where}`);
}

/** Search a process's private memory for a text. */
function memoryHas(pid: number, text: string): boolean {
  const needle = Buffer.from(text);
  const maps = readFileSync(`/proc/${pid}/maps`, "utf8").split("\n");
  const memory = openMemory(pid);
  if (memory === undefined) return false;
  try {
    for (const line of maps) {
      const match = /^([0-9a-f]+)-([0-9a-f]+) rw/.exec(line);
      if (match === null) continue;
      const start = BigInt(`0x${match[1]}`);
      const length = Number(BigInt(`0x${match[2]}`) - start);
      if (length > 256 << 20) continue; // The guest's own memory.
      if (memory.read(start, length)?.includes(needle) === true) return true;
    }
    return false;
  } finally {
    memory.close();
  }
}

function openMemory(
  pid: number,
): { read: (start: bigint, length: number) => Buffer | undefined; close: () => void } | undefined {
  let descriptor: number;
  try {
    descriptor = openSync(`/proc/${pid}/mem`, "r");
  } catch {
    return undefined; // It ended.
  }
  return {
    read: (start, length) => {
      const buffer = Buffer.alloc(length);
      try {
        return buffer.subarray(0, readSync(descriptor, buffer, 0, length, start));
      } catch {
        return undefined; // A mapping that cannot be read, such as a device's.
      }
    },
    close: () => closeSync(descriptor),
  };
}

function* filesBelow(folder: string): Generator<string> {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) yield* filesBelow(path);
    else if (entry.isFile()) yield path;
  }
}
