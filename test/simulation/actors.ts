/**
 * Who lives in a simulated world: movers that write a source's cuts, the workers of a failover or an undo, readers, and a collector. All of
 * them call the real code; what is here is only what surrounds it in production, made small.
 */
import { isFault, type Fault } from "#model/fault.ts";
import type { GroupContext } from "../../src/data-mover/barriers.ts";
import type { DiskWriter } from "../../src/data-mover/commit-log.ts";
import type { Actor } from "./scheduler.ts";
import { contentAt, historyOf } from "./oracle.ts";
import { GROUP, groupOf, note, violate, type Cut, type Operation, type Source, type World } from "./world.ts";

/** A master target's process that receives a source's stream: opens its disks, then commits cut after cut until it is told not to. */
export async function mover(
  world: World,
  actor: Actor,
  source: Source,
  limits: { readonly cycles: number; readonly reopens: number; readonly points: number; readonly stormyOnly: boolean },
): Promise<number> {
  const { dice } = world.scheduler;
  const group = groupOf(world, actor);
  let points = 0;
  const goesOn = (): boolean => points < limits.points && (world.stormy || !limits.stormyOnly);
  for (let attempt = 0; attempt <= limits.reopens && goesOn(); attempt++) {
    const before = { ...world };
    try {
      const open = (diskId: string): Promise<DiskWriter> => {
        const { site, branch } = source;
        return world.protocol.openWriter(group.disk(diskId), {
          site,
          branch,
          holder: actor.name,
          operation: `open/${actor.name}`,
        });
      };
      const writers = await Promise.all(world.disks.map(open));
      note(
        world,
        actor,
        `opened ${writers.map((writer) => `${writer.diskId} epoch ${writer.epoch} after cycle ${writer.data.cycle}`).join(", ")}`,
      );
      const highest = Math.max(0, ...(await world.protocol.listBarriers(group)));
      source.nextCycle = Math.max(source.nextCycle, highest + 1, ...writers.map((writer) => writer.data.cycle + 1));
      for (let count = 0; count < limits.cycles && goesOn(); count++) {
        const cut = nextCut(world, source, writers, highest);
        if (cut === undefined) continue;
        await commitCut(world, actor, source, cut, writers);
        if (await placeBarrier(world, actor, group, source, cut, writers)) points++;
      }
      return points;
    } catch (error) {
      if (!isFault(error)) throw error;
      note(world, actor, `met ${error.code}: ${error.message}`);
      checkFault(world, actor, error, before);
      if (error.code === "FENCED" && error.details["reason"] === "moved" && dice.chance(0.5)) return points;
    }
  }
  return points;
}

/** Sent again from the spool where it fits, or cut anew: everything that the source has written since what is committed. */
function nextCut(
  world: World,
  source: Source,
  writers: readonly DiskWriter[],
  highestBarrier: number,
): Cut | undefined {
  const { dice } = world.scheduler;
  const positions = new Map(writers.map((writer) => [writer.diskId, lastWriteOf(source, writer)]));
  for (const cut of source.cuts.values()) {
    if (cut.cycle <= highestBarrier || cut.cycle < Math.max(...writers.map((writer) => writer.data.cycle))) continue;
    const open = writers.filter(
      (writer) => (cut.disks.get(writer.diskId)?.writes.length ?? 0) > 0 && writer.data.cycle !== cut.cycle,
    );
    const idle = writers.filter((writer) => !open.includes(writer) && writer.data.cycle !== cut.cycle);
    const fits =
      open.length > 0 &&
      open.every((writer) => cut.disks.get(writer.diskId)!.after === positions.get(writer.diskId)) &&
      idle.every((writer) => cut.disks.get(writer.diskId)!.last === positions.get(writer.diskId));
    if (fits && dice.chance(0.6)) return cut;
  }
  const still = dice.chance(world.stillness);
  for (const diskId of still ? [] : world.disks) {
    for (let count = dice.below(3); count > 0; count--) source.writes.get(diskId)!.push(++world.lastWrite);
  }
  const disks = new Map(
    writers.map(({ diskId }) => {
      const after = positions.get(diskId)!;
      const log = source.writes.get(diskId)!;
      const writes = log.slice(log.indexOf(after) + 1);
      return [diskId, { after, writes, last: writes.at(-1) ?? after }];
    }),
  );
  // A quiet cut may be a point of its own: nothing to commit, and a barrier.
  if ([...disks.values()].every(({ writes }) => writes.length === 0) && dice.chance(0.3)) return undefined;
  const cut: Cut = { cycle: source.nextCycle++, cutAtMs: world.scheduler.now, point: dice.chance(0.85), disks };
  source.cuts.set(cut.cycle, cut);
  return cut;
}

function lastWriteOf(source: Source, writer: DiskWriter): number {
  if (writer.data.seq === 0) return source.start.get(writer.diskId)!;
  return source.cuts.get(writer.data.cycle)!.disks.get(writer.diskId)!.last;
}

