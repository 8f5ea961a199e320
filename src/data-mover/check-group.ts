/**
 * Looks at the records of one group, and says of each of its points whether every disk can be read there: the commits that it names, and
 * what the disks' histories have lost by then.
 */
import { decodeRecord } from "#model/format/json-record.ts";
import { formatPointId, groupNames, parsePointId } from "#model/format/object-names.ts";
import type { Mac } from "#model/format/mac-record.ts";
import {
  decodeBarrier,
  decodeGroupClaim,
  decodePoint,
  encodeBarrier,
  encodeGroupClaim,
  encodePoint,
  type BarrierMember,
  type BarrierRecord,
  type PointRecord,
} from "#model/format/records.ts";
import type { CommitFacts, HeldAnchor } from "./check-branch.ts";
import type { DiskState } from "./check-disk.ts";
import type { Findings } from "./check-findings.ts";
import type { CheckRecords } from "./check-records.ts";
import { listNumbers } from "./claims.ts";
import { storeOptions, type StoreContext } from "./disk-context.ts";

export interface CheckedPoint {
  readonly groupId: string;
  readonly id: string;
  readonly cutAtMs: number;
  readonly name?: string;
  /** `good`: everything that was looked at holds. `damaged`: some blocks are lost. `suspect`: without keys it cannot be said. */
  readonly state: "good" | "suspect" | "damaged" | "unreadable";
  readonly lostBytes: number;
}

