/**
 * What must be true of a world at its end, worked out from everything that was ever in a slot and without the code under test.
 */
import { hex16 } from "#model/units.ts";
import type { FencedDisk } from "../../src/data-mover/disk-moves.ts";
import type { SealedHeader } from "./simulated-store.ts";
import { GROUP, violate, type World } from "./world.ts";

export interface History {
  /** Commits that count, in order. */
  readonly commits: readonly SealedHeader[];
  readonly startsWith: number;
}

/** The one history of a branch, without its parents. */
export function historyOf(world: World, diskId: string, branch: string): History {
  const row = world.store.slots.get(`${diskId}/${branch}`) ?? new Map<number, SealedHeader>();
  const origin = originOf(world, diskId, branch);
  const commits: SealedHeader[] = [];
  let last = { epoch: 0, commitHash: origin?.commitHash ?? "0".repeat(32) };
  for (let seq = 1; row.has(seq); seq++) {
    const commit = row.get(seq)!;
    if (commit.epoch < last.epoch) continue;
    if (commit.chain !== last.commitHash) break;
    commits.push(commit);
    last = commit;
  }
  return { commits, startsWith: origin === undefined ? 0 : contentAt(world, diskId, origin.branch, origin.seq) };
}

/** The last write in a disk after commit `seq` of a branch. */
export function contentAt(world: World, diskId: string, branch: string, seq: number): number {
  const { commits, startsWith } = historyOf(world, diskId, branch);
  return (
    commits.findLast((commit) => commit.seq <= seq && commit.payload !== undefined)?.payload?.writes.at(-1) ??
    startsWith
  );
}

function originOf(
  world: World,
  diskId: string,
  branch: string,
): { branch: string; seq: number; commitHash: string } | undefined {
  const data = world.store.memory.objects.get(`disks/${diskId}/branches/${branch}/origin.json`);
  return (
    data &&
    (JSON.parse(Buffer.from(data).toString()) as { parent?: { branch: string; seq: number; commitHash: string } })
      .parent
  );
}

export function checkWorld(world: World): void {
  const fail = (what: string): void => violate(world, what);
  for (const key of world.store.slots.keys()) checkBranch(world, key, fail);
  checkAcknowledgements(world, fail);
  checkClaims(world, fail);
  checkFences(world, fail);
  checkReads(world, fail);
  checkPoints(world, fail);
}

/** One commit in every slot, each counting, and their writes in order without a gap or a repetition. */
function checkBranch(world: World, key: string, fail: (what: string) => void): void {
  const [diskId, branch] = key.split("/") as [string, string];
  const { commits, startsWith } = historyOf(world, diskId, branch);
  const row = world.store.slots.get(key)!;
  const collected = world.checkpoints.get(key)?.seq ?? 0;
  if (commits.length !== row.size) {
    const counted = new Set<SealedHeader>(commits);
    const wasted = [...row.values()].filter((commit) => !counted.has(commit) && commit.seq > collected);
    if (wasted.length > 0)
      fail(`${key}: slots ${wasted.map((commit) => `${commit.seq} (epoch ${commit.epoch})`).join(", ")} do not count`);
  }
  let last = startsWith;
  let cycle = 0;
  for (const { payload, seq } of commits) {
    if (payload === undefined) continue;
    if (payload.after !== last) fail(`${key}/${seq}: written after ${payload.after}, but the disk was at ${last}`);
    if (payload.cycle <= cycle) fail(`${key}/${seq}: cycle ${payload.cycle} after ${cycle}`);
    last = payload.writes.at(-1)!;
    cycle = payload.cycle;
  }
  for (const again of world.store.recreated) {
    const seq = Number.parseInt(again.slice(-16), 16);
    if (again.startsWith(`disks/${diskId}/branches/${branch}/`) && seq > collected)
      fail(`${key}/${seq} was written twice`);
  }
}

