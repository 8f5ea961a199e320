import assert from "node:assert/strict";
import { test } from "node:test";
import { isFault } from "#model/fault.ts";
import { groupContext, listBarriers, readBarrier, writeBarrier } from "../../src/data-mover/barriers.ts";
import { readBranch } from "../../src/data-mover/branch-reader.ts";
import { readHighestClaim } from "../../src/data-mover/claims.ts";
import { claimBranch, createBranch, createDisk } from "../../src/data-mover/disk-moves.ts";
import { fenceGroup, type FencedGroup } from "../../src/data-mover/group-fence.ts";
import { bookmark, listPoints, readPoint } from "../../src/data-mover/points.ts";
import {
  commit,
  commitCycle,
  commitFixture,
  errorLog,
  placeBarrier,
  protect,
  type CommitFixture,
} from "./commit-fixture.ts";

const DISKS = ["a", "b"];

async function protectedGroup(): Promise<CommitFixture> {
  const fixture = commitFixture(DISKS);
  await protect(fixture, DISKS);
  return fixture;
}

const fence = (fixture: CommitFixture, operation: string, activeSite = "S"): Promise<FencedGroup> =>
  fenceGroup(fixture.group, { operation, activeSite, disks: DISKS, holder: "worker" });

/** From the fenced group's newest point to a branch that site S writes. */
async function goOver(fixture: CommitFixture, fenced: FencedGroup, operation: string, branch: string): Promise<void> {
  for (const { diskId, ...parent } of fenced.newestPoint!.members) {
    await createBranch(fixture.disk(diskId), { branch, parent, reason: "failover", operation });
  }
  for (const diskId of DISKS) {
    await claimBranch(fixture.disk(diskId), {
      operation,
      groupEpoch: fenced.groupEpoch,
      activeSite: "S",
      branch,
      holder: "worker",
    });
  }
}

async function cycles(fixture: CommitFixture, diskId: string, branch: string): Promise<number[]> {
  const found: number[] = [];
  for await (const { header } of readBranch(fixture.disk(diskId), branch))
    if (header.kind === "journal") found.push(header.cycle);
  return found;
}

test("making a disk again under the same operation finds it, under another one is refused", async () => {
  const fixture = await protectedGroup();
  const before = fixture.memory.objects.size;
  await protect(fixture, DISKS);
  assert.equal(fixture.memory.objects.size, before);
  const other = { operation: "other", groupEpoch: 1, activeSite: "P", holder: "test" };
  await assert.rejects(createDisk(fixture.disk("a"), other), { code: "DISK_ALREADY_PROTECTED" });
});

test("a failover ends the source's branch at its newest barrier and goes on along a new one; the source returns and is FENCED", async () => {
  const fixture = await protectedGroup();
  const writers = await Promise.all(DISKS.map((diskId) => fixture.open(diskId)));
  await commitCycle(fixture, writers, 1);
  await commitCycle(fixture, writers, 2);
  await commit(writers[0]!, { cycle: 3, cycleDisks: 2 }); // Only half of cycle 3 arrives.

  const fenced = await fence(fixture, "op1");
  assert.equal(fenced.branch, "root");
  assert.equal(fenced.groupEpoch, 2);
  assert.equal(fenced.newestPoint?.barrier, 2);
  assert.deepEqual(
    fenced.disks.map(({ last }) => last.data.cycle),
    [3, 2],
  );
  await assert.rejects(commit(writers[1]!, { cycle: 3, cycleDisks: 2 }), (error) => isFault(error, "FENCED"));
  await assert.rejects(fixture.open("a"), (error) => isFault(error, "FENCED") && error.details["reason"] === "moved");

  await goOver(fixture, fenced, "op1", "b1");
  const replica = await Promise.all(DISKS.map((diskId) => fixture.open(diskId, "S", "b1")));
  await commitCycle(fixture, replica, 10);
  assert.deepEqual(await cycles(fixture, "a", "b1"), [1, 2, 10]);
  assert.deepEqual(await cycles(fixture, "a", "root"), [1, 2, 3], "what was set aside is still there");
  assert.deepEqual(
    (await listPoints(fixture.group)).map(({ barrier }) => barrier),
    [10, 2, 1],
  );
  assert.deepEqual(
    (await listPoints(fixture.group, { branch: "root" })).map(({ barrier }) => barrier),
    [2, 1],
  );
});

