/** What the source site does when something is missing, full, fenced or asked for; with real taps and links, and a fake mover. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { Redis } from "ioredis";
import { Fault } from "#model/fault.ts";
import type { ReplicationOrder } from "#ports/replication.ts";
import { SECTOR } from "../capture/write-history.ts";
import { startFakeMover, type FakeMover, type FakePoint } from "../support/fake-mover.ts";
import { createSiteCache } from "../../src/process-server/site-cache.ts";
import {
  eventually,
  startSourceSite,
  testLog,
  testOrder,
  type Machine,
  type SiteOptions,
  type SourceSite,
} from "../support/source-site.ts";

const BLOCK = 4096;
const BLOCKS = 4096;

interface One {
  readonly site: SourceSite;
  readonly mover: FakeMover;
  readonly machine: Machine;
  write(block: number, data: Buffer): Promise<void>;
  put(more: Partial<ReplicationOrder>): Promise<void>;
  state(): Promise<string>;
  cut(timeoutMs?: number): Promise<{ barrier: number; cutAtMs: number }>;
  assertSame(): void;
}

/** One machine with one disk of 16 MiB, seeded and live. */
async function one(
  t: { after(work: () => Promise<void>): void },
  options: SiteOptions & {
    readonly order?: Partial<ReplicationOrder>;
    readonly commit?: () => Promise<void>;
    readonly storeId?: string;
    readonly onPoint?: (point: FakePoint) => void;
  } = {},
): Promise<One> {
  const site = await startSourceSite(options);
  t.after(() => site.close());
  const mover = await startFakeMover({
    link: await site.authority.link("secondary", "master-target", "mt"),
    ...(options.storeId === undefined ? {} : { storeId: options.storeId }),
    ...(options.onPoint === undefined ? {} : { onPoint: options.onPoint }),
    onStep: async (step) => {
      if (step === "commit") await options.commit?.();
    },
  });
  t.after(() => mover.close());
  const machine = await site.addMachine("machine", [{ diskId: "disk", image: numbered(0, BLOCKS) }]);
  machine.startAgent();
  const members = [{ machine: "machine", disks: [{ diskId: "disk", source: machine.sources[0]! }] }];
  let version = 0;
  const put = async (more: Partial<ReplicationOrder>): Promise<void> => {
    version += 1;
    await site.processServer.putOrder({
      signed: site.sign(testOrder("group", mover.port, members, { ...options.order, ...more, version })),
    });
  };
  await put({});
  await eventually("the first point", () => mover.points > 0);
  const [disk] = await machine.attach();
  return {
    site,
    mover,
    machine,
    put,
    write: (block, data) => disk!.write(data, block * BLOCK, false),
    state: async () => (await site.processServer.groupState({ groupId: "group" })).state,
    cut: (timeoutMs = 15_000) =>
      site.processServer.cutNow({ groupId: "group", operationId: randomBytes(8).toString("hex"), timeoutMs }),
    assertSame() {
      assert.ok(mover.images.get("disk")!.equals(readFileSync(machine.images[0]!)), "the target is the source");
      assert.deepEqual(mover.errors, []);
    },
  };
}

async function startRedis(t: {
  after(work: () => Promise<void>): void;
}): Promise<{ readonly client: Redis; readonly stop: () => Promise<void> }> {
  const folder = mkdtempSync(join(tmpdir(), "leeward-redis-"));
  const path = join(folder, "redis.sock");
  const child = spawn(
    "redis-server",
    ["--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no", "--dir", folder],
    { stdio: "ignore" },
  );
  const ended = once(child, "exit");
  const client = new Redis(path, { maxRetriesPerRequest: 0, enableOfflineQueue: false, retryStrategy: () => 50 });
  client.on("error", () => undefined); // Not there yet, or stopped by the test.
  t.after(async () => {
    client.disconnect();
    child.kill("SIGKILL");
    await ended;
    rmSync(folder, { recursive: true, force: true });
  });
  await eventually("Redis answers", () => client.status === "ready");
  return {
    client,
    async stop() {
      child.kill("SIGKILL");
      await ended;
    },
  };
}