/** What was acknowledged counts, for ever, where it was said to be. */
function checkAcknowledgements(world: World, fail: (what: string) => void): void {
  const counted = new Map<string, SealedHeader>();
  for (const key of world.store.slots.keys()) {
    const [diskId, branch] = key.split("/") as [string, string];
    for (const commit of historyOf(world, diskId, branch).commits) counted.set(`${key}/${commit.seq}`, commit);
  }
  const order = new Map<string, number>();
  for (const { site, diskId, branch, epoch, seq, commitHash } of world.acknowledged) {
    const key = `${diskId}/${branch}`;
    if (counted.get(`${key}/${seq}`)?.commitHash !== commitHash)
      fail(`${key}/${seq} of epoch ${epoch} was acknowledged and is lost`);
    const writer = `${key}/${epoch}`;
    if (seq <= (order.get(writer) ?? 0)) fail(`${key}/${seq} was acknowledged out of order`);
    order.set(writer, seq);
    const claim = claimsOf(world, diskId)[epoch - 1];
    if (claim === undefined || claim.activeSite !== site || claim.branch !== branch) {
      fail(`${key}/${seq} was acknowledged for site ${site}, which did not hold epoch ${epoch}`);
    }
  }
}

interface Claim {
  readonly activeSite: string;
  readonly branch: string;
  readonly operation: string;
  readonly groupEpoch: number;
}

function claimsOf(world: World, diskId: string): Claim[] {
  const prefix = `disks/${diskId}/epochs/`;
  const keys = [...world.store.memory.objects.keys()].filter((key) => key.startsWith(prefix)).sort();
  return keys.map((key) => JSON.parse(Buffer.from(world.store.memory.objects.get(key)!).toString()) as Claim);
}

/** Only a move changes the site or the branch. */
function checkClaims(world: World, fail: (what: string) => void): void {
  for (const diskId of world.disks) {
    let last: Claim | undefined;
    for (const [index, claim] of claimsOf(world, diskId).entries()) {
      const same = last?.activeSite === claim.activeSite && last.branch === claim.branch;
      if (last !== undefined && !same && claim.operation.startsWith("open/")) {
        fail(
          `epoch ${index + 1} of ${diskId}: ${claim.operation} took the disk for site ${claim.activeSite} on "${claim.branch}"`,
        );
      }
      if (last !== undefined && claim.groupEpoch < last.groupEpoch)
        fail(`epoch ${index + 1} of ${diskId}: its group epoch fell`);
      last = claim;
    }
  }
}

/** Nothing older follows a fence; nothing acknowledged before it is missing; no acknowledged barrier is newer than the point it found. */
function checkFences(world: World, fail: (what: string) => void): void {
  for (const { branch, disks, newestPoint } of world.fences) {
    for (const { diskId, epoch, last } of disks) {
      const key = `${diskId}/${branch}`;
      const older = historyOf(world, diskId, branch)
        .commits.filter((commit) => commit.epoch < epoch)
        .at(-1);
      // Repeated after a collection, a fence may only know that the end lies somewhere in what was collected.
      const collected = last.seq <= (world.checkpoints.get(key)?.seq ?? 0);
      const end = older?.seq ?? 0;
      if (end > last.seq || (end < last.seq && !collected)) {
        fail(`${key}: fenced at ${last.seq}, but ${end} of epoch ${older?.epoch} is the last that counts`);
      }
      for (const ack of world.acknowledged) {
        if (ack.diskId === diskId && ack.branch === branch && ack.epoch < epoch && ack.seq > last.seq) {
          fail(`${key}/${ack.seq} was acknowledged behind the fence at ${last.seq}`);
        }
      }
    }
    if (world.collections === 0) checkFrontier(world, branch, disks, fail);
    const chosen = newestPoint?.barrier ?? 0;
    for (const { branch: at, barrier, epochs } of world.barriers) {
      const before = at === branch && disks.every((disk) => epochs.get(disk.diskId)! < disk.epoch);
      if (before && barrier > chosen && standsOn(world, barrier, branch))
        fail(`barrier ${barrier} was durable, and the failover knew only ${chosen}`);
    }
  }
}

