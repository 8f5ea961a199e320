/** `leeward rescue` and `leeward store` as programs, on a folder with a description of the store, credentials and keys, and nothing else that runs. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { systemClock } from "../../src/adapters/clock/system-clock.ts";
import { systemRandom } from "../../src/adapters/random/system-random.ts";
import { s3ObjectStore } from "../../src/adapters/s3/s3-object-store.ts";
import type { RescueExport, RescueListing, StoreFigures, StoreReport } from "../../src/cli/rescue-contract.ts";
import { MARKED, SMALL_GROUP, SMALL_ROOT, smallStore, type SmallStore } from "../support/small-store.ts";
import { startVersitygw, type Versitygw } from "../support/versitygw.ts";

const program = join(import.meta.dirname, "..", "..", "src", "main", "leeward.ts");

interface Kit {
  readonly folder: string;
  readonly server: Versitygw;
  readonly made: SmallStore;
}

/** What somebody has after everything else is lost. */
async function kit(t: TestContext): Promise<Kit> {
  const folder = await mkdtemp(join(tmpdir(), "leeward-kit-"));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const server = await startVersitygw();
  t.after(() => server.stop());
  const { endpoint, region, accessKey, secretKey } = server;
  const store = s3ObjectStore(
    { endpoint, region, bucket: "leeward", accessKey, secretKey },
    { clock: systemClock, random: systemRandom },
  );
  await store.ensureBucket();
  const made = await smallStore(store);
  await store.close();
  await writeFile(
    join(folder, "store.yaml"),
    `endpoint: ${endpoint}\nbucket: leeward\nroot: ${SMALL_ROOT}\ncredentialsFile: s3.json\nkeysFile: disk-keys.json\n`,
  );
  await writeFile(join(folder, "s3.json"), JSON.stringify({ accessKey, secretKey }));
  await writeKeys(folder, made, made.keys);
  return { folder, server, made };
}

async function writeKeys(folder: string, made: SmallStore, keys: ReadonlyMap<string, Uint8Array>): Promise<void> {
  const base64 = (key: Uint8Array): string => Buffer.from(key).toString("base64");
  const disks = Object.fromEntries([...keys].map(([diskId, key]) => [diskId, base64(key)]));
  await writeFile(
    join(folder, "disk-keys.json"),
    JSON.stringify({ format: 1, tenantKey: base64(made.tenantKey), disks }),
  );
}

function start(t: TestContext, words: readonly string[]) {
  // Nothing of this machine's own may help: no state folder, no environment but the path.
  const child = spawn(process.execPath, [program, ...words], { cwd: tmpdir(), env: { PATH: process.env["PATH"] } });
  t.after(() => child.kill("SIGKILL"));
  const output = { stdout: "", stderr: "" };
  child.stdout.on("data", (data: Buffer) => (output.stdout += data.toString()));
  child.stderr.on("data", (data: Buffer) => (output.stderr += data.toString()));
  const ended = once(child, "close").then(([code]) => ({ code: code as number, ...output }));
  return { child, output, ended };
}

const leeward = (t: TestContext, ...words: string[]) => start(t, words).ended;

async function assertImages(folder: string, made: SmallStore, barrier: number): Promise<void> {
  for (const [diskId, expected] of made.states.get(barrier)!)
    assert.ok((await readFile(join(folder, `${diskId}.raw`))).equals(expected), `${diskId} at ${barrier}`);
}

async function nbd(program: string, ...words: string[]): Promise<string> {
  const child = spawn(program, words, { stdio: ["ignore", "pipe", "pipe"] });
  let text = "";
  child.stdout.on("data", (data: Buffer) => (text += data.toString()));
  child.stderr.on("data", (data: Buffer) => (text += data.toString()));
  const [code] = (await once(child, "close")) as [number];
  assert.equal(code, 0, `${program} ${words.join(" ")}: ${text}`);
  return text;
}