/** Blocks that say which they are, and which version. */
function numbered(version: number, count: number, first = 0): Buffer {
  const bytes = Buffer.alloc(count * BLOCK);
  for (let at = 0; at < bytes.length; at += 16) {
    bytes.writeUInt32LE(first + Math.floor(at / BLOCK) + 1, at);
    bytes.writeUInt32LE(version + 0x1000, at + 4);
    bytes.writeUInt32LE(Math.imul(at + version * 7919, 2654435761) >>> 0, at + 8);
  }
  return bytes;
}

test("2,000 random writes of 4 KiB ship at most 1.1 times what was written", { timeout: 60_000 }, async (t) => {
  const { mover, write, cut, assertSame } = await one(t, { order: { intervalMs: 1_000 } });
  await cut();
  const before = mover.frameBytes;
  // Random bytes: what cannot be compressed is the worst case.
  const blocks = Array.from({ length: BLOCKS }, (_, index) => index)
    .sort(() => Math.random() - 0.5)
    .slice(0, 2_000);
  for (const block of blocks) await write(block, randomBytes(BLOCK));
  const started = performance.now();
  await cut();
  const ratio = (mover.frameBytes - before) / (2_000 * BLOCK);
  t.diagnostic(
    `shipped ${ratio.toFixed(4)} of what was written; the last cut was committed after ${Math.round(performance.now() - started)} ms`,
  );
  assert.ok(ratio <= 1.1 && ratio > 0.9);
  assertSame();
});

test("a block that is written again with what it held is not shipped again", { timeout: 60_000 }, async (t) => {
  const { mover, write, cut, assertSame } = await one(t, { order: { intervalMs: 60_000 } });
  for (let block = 0; block < 400; block += 2) await write(block, numbered(1, 1, block));
  await cut();
  const first = mover.frameBytes;
  for (let block = 0; block < 400; block += 2) await write(block, numbered(1, 1, block));
  await write(4_000, numbered(2, 1, 4_000));
  await cut();
  const repeated = mover.frameBytes - first;
  assert.ok(repeated > 0 && repeated < 2 * BLOCK, `${repeated} bytes for one new block and 200 repeated ones`);
  // The version in between counts: A, B, A is two changes.
  await write(0, numbered(3, 1, 0));
  await cut();
  await write(0, numbered(1, 1, 0));
  await cut();
  assertSame();
});

test("a repeat is no repeat when a sweep has read the block in between", { timeout: 120_000 }, async (t) => {
  const { machine, mover, write, cut, assertSame } = await one(t);
  const toggle = async (value: number): Promise<void> => {
    for (let block = 0; block < BLOCKS; block += 64) await write(block, numbered(value, 1, block));
  };
  for (let round = 0; round < 5; round += 1) {
    await toggle(1);
    await cut(); // The stream says 1.
    const { points } = mover;
    await machine.killTap(); // It comes back, and sweeps what it does not know.
    while (mover.points < points + 2) {
      await toggle(2); // What a sweep may read …
      await toggle(1); // … and what the cut then holds.
    }
    await cut();
    assertSame();
  }
});

test(
  "what the stream said is known after a restart, through Redis, and without Redis nothing is wrong",
  { timeout: 120_000 },
  async (t) => {
    const redis = await startRedis(t);
    const { site, mover, write, cut, assertSame } = await one(t, {
      order: { intervalMs: 60_000 },
      cache: createSiteCache(redis.client, { site: "primary", log: testLog }),
    });
    const say = async (): Promise<number> => {
      const { frameBytes } = mover;
      for (let block = 0; block < 400; block += 2) await write(block, numbered(1, 1, block));
      await write(4_000, randomBytes(BLOCK));
      await cut();
      return mover.frameBytes - frameBytes;
    };
    assert.ok((await say()) > 200 * 100);
    const restart = async (): Promise<void> => {
      await site.loseProcessServer();
      await site.startProcessServer();
      await eventually(
        "the group is live",
        async () => (await site.processServer.groupState({ groupId: "group" })).state === "live",
      );
    };
    await restart();
    assert.ok((await say()) < 2 * BLOCK, "200 repeats are known");
    await redis.stop();
    await restart();
    assert.ok((await say()) > 200 * 100, "nothing is known, so everything is shipped");
    assertSame();
  },
);