export async function checkGroup(options: {
  readonly context: StoreContext;
  readonly groupId: string;
  readonly disks: ReadonlyMap<string, DiskState>;
  readonly findings: Findings;
  readonly records: CheckRecords;
  /** Undefined: kept points are read, and their MAC is not checked. */
  readonly mac: Mac | undefined;
}): Promise<CheckedPoint[]> {
  const { context, groupId, disks, findings, records } = options;
  const names = groupNames(context.root, groupId);
  await checkClaims();
  const points: CheckedPoint[] = [];
  const barriers = new Map<number, BarrierRecord | undefined>();
  for (const barrier of await listNumbers(context, names.barriers)) {
    const key = names.barrier(barrier);
    const { record } = await records.read(key, {
      kind: "barrier",
      decode: (data) => decodeBarrier(data, key),
      encode: encodeBarrier,
      wrong: (found) => wrongBarrier(found, barrier) ?? wrongCut(found),
    });
    barriers.set(barrier, record);
    if (record !== undefined && !hasExpired(record)) points.push(judgePoint(record, key));
  }
  await checkKept();
  noticeUnnamedCuts();
  return points.sort((a, b) => (a.id < b.id ? 1 : -1));

  async function checkClaims(): Promise<void> {
    let expected = 1;
    for (const epoch of await listNumbers(context, names.epochs)) {
      for (; expected < epoch; expected++) {
        const message = `The claim of group epoch ${expected} is missing, and claims are never deleted`;
        findings.add({ code: "OBJECT_MISSING", kind: "group-claim", key: names.epoch(expected), message });
      }
      expected = epoch + 1;
      const key = names.epoch(epoch);
      await records.read(key, {
        kind: "group-claim",
        decode: (data) => decodeGroupClaim(data, key),
        encode: encodeGroupClaim,
        wrong: (claim) =>
          claim.groupEpoch === epoch ? undefined : `It is the claim of group epoch ${claim.groupEpoch}`,
      });
    }
  }

  async function checkKept(): Promise<void> {
    for await (const { key } of context.store.list(names.points, storeOptions(context))) {
      const id = parsePointId(key.slice(names.points.length));
      if (id === undefined) continue; // The listing of names has said so.
      const { mac } = options;
      const { record } = await records.read<PointRecord>(key, {
        kind: "point",
        decode: (data) => (mac === undefined ? decodeUnsealedPoint(data, key) : decodePoint(data, key, mac)),
        ...(mac === undefined ? {} : { encode: (point) => encodePoint(point, mac) }),
        wrong({ barrier }) {
          if (formatPointId(barrier.cutAtMs, barrier.barrier) !== key.slice(names.points.length))
            return "It is another point";
          const other = barriers.get(barrier.barrier);
          if (other === undefined || JSON.stringify(other) === JSON.stringify(barrier)) return undefined;
          return mac === undefined ? "It and the barrier of its number differ" : undefined;
        },
      });
      if (record === undefined) continue;
      // A damaged barrier does not cost the point that was kept of it.
      const known = points.findIndex(
        (point) => point.id === formatPointId(record.barrier.cutAtMs, record.barrier.barrier),
      );
      const judged = { ...judgePoint(record.barrier, key), name: record.name };
      if (known < 0) points.push(judged);
      else points[known] = judged;
    }
  }

  function judgePoint(record: BarrierRecord, key: string): CheckedPoint {
    const id = formatPointId(record.cutAtMs, record.barrier);
    let unreadable = false;
    let suspect = false;
    let lostBlocks = 0;
    for (const member of record.members) {
      const disk = disks.get(member.diskId);
      const found = disk === undefined ? [missingDisk(member, key)] : missingCommit(disk, member, key);
      const state = disk?.stateAt(member.branch, member.seq, record.barrier);
      const reasons = state !== undefined && state.unreadable.length > 0 ? state.unreadable : found;
      for (const finding of reasons) findings.affect(finding, id, "points");
      unreadable ||= reasons.length > 0;
      if (state === undefined) continue;
      for (let run = 0; run < state.lost.count; run++) {
        findings.affect(state.lost.source[run]!, id, "points");
        lostBlocks += state.lost.length[run]!;
      }
      for (const finding of state.suspects) {
        findings.affect(finding, id, "suspectPoints");
        suspect = true;
      }
    }
    const state = unreadable ? "unreadable" : lostBlocks > 0 ? "damaged" : suspect ? "suspect" : "good";
    return { groupId, id, cutAtMs: record.cutAtMs, state, lostBytes: lostBlocks * 4096 };
  }

  /** The collector takes the barrier too, when it comes by. */
  function hasExpired({ members }: BarrierRecord): boolean {
    return members.some(({ diskId, branch, seq }) => {
      const anchors = disks.get(diskId)?.branches.get(branch)?.anchors ?? [];
      const floor = Math.max(0, ...anchors.map(({ anchor }) => anchor.seq));
      return seq > 0 && seq < floor && !anchors.some(({ anchor }) => anchor.seq === seq);
    });
  }

  function missingDisk(member: BarrierMember, key: string): number {
    const message = `It names disk "${member.diskId}", of which the store has nothing`;
    return findings.add({ code: "OBJECT_MISSING", kind: "barrier", key, message, diskId: member.diskId });
  }

  /** Why the commit that a barrier names is not the one that is there. */
  function missingCommit(
    disk: DiskState,
    { diskId, branch, seq, epoch, commitHash }: BarrierMember,
    key: string,
  ): number[] {
    const line = disk.branches.get(branch);
    const where = { diskId, branch };
    if (line === undefined) {
      const message = `It names branch "${branch}" of disk "${diskId}", and there is none`;
      return [findings.add({ code: "OBJECT_MISSING", kind: "barrier", key, message, ...where })];
    }
    if (seq === 0) {
      if (line.startHash === commitHash) return [];
      const message = `It names the start of branch "${branch}" of disk "${diskId}" with another hash`;
      return [findings.add({ code: "CHAIN_BROKEN", kind: "barrier", key, message, ...where })];
    }
    const commit = line.commits.get(seq) ?? heldCommit(line.anchors, seq);
    if (commit === undefined) {
      const newest = Math.max(0, ...line.commits.keys());
      if (seq <= newest) return []; // Damaged, or a hole: found at its place.
      const message = `Barrier ${parseBarrier(key)} names commit ${seq} of branch "${branch}", and the branch ends at ${newest}`;
      return [
        findings.add({
          code: "OBJECT_MISSING",
          kind: "commit",
          key: disk.names.commit(branch, seq),
          message,
          ...where,
        }),
      ];
    }
    if (commit.commitHash === commitHash && commit.epoch === epoch && commit.counts && !commit.fence) return [];
    const message = `It names commit ${seq} of branch "${branch}" of disk "${diskId}", and the one that is there is another (hash ${commit.commitHash}, epoch ${commit.epoch})`;
    return [findings.add({ code: "CHAIN_BROKEN", kind: "barrier", key, message, ...where })];
  }

  /** What an anchor says of the commit after which it stands. */
  function heldCommit(anchors: readonly HeldAnchor[], seq: number) {
    const anchor = anchors.find((held) => held.anchor.seq === seq)?.anchor;
    return anchor && { commitHash: anchor.commitHash, epoch: anchor.epoch, counts: true, fence: false };
  }

  function parseBarrier(key: string): string {
    return key.slice(key.lastIndexOf("/") + 1).replace(/^0+(?=.)/, "");
  }

  function wrongBarrier(record: BarrierRecord, barrier: number): string | undefined {
    if (record.barrier !== barrier || record.groupId !== groupId)
      return `It is barrier ${record.barrier} of group "${record.groupId}"`;
    return record.members.length === 0 ? "It names no disk" : undefined;
  }

  /** Its time and kind are those of the commits that were made for it; it has them only for people to choose by. */
  function wrongCut({ barrier, cutAtMs, consistency, members }: BarrierRecord): string | undefined {
    const own = members.flatMap(({ diskId, branch, seq }): CommitFacts[] => {
      const commit = disks.get(diskId)?.branches.get(branch)?.commits.get(seq);
      return commit?.cycle === barrier ? [commit] : [];
    });
    if (own.length === 0) return undefined;
    const cut = Math.max(...own.map((commit) => commit.cutAtMs));
    if (own.length >= Math.max(...own.map((commit) => commit.cycleDisks)) && cut !== cutAtMs)
      return `It says that the cut was at ${cutAtMs}, and its commits say ${cut}`;
    const app = own.every((commit) => commit.appConsistent);
    return app === (consistency === "app") ? undefined : `It says "${consistency}", and its commits say otherwise`;
  }

  /** Cuts that are whole on their disks and of which there is no barrier. A writer that was killed leaves such; so does whoever deletes a barrier. */
  function noticeUnnamedCuts(): void {
    const byCycle = new Map<number, CommitFacts[]>();
    const members = new Set(
      [...barriers.values()].flatMap((record) => record?.members.map(({ diskId }) => diskId) ?? []),
    );
    for (const diskId of members) {
      for (const { commits } of disks.get(diskId)?.branches.values() ?? [])
        for (const commit of commits.values()) {
          if (!commit.clean || !commit.counts || commit.fence || barriers.has(commit.cycle)) continue;
          byCycle.set(commit.cycle, [...(byCycle.get(commit.cycle) ?? []), commit]);
        }
    }
    const whole = [...byCycle]
      .filter(([, commits]) => commits.length >= commits[0]!.cycleDisks)
      .map(([cycle]) => cycle);
    if (whole.length === 0) return;
    const first = Math.min(...whole);
    const which =
      whole.length === 1
        ? `the cut ${first}, and no barrier names it: it is`
        : `${whole.length} cuts from ${first} to ${Math.max(...whole)} that no barrier names: they are`;
    const message = `Every disk has ${which} no point`;
    findings.add({ level: "notice", code: "OBJECT_MISSING", kind: "barrier", key: names.barrier(first), message });
  }
}

/** A kept point without the key that proves it: what it says is held against the barrier and the commits. */
function decodeUnsealedPoint(data: Uint8Array, key: string): ReturnType<typeof decodePoint> {
  const { mac } = decodeRecord(data, key);
  return decodePoint(data, key, () => (typeof mac === "string" ? Buffer.from(mac, "hex") : new Uint8Array()));
}