test("a fence that is repeated, by many at once or much later, claims nothing twice and answers the same", async () => {
  const fixture = await protectedGroup();
  const writers = await Promise.all(DISKS.map((diskId) => fixture.open(diskId)));
  await commitCycle(fixture, writers, 1);
  const answers = await Promise.all(Array.from({ length: 4 }, () => fence(fixture, "op1")));
  await goOver(fixture, answers[0]!, "op1", "b1");
  for (const diskId of DISKS) await fixture.open(diskId, "S", "b1");
  await goOver(fixture, answers[0]!, "op1", "b1");
  answers.push(await fence(fixture, "op1"));
  for (const answer of answers) assert.deepEqual(answer, answers[0]);
  const claim = await readHighestClaim(fixture.disk("a"));
  assert.deepEqual([claim.epoch, claim.activeSite, claim.branch], [6, "S", "b1"]); // protect, open, fence, its end, branch, open
});

test("undo gives the branch back to its source, which goes on where it was fenced", async () => {
  const fixture = await protectedGroup();
  const writers = await Promise.all(DISKS.map((diskId) => fixture.open(diskId)));
  await commitCycle(fixture, writers, 1);
  await goOver(fixture, await fence(fixture, "op1"), "op1", "b1");
  const replica = await fixture.open("a", "S", "b1");
  await commit(replica, { cycle: 5 });

  const back = await fence(fixture, "op2", "P");
  assert.equal(back.branch, "b1");
  for (const diskId of DISKS) {
    await claimBranch(fixture.disk(diskId), {
      operation: "op2",
      groupEpoch: back.groupEpoch,
      activeSite: "P",
      branch: "root",
      holder: "worker",
    });
  }
  await assert.rejects(commit(replica, { cycle: 6 }), { code: "FENCED" });
  const again = await fixture.open("a");
  assert.equal(again.data.cycle, 1);
  await commit(again, { cycle: 11 });
  assert.deepEqual(await cycles(fixture, "a", "root"), [1, 11]);
  assert.deepEqual(await cycles(fixture, "a", "b1"), [1, 5]);
});

test("an older move cannot overtake a newer one", async () => {
  const fixture = await protectedGroup();
  await fence(fixture, "op1");
  await fence(fixture, "op2", "P");
  await assert.rejects(fence(fixture, "op1"), { code: "FENCED" });
  const late = { operation: "op0", activeSite: "S", disks: DISKS, holder: "worker", knownEpoch: 1 };
  await assert.rejects(fenceGroup(fixture.group, late), { code: "FENCED" });
  assert.equal((await readHighestClaim(fixture.disk("a"))).activeSite, "P");
});

test("a branch that starts elsewhere than asked is REFUSED, and no branch is claimed that does not exist", async () => {
  const fixture = await protectedGroup();
  const writers = await Promise.all(DISKS.map((diskId) => fixture.open(diskId)));
  await commitCycle(fixture, writers, 1);
  const fenced = await fence(fixture, "op1");
  await goOver(fixture, fenced, "op1", "b1");
  const elsewhere = {
    branch: "b1",
    parent: { branch: "root", seq: 1, commitHash: "1".repeat(32) },
    reason: "failover",
    operation: "op1",
  } as const;
  await assert.rejects(createBranch(fixture.disk("a"), elsewhere), { code: "REFUSED" });
  const move = { operation: "op1", groupEpoch: fenced.groupEpoch, activeSite: "S", branch: "b9", holder: "worker" };
  await assert.rejects(claimBranch(fixture.disk("a"), move), { code: "NOT_FOUND" });
  await assert.rejects(
    claimBranch(fixture.disk("a"), { ...move, branch: "b1", groupEpoch: 99 }),
    RangeError,
    "not fenced first",
  );
});