test(
  "a process server with an old copy of its files gives numbers again that are committed; nothing it cuts is taken for them",
  { timeout: 60_000 },
  async (t) => {
    const { site, mover, write, cut, assertSame, state } = await one(t, { order: { intervalMs: 400 } });
    const home = join(site.folder, "ps");
    const copy = join(site.folder, "ps-before");
    await cut();
    await site.loseProcessServer();
    cpSync(home, copy, { recursive: true });
    await site.startProcessServer();
    await write(100, numbered(1, 1, 100));
    await cut();
    const committed = mover.committedCycles.at(-1)!;

    // It comes back as it was before that cut, cannot ask the store, and cuts: the number is given a second time.
    await site.loseProcessServer();
    rmSync(home, { recursive: true });
    cpSync(copy, home, { recursive: true });
    await mover.goAway();
    await site.startProcessServer();
    const numberNow = (): number => {
      const file = readdirSync(home, { recursive: true, encoding: "utf8" }).find((name) =>
        name.endsWith("group.json"),
      )!;
      return (JSON.parse(readFileSync(join(home, file), "utf8")) as { cycle: number }).cycle;
    };
    await write(200, numbered(2, 1, 200));
    await eventually("it cuts without the target, beyond that number", () => numberNow() > committed + 1);
    await mover.comeBack();
    await eventually("the group is live", async () => (await state()) === "live");
    await cut();
    assertSame();
  },
);

test(
  "a disk that must be compared as a whole is not forgotten over a restart of the process server",
  { timeout: 60_000 },
  async (t) => {
    const { site, mover, machine, write, cut, assertSame } = await one(t);
    await write(7, numbered(1, 1, 7));
    await cut();
    // The store is emptied while the agent is away, so that the process server learns of it and cannot tell the tap.
    const opens = mover.opens;
    await machine.loseAgent();
    mover.wipe();
    mover.lose();
    await eventually("the store was asked again", () => mover.opens > opens);
    await site.loseProcessServer();
    const { points } = mover;
    await site.startProcessServer();
    machine.startAgent();
    await eventually("a point of the new copy", () => mover.points > points);
    await cut();
    assertSame();
  },
);

test(
  "what was tracked for one store says nothing about another: a disk that has been there longer is compared as a whole",
  { timeout: 120_000 },
  async (t) => {
    const { site, mover, machine, put, write, cut } = await one(t, { storeId: "store-a" });
    await write(7, numbered(1, 1, 7));
    await cut();
    const theirs = await startFakeMover({
      link: await site.authority.link("primary", "master-target", "mt"),
      storeId: "store-b",
    });
    t.after(() => theirs.close());
    const same = (which: FakeMover): void => {
      assert.ok(which.images.get("disk")!.equals(readFileSync(machine.images[0]!)));
      assert.deepEqual(which.errors, []);
    };
    // The same branch name, a cycle far beyond ours, and other contents.
    theirs.has("disk", numbered(9, BLOCKS), 10_000);
    const there = { site: "primary", host: "127.0.0.1", port: theirs.port };
    await put({ target: there, groupEpoch: 2 });
    await eventually("a point there", () => theirs.points > 0);
    same(theirs);
    await write(8, numbered(2, 1, 8));
    await cut();
    same(theirs);

    // Back to the first store, on a branch whose beginning this process server has forgotten, as it has forgotten all else.
    await site.loseProcessServer();
    rmSync(join(site.folder, "ps"), { recursive: true });
    await site.startProcessServer();
    mover.has("disk", numbered(5, BLOCKS), 20_000);
    const { points } = mover;
    await put({ groupEpoch: 3, branch: "r-1" });
    await eventually("a point here", () => mover.points > points);
    same(mover);
  },
);