test("A bucket and its keys are enough to list what there is and to restore any of it", async (t) => {
  const { folder, made } = await kit(t);
  const file = join(folder, "store.yaml");
  const listed = await leeward(t, "rescue", "list", "--store", file, "--json");
  assert.equal(listed.code, 0, listed.stderr);
  const { groups } = JSON.parse(listed.stdout) as RescueListing;
  assert.equal(groups.length, 1);
  const [group] = groups;
  assert.deepEqual([group!.id, group!.activeSite, group!.activeBranch], [SMALL_GROUP, "secondary", "x-1"]);
  assert.deepEqual(
    group!.points.map(({ id }) => Number.parseInt(id.slice(14), 16)),
    [...made.states.keys()].sort((a, b) => b - a),
  );
  assert.deepEqual([...new Set(group!.points.map(({ branch }) => branch))].sort(), ["root", "x-1"]);
  assert.deepEqual(
    group!.branches.map(({ branch, parent }) => [branch, parent]),
    [
      ["root", null],
      ["x-1", "root"],
    ],
  );
  const text = await leeward(t, "rescue", "list", "--store", file);
  assert.match(text.stdout, /@before the move/);

  const left = group!.points.find(({ branch, id }) => branch === "root" && id.endsWith("5"))!; // Not on the active branch.
  for (const [selector, barrier] of [
    ["latest", 8],
    ["@before the move", MARKED],
    [left.id, 5],
    [group!.points[2]!.cutAt, 4],
  ] as const) {
    const to = join(folder, `to-${barrier}`);
    const restored = await leeward(
      t,
      "rescue",
      "restore",
      SMALL_GROUP,
      "--store",
      file,
      "--point",
      selector,
      "--to",
      to,
    );
    assert.equal(restored.code, 0, restored.stderr);
    assert.match(restored.stderr, /100\.0 % of .*, done/);
    await assertImages(to, made, barrier);
    assert.equal((await readdir(to)).length, 2);
  }
  const again = await leeward(t, "rescue", "restore", SMALL_GROUP, "--store", file, "--to", join(folder, "to-8"));
  assert.deepEqual([again.code, again.stderr.includes("REFUSED")], [3, true]);
  const one = await leeward(
    t,
    "rescue",
    "restore",
    SMALL_GROUP,
    "--store",
    file,
    "--to",
    join(folder, "to-8"),
    "--yes",
    "--disk",
    "web-data",
  );
  assert.equal(one.code, 0, one.stderr);
  await assertImages(join(folder, "to-8"), made, 8);
});

