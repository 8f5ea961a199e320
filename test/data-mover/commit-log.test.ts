import assert from "node:assert/strict";
import { test } from "node:test";
import { isFault } from "#model/fault.ts";
import { faultyStore, type CreateFate } from "../../src/adapters/faulty/faulty-store.ts";
import { readBranch, readTail } from "../../src/data-mover/branch-reader.ts";
import type { CommitHeader } from "../../src/data-mover/commit-codec.ts";
import { commit, commitFixture, protect, sealPlain, type CommitFixture } from "./commit-fixture.ts";

async function fixtureOf(...disks: string[]): Promise<CommitFixture> {
  const fixture = commitFixture(disks);
  await protect(fixture, disks);
  return fixture;
}

/** The fixture through a store whose journal PUTs meet these fates, one after the other, and then none. */
function withFates(
  fixture: CommitFixture,
  fates: CreateFate[],
): { fixture: CommitFixture; arrive: () => Promise<void> } {
  const late: (() => Promise<void>)[] = [];
  const store = faultyStore(fixture.memory, {
    create: (key) => (key.includes("/journal/") ? (fates.shift() ?? "pass") : "pass"),
    later: (put) => late.push(put),
  });
  const arrive = async (): Promise<void> => {
    for (const put of late.splice(0)) await put();
  };
  return { fixture: fixture.through(store), arrive };
}

async function history(fixture: CommitFixture, branch = "root"): Promise<CommitHeader[]> {
  const commits: CommitHeader[] = [];
  for await (const { header } of readBranch(fixture.disk("d"), branch)) commits.push(header);
  return commits;
}

const shape = (commits: readonly CommitHeader[]): string =>
  commits
    .map(({ kind, seq, epoch, cycle }) => (kind === "fence" ? `${seq}:fence/${epoch}` : `${seq}:${cycle}/${epoch}`))
    .join(" ");

test("a writer fences, then commits one after the other, each chained to the one before it", async () => {
  const fixture = await fixtureOf("d");
  const writer = await fixture.open("d");
  assert.equal(writer.epoch, 2);
  assert.deepEqual(writer.data, { epoch: 0, seq: 0, commitHash: "0".repeat(32), cycle: 0, cutAtMs: 0, writerId: "" });
  const first = await commit(writer, { cycle: 7 });
  assert.deepEqual(first, {
    epoch: 2,
    seq: 2,
    commitHash: writer.tail.commitHash,
    cycle: 7,
    cutAtMs: 7_000,
    writerId: writer.writerId,
  });
  await commit(writer, { cycle: 8 });
  const commits = await history(fixture);
  assert.equal(shape(commits), "1:fence/2 2:7/2 3:8/2");
  assert.equal(commits[1]!.chain, commits[0]!.commitHash);
  assert.equal(commits[2]!.chain, commits[1]!.commitHash);
});

test("a writer that opens learns the last cycle, however many fences lie on it", async () => {
  const fixture = await fixtureOf("d");
  await commit(await fixture.open("d"), { cycle: 3 });
  for (let count = 0; count < 4; count++) await fixture.open("d");
  const writer = await fixture.open("d");
  assert.equal(writer.data.cycle, 3);
  assert.equal(writer.data.seq, 2);
  assert.equal(shape(await history(fixture)), "1:fence/2 2:3/2 3:fence/3 4:fence/4 5:fence/5 6:fence/6 7:fence/7");
});

test("a newer writer ends the older one, which acknowledges nothing more and knows why", async () => {
  const fixture = await fixtureOf("d");
  const old = await fixture.open("d");
  const newer = await fixture.open("d");
  await assert.rejects(
    commit(old, { cycle: 1 }),
    (error) => isFault(error, "FENCED") && error.details["reason"] === "superseded",
  );
  await assert.rejects(commit(old, { cycle: 1 }), RangeError, "a writer that failed is done");
  await commit(newer, { cycle: 1 });
  assert.equal(shape(await history(fixture)), "1:fence/2 2:fence/3 3:1/3");
});