/** The next answer to `agent.prepare` is held from `arm` to `release`; `held` says whether one is. */
function heldPrepare() {
  let armed = false;
  let waiting: (() => void) | undefined;
  return {
    arm: () => void (armed = true),
    held: () => waiting !== undefined,
    release() {
      armed = false;
      waiting?.();
    },
    async onAgentAnswer(method: string): Promise<void> {
      if (!armed || method !== "agent.prepare") return;
      await new Promise<void>((resolve) => (waiting = resolve));
    },
  };
}

function memoryOf(site: SourceSite): { readonly cycle: number; readonly storeId: string } {
  const text = readFileSync(join(site.folder, "ps", "groups", "group.json"), "utf8");
  return JSON.parse(text) as { cycle: number; storeId: string };
}

test(
  "another store is found while the taps are asked what they have: the cycle that was about to begin is no point of it",
  { timeout: 60_000 },
  async (t) => {
    const gate = heldPrepare();
    const { site, machine, put, write, cut } = await one(t, { storeId: "store-a", onAgentAnswer: gate.onAgentAnswer });
    await write(7, numbered(1, 1, 7));
    await cut();
    const points: Buffer[] = [];
    const theirs = await startFakeMover({
      link: await site.authority.link("primary", "master-target", "mt"),
      storeId: "store-b",
      onPoint: ({ images }) => points.push(images.get("disk")!),
    });
    t.after(() => theirs.close());
    theirs.has("disk", numbered(9, BLOCKS), 10_000);
    gate.arm();
    await eventually("an answer is held", gate.held);
    await put({ target: { site: "primary", host: "127.0.0.1", port: theirs.port }, groupEpoch: 2 });
    await eventually("the other store is known", () => memoryOf(site).storeId === "store-b");
    gate.release();
    await eventually("a point there", () => points.length > 0);
    assert.ok(points[0]!.equals(readFileSync(machine.images[0]!)), "its first point is the source");
    assert.deepEqual(theirs.errors, []);
  },
);

test(
  "cycles are given up while the taps are asked what they have: the next point has their blocks",
  { timeout: 60_000 },
  async (t) => {
    const gate = heldPrepare();
    const points: Buffer[] = [];
    const { site, mover, machine, write, cut } = await one(t, {
      onAgentAnswer: gate.onAgentAnswer,
      onPoint: ({ images }) => points.push(Buffer.from(images.get("disk")!)),
    });
    await write(7, numbered(1, 1, 7));
    await cut();
    await mover.goAway();
    await write(8, numbered(2, 1, 8));
    const { cycle } = memoryOf(site);
    await eventually("it is cut without the target", () => memoryOf(site).cycle > cycle + 1);
    gate.arm();
    await eventually("an answer is held", gate.held);
    // Somebody else has gone on with what the target had.
    mover.has("disk", Buffer.from(mover.images.get("disk")!), 10_000);
    points.length = 0;
    await mover.comeBack();
    await eventually("the store has been asked", () => memoryOf(site).cycle >= 10_000);
    gate.release();
    await write(9, numbered(3, 1, 9));
    await eventually("a point", () => points.length > 0);
    const source = readFileSync(machine.images[0]!);
    const block8 = (image: Buffer): Buffer => image.subarray(8 * BLOCK, 9 * BLOCK);
    assert.ok(block8(points[0]!).equals(block8(source)), "its first point has what was cut and given up");
    await cut();
    assert.ok(mover.images.get("disk")!.equals(readFileSync(machine.images[0]!)));
  },
);