/** False when a fenced source has taken the number for a cut in which nothing changed: then this cut is no point, and nobody was told so. */
function standsOn(world: World, barrier: number, branch: string): boolean {
  const data = world.store.memory.objects.get(`groups/${GROUP}/barriers/${hex16(barrier)}`);
  if (data === undefined) return true;
  const record = JSON.parse(Buffer.from(data).toString()) as { members: { branch: string }[] };
  return record.members[0]?.branch === branch;
}

/** The disks of a fenced branch end at one cut: nothing that came behind one disk's end is older than what another's end holds. */
function checkFrontier(world: World, branch: string, disks: readonly FencedDisk[], fail: (what: string) => void): void {
  const newest = Math.max(...disks.map(({ last }) => last.data.cycle));
  for (const { diskId, last } of disks) {
    const behind = historyOf(world, diskId, branch).commits.find((commit) => commit.seq > last.seq && commit.cycle > 0);
    if (behind !== undefined && behind.cycle < newest) {
      fail(`${diskId}/${branch}: fenced before cycle ${behind.cycle}, and another disk after cycle ${newest}`);
    }
  }
}

/** A reader sees the beginning of the one history: its parents' up to where it left them, then its own. */
function checkReads(world: World, fail: (what: string) => void): void {
  for (const { diskId, branch, hashes } of world.reads) {
    const whole = lineOf(world, diskId, branch);
    const from = hashes.length === 0 ? 0 : whole.indexOf(hashes[0]!);
    const matches = from >= 0 && hashes.every((hash, index) => whole[from + index] === hash);
    if (!matches) fail(`${diskId}/${branch}: a reader saw what is not a part of its history`);
    else if (from > 0 && world.collections === 0) fail(`${diskId}/${branch}: a reader missed the beginning`);
  }
}

export function lineOf(world: World, diskId: string, branch: string): string[] {
  const origin = originOf(world, diskId, branch);
  const own = historyOf(world, diskId, branch).commits.map((commit) => commit.commitHash);
  if (origin === undefined) return own;
  const before = lineOf(world, diskId, origin.branch);
  const fork = world.store.slots.get(`${diskId}/${origin.branch}`)?.get(origin.seq)?.commitHash;
  // Seq 0 of a branch is where that branch left its own parent.
  const inherited =
    fork === undefined
      ? before.slice(0, before.length - historyOf(world, diskId, origin.branch).commits.length)
      : before.slice(0, before.indexOf(fork) + 1);
  return [...inherited, ...own];
}

/** Every point that was ever offered is one cut over all disks. */
function checkPoints(world: World, fail: (what: string) => void): void {
  const offered = new Map(
    [...world.points, ...world.fences.flatMap((fence) => fence.newestPoint ?? [])].map((point) => [
      JSON.stringify(point.members),
      point,
    ]),
  );
  for (const point of offered.values()) {
    const cut = world.sources.get(point.members[0]!.branch)?.cuts.get(point.barrier);
    if (cut === undefined || point.members.length !== world.disks.length) {
      fail(`point ${point.barrier} is no cut`);
      continue;
    }
    for (const { diskId, branch, seq, commitHash } of point.members) {
      const counted =
        seq === 0 || historyOf(world, diskId, branch).commits.some((commit) => commit.commitHash === commitHash);
      if (!counted) fail(`point ${point.barrier} names ${diskId}/${branch}/${seq}, which does not count`);
      const last = contentAt(world, diskId, branch, seq);
      if (last !== cut.disks.get(diskId)!.last)
        fail(
          `point ${point.barrier} has ${diskId} at write ${last}, and the cut was at ${cut.disks.get(diskId)!.last}`,
        );
    }
  }
}