test("a commit that lands before the newer fence counts, but is not acknowledged once there is a newer claim", async () => {
  const fixture = await fixtureOf("d");
  const old = await fixture.open("d");
  // Somebody claims and dies before its fence.
  await fixture.memory.create(
    fixture.disk("d").names.epoch(3),
    Buffer.from(
      JSON.stringify({
        format: 1,
        epoch: 3,
        activeSite: "P",
        branch: "root",
        groupEpoch: 1,
        operation: "open",
        holder: "other",
        claimedAtMs: 1,
      }),
    ),
  );
  await assert.rejects(commit(old, { cycle: 1 }), { code: "FENCED" });
  const next = await fixture.open("d");
  assert.equal(next.data.cycle, 1, "the next writer tells its source");
  assert.equal(shape(await history(fixture)), "1:fence/2 2:1/2 3:fence/4");
});

test("another site, or another branch, is FENCED at the door and changes nothing", async () => {
  const fixture = await fixtureOf("d");
  const before = fixture.memory.objects.size;
  for (const [site, branch] of [
    ["S", "root"],
    ["P", "b1"],
  ] as const) {
    await assert.rejects(fixture.open("d", site, branch), (error) => {
      return (
        isFault(error, "FENCED") &&
        error.details["reason"] === "moved" &&
        error.details["activeSite"] === "P" &&
        error.hint !== undefined
      );
    });
  }
  assert.equal(fixture.memory.objects.size, before);
});

for (const fates of [
  ["lost-reply"],
  ["lost-request"],
  ["late"],
  ["doubled"],
  ["doubled-early"],
  ["refused", "lost-request"],
  ["late", "lost-reply"],
  ["lost-request", "late"],
] satisfies CreateFate[][]) {
  test(`a commit whose PUT meets ${fates.join(", then ")} is there once`, async () => {
    const fixture = await fixtureOf("d");
    const queue: CreateFate[] = [];
    const { fixture: faulty, arrive } = withFates(fixture, queue);
    const writer = await faulty.open("d");
    queue.push(...fates);
    await commit(writer, { cycle: 1 });
    await arrive();
    await commit(writer, { cycle: 2 });
    assert.equal(shape(await history(fixture)), "1:fence/2 2:1/2 3:2/2");
  });
}

test("a commit that never gets an answer ends the writer, and the next opening settles what became of it", async () => {
  const fixture = await fixtureOf("d");
  for (const fate of ["lost-request", "late"] as const) {
    const queue: CreateFate[] = [];
    const { fixture: faulty, arrive } = withFates(fixture, queue);
    const writer = await faulty.open("d");
    const cycle = writer.data.cycle + 1;
    queue.push(fate, "lost-request", "lost-request");
    await assert.rejects(commit(writer, { cycle }), { code: "STORE_AMBIGUOUS" });
    await arrive();
    const next = await fixture.open("d");
    assert.equal(next.data.cycle, fate === "late" ? cycle : 0);
  }
});

test("a store that refuses for good says so, at once", async () => {
  const fixture = await fixtureOf("d");
  const writer = await fixture.open("d");
  fixture.memory.create = () => Promise.reject(Object.assign(new Error("no"), { code: "X" }));
  await assert.rejects(commit(writer, { cycle: 1 }), /no/);
});

test("two writers that open at the same instant never share an epoch", async () => {
  const fixture = await fixtureOf("d");
  const outcomes = await Promise.allSettled(Array.from({ length: 6 }, () => fixture.open("d")));
  const opened = outcomes.flatMap((outcome) => (outcome.status === "fulfilled" ? [outcome.value] : []));
  assert.ok(opened.length >= 1);
  assert.equal(new Set(opened.map((writer) => writer.epoch)).size, opened.length);
  const acknowledged = await Promise.allSettled(opened.map((writer) => commit(writer, { cycle: 1 })));
  assert.equal(acknowledged.filter((outcome) => outcome.status === "fulfilled").length, 1);
});