test("a fence completes the barriers whose commits are all there: idle disks by their last commit, half cycles never", async () => {
  const fixture = await protectedGroup();
  const [a, b] = (await Promise.all(DISKS.map((diskId) => fixture.open(diskId)))) as [
    Awaited<ReturnType<CommitFixture["open"]>>,
    Awaited<ReturnType<CommitFixture["open"]>>,
  ];
  await commit(a, { cycle: 1, cycleDisks: 1 }); // b has nothing yet: it takes part by the start of its branch.
  await commitCycle(fixture, [a, b], 2, false);
  await commit(a, { cycle: 3, cycleDisks: 1, point: false });
  await commit(b, { cycle: 4, cycleDisks: 1 });
  await commit(b, { cycle: 5, cycleDisks: 2 });

  const fenced = await fence(fixture, "op1");
  assert.deepEqual(await listBarriers(fixture.group), [1, 2, 4]);
  assert.equal(fenced.newestPoint?.barrier, 4);
  const seqs = async (barrier: number): Promise<number[]> =>
    (await readBarrier(fixture.group, barrier))!.members.map(({ seq }) => seq);
  assert.deepEqual(await seqs(1), [2, 0]);
  assert.deepEqual(await seqs(2), [3, 2]);
  assert.deepEqual(await seqs(4), [4, 3]);
  await assert.doesNotReject(readPoint(fixture.group, 1));
});

test("a late writer of a completed barrier finds the same; another cut under its number is REFUSED", async () => {
  const fixture = await protectedGroup();
  const writers = await Promise.all(DISKS.map((diskId) => fixture.open(diskId)));
  await commitCycle(fixture, writers, 1, false);
  await fence(fixture, "op1");
  await placeBarrier(fixture, writers, 1);
  const other = commitFixture(DISKS, fixture.memory);
  const members = (await readBarrier(fixture.group, 1))!.members.map((member) => ({ ...member, seq: member.seq + 1 }));
  await assert.rejects(
    writeBarrier(other.group, { barrier: 1, groupId: "web", groupEpoch: 1, cutAtMs: 1, consistency: "crash", members }),
    { code: "REFUSED" },
  );
});

test("points of an earlier protection under the same name, of other disks, are not offered and are in nobody's way", async () => {
  const fixture = await protectedGroup();
  const writers = await Promise.all(DISKS.map((diskId) => fixture.open(diskId)));
  await commitCycle(fixture, writers, 1);
  const foreign = (): never => assert.fail("a disk that is not the group's was asked for");
  const anew = groupContext(fixture.group, fixture.group.groupId, foreign, (diskId) => !DISKS.includes(diskId));
  assert.deepEqual(await listPoints(anew), []);
  await assert.rejects(readPoint(anew, 1), { code: "POINT_NOT_FOUND" });
});

test("a barrier is offered only while every commit of it is there and is the one it names", async () => {
  const fixture = await protectedGroup();
  const writers = await Promise.all(DISKS.map((diskId) => fixture.open(diskId)));
  for (const cycle of [1, 2, 3]) await commitCycle(fixture, writers, cycle);
  assert.deepEqual(
    (await listPoints(fixture.group, { limit: 2 })).map(({ id }) => id),
    ["0000000003000-0000000000000003", "0000000002000-0000000000000002"],
  );
  fixture.memory.objects.delete(fixture.disk("b").names.commit("root", 4));
  assert.deepEqual(
    (await listPoints(fixture.group)).map(({ barrier }) => barrier),
    [2, 1],
  );
  await assert.rejects(readPoint(fixture.group, 3), { code: "POINT_NOT_FOUND" });
  await assert.rejects(readPoint(fixture.group, 77), { code: "POINT_NOT_FOUND" });
});

test("a bookmark keeps a point under a name; repeated it is the same, a second name or a second point is REFUSED", async () => {
  const fixture = await protectedGroup();
  const writers = await Promise.all(DISKS.map((diskId) => fixture.open(diskId)));
  for (const cycle of [1, 2]) await commitCycle(fixture, writers, cycle);
  const log = errorLog();
  const mac = (data: Uint8Array): Uint8Array =>
    Uint8Array.of(
      data.reduce((sum, byte) => (sum + byte) & 255, 0),
      42,
    );
  const mark = (barrier: number, name: string) =>
    bookmark(fixture.group, { operation: "mark", barrier, name }, { mac, log });
  const point = await mark(1, "before-upgrade");
  assert.deepEqual(await mark(1, "before-upgrade"), point);
  assert.deepEqual(
    [point.kind, point.name, point.reasonKept],
    ["bookmark", "before-upgrade", 'bookmark "before-upgrade"'],
  );
  await assert.rejects(mark(1, "other"), { code: "REFUSED" });
  await assert.rejects(mark(2, "before-upgrade"), { code: "REFUSED" });
  await assert.rejects(mark(9, "nothing"), { code: "POINT_NOT_FOUND" });
  const listed = await listPoints(fixture.group, { bookmarks: { mac, log } });
  assert.deepEqual(
    listed.map(({ barrier, name }) => [barrier, name]),
    [
      [2, undefined],
      [1, "before-upgrade"],
    ],
  );

  // A bookmark outlives its barrier object; one with another MAC is reported and not believed.
  fixture.memory.objects.delete(fixture.group.names.barrier(1));
  assert.equal((await readPoint(fixture.group, 1, { mac, log })).name, "before-upgrade");
  assert.deepEqual(
    (await listPoints(fixture.group, { bookmarks: { mac: () => Uint8Array.of(1), log } })).map(
      ({ barrier }) => barrier,
    ),
    [2],
  );
  assert.equal(log.errors.length, 1);
});