test("A point is exported read-only as it was, and writable on an overlay that leaves nothing behind", async (t) => {
  const { folder, made } = await kit(t);
  const scratch = join(folder, "scratch");
  await mkdir(scratch);
  const words = [
    "rescue",
    "export",
    SMALL_GROUP,
    "--store",
    join(folder, "store.yaml"),
    "--scratch",
    scratch,
    "--json",
  ];
  const serving = async (more: readonly string[], work: (opened: RescueExport) => Promise<void>): Promise<void> => {
    const { child, output, ended } = start(t, [...words, ...more]);
    while (!output.stderr.includes("Serving")) {
      assert.equal(child.exitCode, null, output.stderr);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    await work(JSON.parse(output.stdout) as RescueExport);
    child.kill("SIGINT");
    assert.equal((await ended).code, 130);
    assert.deepEqual(await readdir(scratch), []);
  };
  const content = async (url: string): Promise<Buffer> => {
    const copy = join(folder, "copy");
    await rm(copy, { force: true });
    await nbd("nbdcopy", url, copy);
    return readFile(copy);
  };
  await serving(["--point", "@before the move"], async ({ disks }) => {
    assert.equal(disks.length, 2);
    for (const { id, url } of disks) assert.ok((await content(url)).equals(made.states.get(MARKED)!.get(id)!), id);
    assert.match(await nbd("nbdinfo", disks[0]!.url), /is_read_only: true/);
  });
  await serving(["--writable"], async ({ disks }) => {
    const disk = disks.find(({ id }) => id === "web-system")!;
    const other = join(folder, "other");
    const changed = Buffer.from(made.states.get(5)!.get(disk.id)!);
    changed.fill("written by the test ", 4096, 300_000);
    await writeFile(other, changed);
    await nbd("nbdcopy", other, disk.url);
    assert.ok((await content(disk.url)).equals(changed));
  });
  await serving(["--disk", "web-system"], async ({ disks }) => {
    assert.equal(disks.length, 1);
    assert.ok((await content(disks[0]!.url)).equals(made.states.get(8)!.get("web-system")!), "the overlay is gone");
  });
});

test("A check names what is damaged and what it costs, and exits with 1; the figures say what the store takes", async (t) => {
  const { folder, made, server } = await kit(t);
  const file = join(folder, "store.yaml");
  const sound = await leeward(t, "store", "check", "--store", file, "--read-data", "100", "--json");
  assert.equal(sound.code, 0, sound.stderr);
  const report = JSON.parse(sound.stdout) as StoreReport;
  assert.deepEqual([report.ok, report.findings, report.points.length], [true, [], made.states.size]);
  const stats = await leeward(t, "store", "stats", "--store", file, "--price", "0.02", "--json");
  const figures = JSON.parse(stats.stdout) as StoreFigures;
  assert.equal(figures.groups[0]!.points, made.states.size);
  assert.ok(figures.disks.every(({ compressionRatio }) => compressionRatio !== null && compressionRatio > 1));
  assert.ok(figures.monthly !== null && figures.monthly > 0);
  assert.match((await leeward(t, "store", "stats", "--store", file)).stdout, /COMPRESSION/);

  const bucket = join(server.root, "leeward");
  const segments = join(bucket, SMALL_ROOT, "disks", "web-system", "segments");
  const [name] = (await readdir(segments)).sort();
  const path = join(segments, name!);
  const bytes = await readFile(path);
  bytes[bytes.length - 300]! ^= 8;
  await writeFile(path, bytes);
  const shallow = await leeward(t, "store", "check", "--store", file, "--json");
  assert.ok([0, 1].includes(shallow.code), shallow.stderr);
  const deep = await leeward(t, "rescue", "check", "--store", file, "--read-data", "100%", "--json");
  assert.equal(deep.code, 1, deep.stderr);
  const { findings, ok } = JSON.parse(deep.stdout) as StoreReport;
  assert.deepEqual(
    [ok, findings.length, findings[0]!.code, findings[0]!.disk],
    [false, 1, "OBJECT_CORRUPT", "web-system"],
  );
  assert.ok(findings[0]!.key.endsWith(name!) && findings[0]!.points.length > 0 && findings[0]!.blocks!.length > 0);
  const text = await leeward(t, "store", "check", "--store", file, "--read-data", "100");
  assert.equal(text.code, 1);
  assert.match(text.stdout, /OBJECT_CORRUPT .*segments[^]*costs blocks/);
  const options = [
    "--endpoint",
    server.endpoint,
    "--bucket",
    "leeward",
    "--root",
    SMALL_ROOT,
    "--credentials",
    join(folder, "s3.json"),
  ];
  const blind = await leeward(t, "store", "check", ...options, "--read-data", "100", "--json");
  assert.equal(blind.code, 1, blind.stderr);
  const seen = JSON.parse(blind.stdout) as StoreReport;
  assert.ok(seen.findings[0]!.suspectPoints.length > 0 && seen.disks.every(({ keyHeld }) => !keyHeld));
});

test("What is missing or wrong in the kit is said with what to do, and one disk's key keeps nobody from the others", async (t) => {
  const { folder, made, server } = await kit(t);
  const file = join(folder, "store.yaml");
  const options = [
    "--endpoint",
    server.endpoint,
    "--bucket",
    "leeward",
    "--root",
    SMALL_ROOT,
    "--credentials",
    join(folder, "s3.json"),
  ];
  const byOptions = await leeward(t, "rescue", "list", ...options, "--keys", join(folder, "disk-keys.json"));
  assert.equal(byOptions.code, 0, byOptions.stderr);
  const expectFault = async (words: readonly string[], code: string, exit: number): Promise<void> => {
    const ended = await leeward(t, "rescue", ...words, "--json");
    const { error } = JSON.parse(ended.stdout) as { error: { code: string; hint?: string } };
    assert.deepEqual([error.code, ended.code], [code, exit], ended.stderr);
    assert.ok(error.hint, `${code} has a hint`);
  };
  await expectFault(["list"], "CONFIG_INVALID", 2);
  await expectFault(["list", ...options], "CONFIG_INVALID", 2);
  await expectFault(["list", ...options, "--keys", join(folder, "none.json")], "CONFIG_INVALID", 2);
  await expectFault(["list", "--store", file, "--root", "elsewhere"], "NOT_FOUND", 4);
  await expectFault(["list", "other", "--store", file], "NOT_FOUND", 4);
  await expectFault(
    ["restore", SMALL_GROUP, "--store", file, "--to", folder, "--point", "@nothing"],
    "POINT_NOT_FOUND",
    4,
  );
  await expectFault(["restore", SMALL_GROUP, "--store", file, "--to", folder, "--disk", "other"], "NOT_FOUND", 4);
  const credentials = join(folder, "wrong.json");
  await writeFile(credentials, JSON.stringify({ accessKey: "nobody", secretKey: "nothing" }));
  await expectFault(["list", "--store", file, "--credentials", credentials], "STORE_DENIED", 1);

  await writeKeys(folder, made, new Map([...made.keys].map(([diskId]) => [diskId, new Uint8Array(32).fill(1)])));
  await expectFault(["restore", SMALL_GROUP, "--store", file, "--to", folder], "KEY_REJECTED", 1);
  await writeKeys(folder, made, new Map([["web-system", made.keys.get("web-system")!]]));
  const listed = await leeward(t, "rescue", "list", "--store", file, "--json");
  const [group] = (JSON.parse(listed.stdout) as RescueListing).groups;
  assert.deepEqual(
    group!.disks.map(({ id, fault }) => [id, fault?.code]),
    [
      ["web-data", "KEY_MISSING"],
      ["web-system", undefined],
    ],
  );
  await expectFault(["restore", SMALL_GROUP, "--store", file, "--to", folder], "KEY_MISSING", 1);
  const half = join(folder, "half");
  const restored = await leeward(
    t,
    ...[
      "rescue",
      "restore",
      SMALL_GROUP,
      "--store",
      file,
      "--to",
      half,
      "--disk",
      "web-system",
      "--point",
      "@before the move",
    ],
  );
  assert.equal(restored.code, 0, restored.stderr);
  assert.deepEqual(await readdir(half), ["web-system.raw"]);
  assert.ok((await readFile(join(half, "web-system.raw"))).equals(made.states.get(MARKED)!.get("web-system")!));
});