test(
  "no space for the process server's state: it says so, and goes on when there is room",
  { timeout: 60_000 },
  async (t) => {
    const { site, mover, write, cut, assertSame } = await one(t);
    const file = join(site.folder, "ps", "groups", "group.json");
    // Every write to this device fails with ENOSPC, also root's.
    symlinkSync("/dev/full", `${file}.draft`);
    await write(5, numbered(1, 1, 5));
    const { points } = mover;
    await assert.rejects(
      () => cut(2_000),
      (error) => error instanceof Fault && error.code === "TIMED_OUT" && error.message.includes("No space left"),
    );
    assert.equal(mover.points, points);
    rmSync(`${file}.draft`);
    await cut();
    assertSame();
  },
);

test("an idle group writes nothing, and its last point answers for now", { timeout: 60_000 }, async (t) => {
  const { mover, cut } = await one(t);
  const { frameBytes, points } = mover;
  const asked = Date.now();
  const answer = await cut();
  assert.equal(mover.frameBytes, frameBytes);
  assert.equal(mover.points, points);
  assert.ok(answer.barrier > 0 && answer.cutAtMs >= asked);
});

test("the same cut operation gets the same answer", { timeout: 60_000 }, async (t) => {
  const { site, write } = await one(t, { order: { intervalMs: 60_000 } });
  await write(1, numbered(1, 1, 1));
  const request = { groupId: "group", operationId: "bookmark-1", timeoutMs: 15_000 };
  const [first, second] = await Promise.all([site.processServer.cutNow(request), site.processServer.cutNow(request)]);
  assert.deepEqual(first, second);
  assert.deepEqual(await site.processServer.cutNow(request), first);
});

test("compressed at the process server or at the agent, the target gets the same", { timeout: 60_000 }, async (t) => {
  const { mover, write, cut, assertSame } = await one(t, { order: { compressAt: "process-server" } });
  assert.ok(mover.frameBytes < (BLOCKS * BLOCK) / 2, `${mover.frameBytes} bytes for a sweep that compresses well`);
  for (let block = 0; block < 200; block += 1) await write(block * 3, numbered(5, 1, block * 3));
  await cut();
  assertSame();
});

test(
  "while the WAN is down cuts go into the spool; full, the taps count on; afterwards everything arrives",
  { timeout: 120_000 },
  async (t) => {
    const { site, mover, write, state, cut, assertSame } = await one(t, { spoolBytesMax: 1 << 20 });
    await mover.goAway();
    await write(10, randomBytes(BLOCK));
    await eventually(
      "a cut waits in the spool",
      async () => (await site.processServer.groupState({ groupId: "group" })).spoolBytes > 0,
    );
    for (let block = 0; block < 1_000; block += 1) await write(block * 2, randomBytes(BLOCK));
    await eventually("the spool is full", async () => (await state()) === "bitmap");
    const { fault, spoolBytes } = await site.processServer.groupState({ groupId: "group" });
    assert.equal(fault?.code, "SPOOL_FULL");
    assert.ok(fault.hint !== undefined && spoolBytes <= 1 << 20);
    for (let block = 0; block < 500; block += 1) await write(block * 5, randomBytes(BLOCK)); // The machine is not slowed down.
    await mover.comeBack();
    await cut(60_000);
    assert.equal(await state(), "live");
    assertSame();
  },
);

test("a cycle bigger than the spool passes through it", { timeout: 60_000 }, async (t) => {
  const { write, cut, assertSame } = await one(t, { spoolBytesMax: 1 << 20, order: { intervalMs: 60_000 } });
  for (let block = 0; block < BLOCKS; block += 256) await write(block, randomBytes(256 * BLOCK)); // 16 MiB
  await cut(40_000);
  assertSame();
});