test("a stale commit is passed over by readers, openers and writers alike", async () => {
  const fixture = await fixtureOf("d");
  const writer = await fixture.open("d");
  await commit(writer, { cycle: 1 });
  const { names } = fixture.disk("d");
  const stale = sealPlain(
    "d",
    { branch: "root", epoch: 1, seq: 3, chain: writer.tail.commitHash, writerId: "0".repeat(16) },
    { cycle: 9 },
  );
  await fixture.memory.create(names.commit("root", 3), stale.body);
  assert.equal((await readTail(fixture.disk("d"), "root")).seq, 2);
  await commit(writer, { cycle: 2 });
  assert.equal(shape(await history(fixture)), "1:fence/2 2:1/2 4:2/2");
  assert.equal((await fixture.open("d")).data.cycle, 2);
});

test("a hole, a wrong chain and a wrong place are faults, never a shorter history", async () => {
  const broken = async (damage: (fixture: CommitFixture) => void, code: string): Promise<void> => {
    const fixture = await fixtureOf("d");
    const writer = await fixture.open("d");
    for (const cycle of [1, 2, 3]) await commit(writer, { cycle });
    damage(fixture);
    await assert.rejects(history(fixture), { code });
  };
  const key = (fixture: CommitFixture, seq: number): string => fixture.disk("d").names.commit("root", seq);
  await broken((fixture) => void fixture.memory.objects.delete(key(fixture, 3)), "CHAIN_BROKEN");
  await broken((fixture) => {
    const forged = sealPlain(
      "d",
      { branch: "root", epoch: 2, seq: 3, chain: "f".repeat(32), writerId: "0".repeat(16) },
      { cycle: 2 },
    );
    fixture.memory.objects.set(key(fixture, 3), forged.body as Uint8Array);
  }, "CHAIN_BROKEN");
  await broken(
    (fixture) => void fixture.memory.objects.set(key(fixture, 3), fixture.memory.objects.get(key(fixture, 2))!),
    "OBJECT_CORRUPT",
  );
  await broken(
    (fixture) =>
      void fixture.memory.objects.set(key(fixture, 3), fixture.memory.objects.get(key(fixture, 3))!.subarray(0, 50)),
    "OBJECT_CORRUPT",
  );
});

test("a hole is found by whoever opens, too", async () => {
  const fixture = await fixtureOf("d");
  const writer = await fixture.open("d");
  for (const cycle of [1, 2, 3]) await commit(writer, { cycle });
  fixture.memory.objects.delete(fixture.disk("d").names.commit("root", 2));
  await assert.rejects(fixture.open("d"), { code: "CHAIN_BROKEN" });
});

test("a branch is read up to a commit, and only if that commit is the one that was meant", async () => {
  const fixture = await fixtureOf("d");
  const writer = await fixture.open("d");
  const positions = [];
  for (const cycle of [1, 2, 3]) positions.push(await commit(writer, { cycle }));
  const upTo = async (seq: number, commitHash?: string): Promise<number> => {
    let count = 0;
    for await (const _ of readBranch(
      fixture.disk("d"),
      "root",
      commitHash === undefined ? { seq } : { seq, commitHash },
    ))
      count++;
    return count;
  };
  assert.equal(await upTo(0), 0);
  assert.equal(await upTo(1), 1);
  assert.equal(await upTo(3, positions[1]!.commitHash), 3);
  await assert.rejects(upTo(3, positions[2]!.commitHash), { code: "CHAIN_BROKEN" });
  await assert.rejects(upTo(9), { code: "CHAIN_BROKEN" });
  await assert.rejects(history(fixture, "nowhere"), { code: "NOT_FOUND" });
});

test("more commits than are read ahead come in order", async () => {
  const fixture = await fixtureOf("d");
  const writer = await fixture.open("d");
  for (let cycle = 1; cycle <= 40; cycle++) await commit(writer, { cycle });
  assert.deepEqual(
    (await history(fixture)).map(({ cycle }) => cycle),
    Array.from({ length: 41 }, (_, index) => index),
  );
});

test("a store that stays down ends an opening with its own fault", async () => {
  const fixture = await fixtureOf("d");
  const failing = fixture.through(faultyStore(fixture.memory, { fails: () => true }));
  await assert.rejects(failing.open("d"), { code: "STORE_UNAVAILABLE" });
});