async function commitCut(
  world: World,
  actor: Actor,
  source: Source,
  cut: Cut,
  writers: readonly DiskWriter[],
): Promise<void> {
  const { cycle, cutAtMs, point } = cut;
  const cycleDisks = [...cut.disks.values()].filter(({ writes }) => writes.length > 0).length;
  const commits = writers.map(async (writer) => {
    const { after, writes } = cut.disks.get(writer.diskId)!;
    if (writes.length === 0 || writer.data.cycle === cycle) return;
    const payload = { cycle, cutAtMs, cycleDisks, point, writes, after };
    const { epoch, seq, commitHash } = await writer.commit({
      cycle,
      cutAtMs,
      seal: (place) => world.store.seal(writer.diskId, place, payload),
    });
    note(world, actor, `acknowledges ${writer.diskId} ${source.branch}/${seq} epoch ${epoch} cycle ${cycle}`);
    world.acknowledged.push({
      site: source.site,
      diskId: writer.diskId,
      branch: source.branch,
      epoch,
      seq,
      commitHash,
    });
  });
  const failed = (await Promise.allSettled(commits)).find((outcome) => outcome.status === "rejected");
  if (failed !== undefined) throw failed.reason;
}

async function placeBarrier(
  world: World,
  actor: Actor,
  group: GroupContext,
  source: Source,
  cut: Cut,
  writers: readonly DiskWriter[],
): Promise<boolean> {
  if (!cut.point) return false;
  const quiet = [...cut.disks.values()].every(({ writes }) => writes.length === 0);
  const epochs = new Map(writers.map((writer) => [writer.diskId, writer.epoch]));
  const noted = { branch: source.branch, barrier: cut.cycle, epochs };
  // All its commits are acknowledged: a failover must find it, whether its writer comes to write the barrier or not.
  if (!quiet) world.barriers.push(noted);
  const members = writers.map((writer) => world.protocol.barrierMember(writer.diskId, source.branch, writer.data));
  const { cycle: barrier, cutAtMs } = cut;
  await world.protocol.writeBarrier(group, {
    barrier,
    groupId: GROUP,
    groupEpoch: 1,
    cutAtMs,
    consistency: "crash",
    members,
  });
  if (quiet) {
    world.quietBarriers++;
    await Promise.all(writers.map((writer) => writer.assertNewest()));
  }
  note(world, actor, `acknowledges barrier ${barrier}`);
  if (quiet) world.barriers.push(noted);
  return true;
}

/** A worker that carries out an operation, from the top; several may do so at once, and any may die. */
export async function worker(world: World, actor: Actor, operation: Operation): Promise<void> {
  const group = groupOf(world, actor);
  const { id, site, branch, knownEpoch } = operation;
  for (let attempt = 0; attempt < 6; attempt++) {
    const before = { ...world };
    try {
      const fenced = await world.protocol.fenceGroup(group, {
        operation: id,
        activeSite: site,
        disks: world.disks,
        holder: actor.name,
        knownEpoch,
        // Back home the source goes on at once; elsewhere nobody may, before there is a branch for it.
        ...(operation.kind === "undo" ? { resume: branch } : { resume: false }),
      });
      note(
        world,
        actor,
        `fenced ${fenced.branch} at ${fenced.disks.map((disk) => `${disk.diskId}/${disk.last.seq}`).join(", ")}, newest point ${fenced.newestPoint?.barrier}`,
      );
      world.fences.push(fenced);
      if (operation.kind === "failover") {
        if (operation.point === undefined) {
          const points = await world.protocol.listPoints(group, { limit: 2, branch: fenced.branch });
          operation.point ??= (world.scheduler.dice.chance(0.7) ? fenced.newestPoint : points.at(-1)) ?? "none";
        }
        if (operation.point === "none") return finish(world, actor, operation);
        for (const { diskId, ...parent } of operation.point.members) {
          await world.protocol.createBranch(group.disk(diskId), { branch, parent, reason: "failover", operation: id });
        }
      }
      for (const diskId of operation.kind === "undo" ? [] : world.disks) {
        await world.protocol.claimBranch(group.disk(diskId), {
          operation: id,
          groupEpoch: fenced.groupEpoch,
          activeSite: site,
          branch,
          holder: actor.name,
        });
      }
      return finish(world, actor, operation);
    } catch (error) {
      if (!isFault(error)) throw error;
      note(world, actor, `met ${error.code}: ${error.message}`);
      if (error.code === "FENCED") return; // A newer operation goes on from here.
      checkFault(world, actor, error, before);
    }
  }
}