test(
  "a fenced group tracks on, ships nothing and says why, until control decides anew",
  { timeout: 60_000 },
  async (t) => {
    let fenced = false;
    const { site, mover, write, state, put, cut, assertSame } = await one(t, {
      commit: async () => {
        if (fenced)
          throw new Fault("FENCED", 'The group failed over to site "secondary"', { hint: "Reprotect the group" });
      },
    });
    fenced = true;
    await write(7, numbered(1, 1, 7));
    await eventually("the group is fenced", async () => (await state()) === "fenced");
    const { fault } = await site.processServer.groupState({ groupId: "group" });
    assert.match(fault?.message ?? "", /failed over to site "secondary"/);
    await assert.rejects(cut(), { code: "FENCED" });
    fenced = false;
    const { opens, frameBytes } = mover;
    await put({}); // A newer order of the same group epoch is no decision.
    await site.loseProcessServer(); // It remembers.
    await site.startProcessServer();
    await write(8, numbered(1, 1, 8));
    await new Promise((resolve) => setTimeout(resolve, 1_500));
    assert.equal(await state(), "fenced");
    assert.deepEqual([mover.opens, mover.frameBytes], [opens, frameBytes]);
    await put({ groupEpoch: 2 });
    await eventually("the group is live again", async () => (await state()) === "live");
    await cut();
    assertSame();
  },
);

test(
  "paused tracks, stopped too, and active again ships what was written meanwhile",
  { timeout: 60_000 },
  async (t) => {
    const { mover, write, state, put, cut, assertSame } = await one(t);
    for (const stop of ["paused", "stopped"] as const) {
      await put({ state: stop });
      await eventually(stop, async () => (await state()) === stop);
      const { frameBytes } = mover;
      await write(20, numbered(stop === "paused" ? 1 : 2, 1, 20));
      await assert.rejects(cut(1_000), { code: "REFUSED" });
      assert.equal(mover.frameBytes, frameBytes);
    }
    await put({ state: "active" });
    await eventually("live", async () => (await state()) === "live");
    await cut();
    assertSame();
  },
);

test(
  "a target that lacks what it had acknowledged gets everything again, and no point before",
  { timeout: 60_000 },
  async (t) => {
    const { mover, write, cut, assertSame } = await one(t);
    await write(3, numbered(1, 1, 3));
    await cut();
    mover.wipe();
    mover.lose();
    const { points } = mover;
    await eventually("a new point", () => mover.points > points);
    await cut();
    assertSame();
  },
);

test(
  "a disk of another group, a missing image and a wrong one are refused with a reason",
  { timeout: 60_000 },
  async (t) => {
    const { site, machine } = await one(t);
    const inspect = (source: string, groupId: string, name = "machine") =>
      site.processServer.inspectDisks({ machine: name, sources: [source], groupId });
    assert.deepEqual(await inspect(machine.sources[0]!, "group"), [
      { source: machine.sources[0], sizeBytes: BLOCKS * BLOCK, sectorBytes: SECTOR },
    ]);
    await assert.rejects(inspect(machine.sources[0]!, "another"), { code: "DISK_ALREADY_PROTECTED" });
    await assert.rejects(inspect("tap:/nowhere/disk.img", "another"), { code: "IMAGE_MISSING" });
    await assert.rejects(inspect(`tap:${site.folder}`, "another"), { code: "IMAGE_INVALID" });
    await assert.rejects(inspect("trace:/dev/sda", "another"), { code: "USAGE" });
    await assert.rejects(inspect(machine.sources[0]!, "group", "nobody"), { code: "AGENT_UNREACHABLE" });
  },
);

test("orders are obeyed only with control's signature, and only forwards", { timeout: 60_000 }, async (t) => {
  const { site, mover } = await one(t);
  const members = [{ machine: "machine", disks: [] }];
  const good = site.sign(testOrder("group", mover.port, members, { version: 1 }));
  await assert.rejects(
    site.processServer.putOrder({ signed: { ...good, order: good.order.replace('"active"', '"stopped"') } }),
    { code: "PEER_REJECTED" },
  );
  await assert.rejects(
    site.processServer.putOrder({
      signed: site.sign(testOrder("group", mover.port, members, { version: 9, sourceSite: "elsewhere" })),
    }),
    { code: "PEER_REJECTED" },
  );
  assert.deepEqual(await site.processServer.putOrder({ signed: good }), { version: 1 });
  const { disks, orderVersion } = await site.processServer.groupState({ groupId: "group" });
  assert.deepEqual([orderVersion, disks.length], [1, 1]);
});