test("damage at the end of a branch, or in a barrier, keeps nobody from a failover to the points before it", async () => {
  const damages: ((fixture: CommitFixture) => void)[] = [
    (fixture) => void fixture.memory.objects.set(fixture.disk("b").names.commit("root", 4), Buffer.alloc(400, "x")),
    (fixture) => void fixture.memory.objects.delete(fixture.disk("b").names.commit("root", 4)),
    (fixture) => void fixture.memory.objects.set(fixture.group.names.barrier(3), Buffer.from("{")),
  ];
  for (const [index, damage] of damages.entries()) {
    const fixture = await protectedGroup();
    const writers = await Promise.all(DISKS.map((diskId) => fixture.open(diskId)));
    for (const cycle of [1, 2, 3, 4]) await commitCycle(fixture, writers, cycle, cycle < 4);
    damage(fixture);
    const fenced = await fence(fixture, "op1");
    assert.deepEqual(await fence(fixture, "op1"), fenced);
    assert.equal(fenced.newestPoint?.barrier, index === 2 ? 4 : 2);
    await assert.rejects(commit(writers[1]!, { cycle: 5 }), { code: "FENCED" });
    await goOver(fixture, fenced, "op1", "b1");
    await commit(await fixture.open("b", "S", "b1"), { cycle: 9 });
    assert.deepEqual(await cycles(fixture, "b", "b1"), index === 2 ? [1, 2, 3, 4, 9] : [1, 2, 9]);
  }
});

test("points that were checked once are listed again without being read again", async () => {
  const fixture = await protectedGroup();
  const writers = await Promise.all(DISKS.map((diskId) => fixture.open(diskId)));
  for (const cycle of [1, 2, 3]) await commitCycle(fixture, writers, cycle);
  const checked = new Map();
  const points = await listPoints(fixture.group, { checked });
  let reads = 0;
  const get = fixture.memory.get.bind(fixture.memory);
  fixture.memory.get = (key, options) => {
    reads++;
    return get(key, options);
  };
  assert.deepEqual(await listPoints(fixture.group, { checked }), points);
  assert.equal(reads, 0);
});

test("while a move is under way nobody may write, not even for the site it gives the group to", async () => {
  const fixture = await protectedGroup();
  const fenced = await fenceGroup(fixture.group, {
    operation: "op1",
    activeSite: "P",
    disks: DISKS,
    holder: "worker",
    resume: false,
  });
  await assert.rejects(fixture.open("a"), (error) => isFault(error, "FENCED") && error.details["reason"] === "moved");
  const move = { operation: "op1", groupEpoch: fenced.groupEpoch, activeSite: "P", branch: "root", holder: "worker" };
  await claimBranch(fixture.disk("a"), move);
  await fixture.open("a");
  await assert.rejects(fixture.open("b"), { code: "FENCED" });
  // Repeated with another end, it goes to that end.
  await fenceGroup(fixture.group, { operation: "op1", activeSite: "P", disks: DISKS, holder: "worker" });
  await fixture.open("b");
});

test("an undo gives the branch it returns to, whichever one it ended", async () => {
  const fixture = await protectedGroup();
  const writers = await Promise.all(DISKS.map((diskId) => fixture.open(diskId)));
  await commitCycle(fixture, writers, 1);
  await goOver(fixture, await fence(fixture, "op1"), "op1", "b1");
  await fenceGroup(fixture.group, {
    operation: "op2",
    activeSite: "P",
    disks: DISKS,
    holder: "worker",
    resume: "root",
  });
  assert.equal((await fixture.open("a")).data.cycle, 1);
  await assert.rejects(fixture.open("a", "S", "b1"), { code: "FENCED" });
});