function finish(world: World, actor: Actor, operation: Operation): void {
  if (operation.state === "done") return;
  operation.state = "done";
  const { point, site, branch } = operation;
  note(world, actor, `has finished ${operation.id}`);
  const active = operation === world.operations.at(-1);
  if (operation.kind === "undo") {
    if (active) world.active = { site, branch };
    return;
  }
  if (point === "none" || point === undefined) {
    if (active) world.active = { site, branch: "" }; // Nothing to go on from: only an undo helps.
    return;
  }
  const start = new Map(
    point.members.map((member) => [member.diskId, contentAt(world, member.diskId, member.branch, member.seq)]),
  );
  const writes = new Map([...start].map(([diskId, last]) => [diskId, [last]]));
  world.sources.set(branch, { site, branch, start, writes, cuts: new Map(), nextCycle: 1 });
  if (active) world.active = { site, branch };
}

/** Somebody reads a branch to its end, or lists the points, while all else goes on. */
export async function reader(world: World, actor: Actor, branch: string): Promise<void> {
  const group = groupOf(world, actor);
  for (let attempt = 0; attempt < 4; attempt++) {
    const before = { ...world };
    try {
      if (world.scheduler.dice.chance(0.3)) {
        world.points.push(...(await world.protocol.listPoints(group)));
        return;
      }
      const diskId = world.scheduler.dice.pick(world.disks);
      const hashes: string[] = [];
      for await (const { header } of world.protocol.readBranch(group.disk(diskId), branch))
        hashes.push(header.commitHash);
      world.reads.push({ diskId, branch, hashes, from: 0 });
      return;
    } catch (error) {
      if (!isFault(error)) throw error;
      note(world, actor, `met ${error.code}: ${error.message}`);
      if (error.code === "NOT_FOUND") return;
      checkFault(world, actor, error, before);
    }
  }
}

/** Drops commits that no point anyone may still choose needs, and that a manifest vouches for. Never the newest. */
export async function collector(world: World, actor: Actor): Promise<void> {
  const group = groupOf(world, actor);
  const barriers = [...world.store.memory.objects.keys()].filter((key) => key.startsWith(group.names.barriers));
  for (const diskId of world.disks) {
    for (const branch of world.sources.keys()) {
      const named: number[] = [];
      for (const key of barriers) {
        const record = await world.protocol
          .readBarrier(group, Number.parseInt(key.slice(group.names.barriers.length), 16))
          .catch(() => undefined);
        const member = record?.members.find((candidate) => candidate.diskId === diskId && candidate.branch === branch);
        if (member !== undefined && member.seq > 0) named.push(member.seq);
      }
      const forks = world.operations.flatMap(({ point }) =>
        typeof point === "object"
          ? point.members
              .filter((member) => member.diskId === diskId && member.branch === branch)
              .map((member) => member.seq)
          : [],
      );
      const seq = Math.min(named.at(-3) ?? 0, ...forks);
      const history = historyOf(world, diskId, branch);
      const header = history.commits.find((commit) => commit.seq === seq);
      const key = `${diskId}/${branch}`;
      const before = world.checkpoints.get(key)?.seq ?? 0;
      if (header === undefined || header.kind === "fence" || seq <= before) continue;
      const { epoch, commitHash, cycle, cutAtMs, writerId } = header;
      world.collections++;
      note(world, actor, `collects ${key} up to ${seq}`);
      world.checkpoints.set(key, {
        epoch,
        seq,
        commitHash,
        data: { epoch, seq, commitHash, cycle, cutAtMs, writerId },
      });
      const names = group.disk(diskId).names;
      const newest = Math.max(...world.store.slots.get(key)!.keys());
      const gone = Array.from({ length: seq - before }, (_, index) => before + 1 + index)
        .filter((candidate) => candidate < newest || world.sparesNothing)
        .map((candidate) => names.commit(branch, candidate));
      await group.store.delete(gone).catch(() => undefined); // What stays is garbage for the next pass.
    }
  }
}

/** What may go wrong for an actor at all, and what would be a lie. */
function checkFault(
  world: World,
  actor: Actor,
  fault: Fault,
  before: { readonly created: boolean; readonly collections: number },
): void {
  switch (fault.code) {
    case "STORE_UNAVAILABLE":
    case "STORE_AMBIGUOUS":
    case "STORE_THROTTLED":
      if (!world.stormy && world.collections === 0 && fault.code !== "STORE_UNAVAILABLE")
        violate(world, `${actor.name} met ${fault.code} in fair weather`);
      return;
    case "FENCED": {
      const { diskId, epoch } = fault.details as { diskId: string; epoch: number };
      const claims = [...world.store.memory.objects.keys()].filter((key) => key.startsWith(`disks/${diskId}/epochs/`));
      if (claims.length <= epoch) violate(world, `${actor.name} was fenced at epoch ${epoch} of ${diskId} by nobody`);
      return;
    }
    case "REFUSED":
      // A fenced source may still have taken a number, for a cut in which nothing changed; opening again leads above it.
      if (world.quietBarriers > 0) return;
      break;
    case "NOT_FOUND":
      if (!before.created) return;
      break;
    case "CHAIN_BROKEN":
    case "OBJECT_MISSING":
      if (before.collections !== world.collections) return; // What it was about to read was collected.
      break;
    default:
  }
  violate(world, `${actor.name} met ${fault.code}: ${fault.message}`);
}
