/**
 * One group at the mover: the stream of its process server, its cycles, its barriers, its progress.
 *
 * ```
 *   stream.open ──► streaming ──frames…──cycle.commit──► streaming …      at most two cycles open
 *        ▲              │ a newer stream.open, a lost link, a fence
 *        └──────────────┴──► ended: its open cycles are dropped, its buffers given back; the source has everything still
 * ```
 *
 * Invariants:
 * - cycles are committed one after the other, in the order of their numbers; a later one never overtakes a failed one;
 * - a cycle that is committed is never committed again: its number stands in the commits, and a repeat is answered from there;
 * - a barrier is written after every commit that it names, and when nothing changed since the newest barrier, that one
 *   stands for the new cut too;
 * - the store decides who may write. What this file remembers only saves requests.
 */
import type { Comparison } from "#model/comparison.ts";
import { Fault, isFault } from "#model/fault.ts";
import { FLAG_POINT_CLEAN, FLAG_SYNC_IN_PROGRESS } from "#model/format/header.ts";
import type { Peer } from "#ports/link.ts";
import type { Log } from "#ports/log.ts";
import type { GroupProgress } from "#ports/replication.ts";
import type { GroupContext } from "./barriers.ts";
import { NO_COMMIT } from "./branch-reader.ts";
import type { MoverDisk } from "./mover-disk.ts";
import type {
  CompareRun,
  CycleCommit,
  CycleCommitted,
  CycleDisk,
  FramesHead,
  StreamOpen,
  StreamOpened,
} from "./mover-messages.ts";
import { checkCompareRun, comparedDisks, type ComparedDisks } from "./compared-disks.ts";
import { progressOf, type ProgressFacts } from "./mover-progress.ts";
import { settleAll, within } from "./mover-waits.ts";
import { createNewestBarrier } from "./newest-barrier.ts";
import { openCycles, type OpenCycles } from "./open-cycles.ts";
import { asSeenBySource, assertItsSource, type GroupSource } from "./group-source.ts";
import { createTransferRate } from "./transfer-rate.ts";

export interface MoverGroup {
  /** Supersedes the stream before. Throws FENCED, REFUSED, STORE_…, PEER_UNREACHABLE (superseded meanwhile). */
  open(peer: Peer, request: StreamOpen): Promise<StreamOpened>;
  /** Frames on `peer` belong to this stream from now on; the lane ends with it. Throws PROTOCOL_INVALID for an old stream. */
  join(peer: Peer, streamId: string): void;
  receive(head: FramesHead, payload: Uint8Array): Promise<void>;
  /** A disk will be compared in a cycle: the stripes in which the replica has data. Throws like `ComparedDisks.begin`. */
  beginCompare(head: FramesHead): Promise<Uint8Array>;
  compare(request: CompareRun): Promise<Comparison>;
  commit(request: CycleCommit): Promise<CycleCommitted>;
  /** End the stream, if there is one, and tell its source why. */
  end(fault: Fault): void;
  /** Nothing of an ended stream runs any more. */
  settled(): Promise<void>;
  progress(): GroupProgress;
}

export type MoverGroupSpec = GroupSource;

export interface MoverGroupDeps {
  readonly context: GroupContext;
  readonly storeId: string;
  /** Its disks, by id; opened by the stream. */
  readonly disks: ReadonlyMap<string, MoverDisk>;
  readonly log: Log;
  readonly onProgress: () => void;
  readonly newStreamId: () => string;
  /** How long a commit waits for records, and for a store that fails, before it says so. */
  readonly patienceMs: number;
}

interface Stream {
  readonly id: string;
  readonly peers: Set<Peer>;
  readonly request: StreamOpen;
  readonly disks: readonly MoverDisk[];
  readonly cycles: OpenCycles;
  readonly compared: ComparedDisks;
  readonly ended: AbortController;
  /** A cycle whose commit was asked for and failed: the source will ask again, and nothing may overtake it. */
  failedCycle: number;
}

export function moverGroup(spec: MoverGroupSpec, deps: MoverGroupDeps): MoverGroup {
  const { context, log } = deps;
  const { clock } = context;
  const rate = createTransferRate();
  let stream: Stream | undefined;
  const newestBarrier = createNewestBarrier(context, { isOurs: (diskId) => deps.disks.has(diskId) });
  let facts: ProgressFacts = {
    state: "waiting",
    fault: undefined,
    reported: new Map(),
    syncTotalBytes: 0,
    currentAsOfMs: 0,
    barrierCommittedAtMs: 0,
    commits: 0,
    shippedBytes: 0,
    backlogBytes: 0,
    writtenBytes: 0,
  };

  const tell = (change: Partial<ProgressFacts>): void => {
    facts = { ...facts, ...change };
    deps.onProgress();
  };

  /** Opening and committing, one at a time. */
  let queue: Promise<unknown> = Promise.resolve();
  const inTurn = <Result>(work: () => Promise<Result>): Promise<Result> => {
    const done = queue.then(work);
    queue = done.catch(() => undefined); // Its caller has the error.
    return done;
  };

  const current = (streamId: string): Stream => {
    if (stream?.id === streamId) return stream;
    throw new Fault("PROTOCOL_INVALID", `Stream "${streamId}" of group "${spec.groupId}" is over`, {
      hint: "Open a new stream; what was not acknowledged has to be sent again.",
    });
  };

  const diskOf = ({ streamId, diskId }: FramesHead): MoverDisk => {
    const disk = current(streamId).disks.find((one) => one.diskId === diskId);
    if (!disk) throw new Fault("PROTOCOL_INVALID", `Disk "${diskId}" is not part of the stream`);
    return disk;
  };

  const end = (fault: Fault): void => {
    const ending = stream;
    if (!ending) return;
    stream = undefined;
    ending.ended.abort(fault);
    for (const peer of ending.peers) peer.close(fault);
    for (const disk of ending.disks) disk.dropImage();
    const assemblies = ending.cycles.takeAll();
    for (const assembly of assemblies) assembly.abort(fault);
    // In turn: a commit on its way still looks into the buffers.
    void inTurn(() => Promise.all(assemblies.map((assembly) => assembly.release())));
    deps.onProgress();
  };

  const fail = (error: unknown): Fault => {
    if (!isFault(error)) throw error;
    const fault = asSeenBySource(error);
    tell({ fault, state: fault.code === "FENCED" ? "fenced" : facts.state });
    return fault;
  };

  const openStream = async (peer: Peer, request: StreamOpen): Promise<StreamOpened> => {
    const disks = request.disks.map(({ diskId, sizeBytes }) => {
      const disk = deps.disks.get(diskId);
      if (!disk)
        throw new Fault("NOT_FOUND", `Disk "${diskId}" was not prepared for group "${spec.groupId}"`, {
          hint: "Protect the machine again with this disk.",
        });
      if (disk.sizeBytes === sizeBytes) return disk;
      throw new Fault(
        "REFUSED",
        `Disk "${diskId}" has ${sizeBytes} bytes at the source and ${disk.sizeBytes} in the store`,
        { hint: "A resized disk has to be protected again." },
      );
    });
    await Promise.all(
      disks.map((disk) => disk.open({ site: spec.sourceSite, branch: request.branch, sourceLife: request.sourceLife })),
    );
    const newestNumber = await newestBarrier.look();
    const cycles = openCycles(spec.groupId);
    const next: Stream = {
      id: deps.newStreamId(),
      peers: new Set([peer]),
      request,
      disks,
      cycles,
      compared: comparedDisks(cycles, context.random),
      ended: new AbortController(),
      failedCycle: 0,
    };
    stream = next;
    void peer.closed.then(() => {
      if (stream === next) end(new Fault("PEER_UNREACHABLE", "The link to the process server ended"));
    });
    tell({ state: stateNow([...facts.reported.values()]), fault: undefined });
    log.info("A stream was opened", { streamId: next.id, site: peer.identity.site, branch: request.branch });
    return {
      streamId: next.id,
      storeId: deps.storeId,
      barrier: Math.max(newestNumber, ...disks.map((disk) => disk.data.cycle)),
      disks: disks.map(({ diskId, epoch, data }) => ({
        diskId,
        epoch,
        seq: data.seq,
        commitHash: data.commitHash,
        cycle: data.cycle,
        sourceLife: data.writerId.slice(0, 8),
        stored: data.commitHash !== NO_COMMIT,
      })),
    };
  };

  const stateNow = (remaining: readonly number[]): GroupProgress["state"] =>
    !newestBarrier.record || remaining.some((bytes) => bytes > 0) ? "seeding" : "live";

  const commitCycle = async (own: Stream, request: CycleCommit): Promise<CycleCommitted> => {
    own.ended.signal.throwIfAborted();
    const { cycle } = request;
    for (const earlier of own.cycles.before(cycle)) {
      if (earlier === own.failedCycle)
        throw new Fault(
          "STORE_UNAVAILABLE",
          `Cycle ${earlier} is not committed yet, and cycle ${cycle} may not overtake it`,
          { hint: "Commit the cycles in order." },
        );
      // Requests come in order, so the source has given this one up: what it held goes into a later cycle.
      log.info("A cycle was given up by its source", { cycle: earlier });
      await own.cycles.drop(earlier);
    }
    const giveUpAtMs = clock.monotonic() + deps.patienceMs;
    const byDisk = request.disks.map((disk) => ({
      disk: own.disks.find(({ diskId }) => diskId === disk.diskId),
      counted: disk,
    }));
    const withRecords = byDisk.filter(({ counted }) => counted.records > 0);
    const clean = request.point && request.consistent;
    // Monotone along every branch of the group, whatever the source's clock does.
    const cutMs = Math.max(request.cutAtMs, ...own.disks.map((disk) => disk.data.cutAtMs));

    // Of a disk that was compared and found the same, there is no commit that looks.
    await settleAll(
      byDisk.map(async ({ disk, counted }) => {
        const base = own.compared.base(cycle, counted.diskId);
        if (base !== undefined && counted.records === 0) await disk?.assertStillAt(base); // [compare quiet]
      }),
    );
    const committed = await settleAll(
      withRecords.map(async ({ disk, counted }) => {
        if (!disk) throw new Fault("PROTOCOL_INVALID", `Disk "${counted.diskId}" is not part of the stream`);
        const position = disk.data.cycle >= cycle ? disk.data : await commitDisk(own, disk, counted);
        return { diskId: disk.diskId, epoch: position.epoch, seq: position.seq, commitHash: position.commitHash };
      }),
    );

    async function commitDisk(own: Stream, disk: MoverDisk, counted: CycleDisk) {
      const assembly = own.cycles.assembly(disk, cycle);
      await within(
        deps.patienceMs,
        assembly.complete(counted.records),
        () =>
          disk.trouble ??
          new Fault(
            "TIMED_OUT",
            `Cycle ${cycle} of disk "${disk.diskId}" has ${assembly.records} of ${counted.records} records`,
          ),
      );
      const generation = Number(counted.tracker.generation);
      return disk.commit(assembly, {
        cutAtMs: cutMs,
        giveUpAtMs,
        base: own.compared.base(cycle, disk.diskId),
        details: {
          cycle,
          cycleDisks: withRecords.length,
          flags: (clean ? FLAG_POINT_CLEAN : 0) | (counted.syncRemainingBytes > 0 ? FLAG_SYNC_IN_PROGRESS : 0),
          cutMs,
          rawCutMs: request.cutAtMs,
          // A tracker whose generation is not a number is told apart by its boot id alone.
          tracker: {
            bootId: counted.tracker.bootId,
            generation: Number.isSafeInteger(generation) && generation >= 0 ? generation : 0,
            lostEvents: 0,
            holdMs: 0,
          },
          barrier: {
            groupId: spec.groupId,
            groupEpoch: request.streamId === own.id ? own.request.groupEpoch : 0,
            barrier: cycle,
            point: clean,
          },
          sync: { remainingBytes: counted.syncRemainingBytes, totalBytes: request.syncTotalBytes },
        },
      });
    }

    const stands = clean
      ? await newestBarrier.at(
          { groupId: spec.groupId, groupEpoch: own.request.groupEpoch, branch: own.request.branch, disks: own.disks },
          { cycle, cutMs, changed: withRecords.length > 0 },
        )
      : undefined;
    // Who had records has looked by committing them; of an idle disk, only this says that its site may still speak for it.
    if (stands) {
      const idle = own.disks.filter(({ diskId }) => !withRecords.some(({ disk }) => disk?.diskId === diskId));
      await settleAll(idle.map((disk) => disk.assertNewest())); // [quiet barrier]
    }
    await own.cycles.drop(cycle);
    own.compared.drop(cycle);
    for (const { disk, counted } of byDisk) if (counted.syncRemainingBytes === 0) disk?.dropImage();
    tell({
      state: stateNow(request.disks.map((disk) => disk.syncRemainingBytes)),
      fault: undefined,
      reported: new Map(request.disks.map((disk) => [disk.diskId, disk.syncRemainingBytes])),
      syncTotalBytes: request.syncTotalBytes,
      commits: facts.commits + committed.length,
      backlogBytes: request.backlogBytes,
      writtenBytes: request.writtenBytes,
      ...(stands ? { currentAsOfMs: Math.max(facts.currentAsOfMs, request.cutAtMs) } : {}),
      ...(stands?.barrier === cycle ? { barrierCommittedAtMs: clock.now() } : {}),
    });
    return {
      committed,
      barrier: stands !== undefined,
      barrierNumber: stands?.barrier ?? 0,
      barrierCutAtMs: stands?.cutAtMs ?? 0,
    };
  };

  return {
    async open(peer, request) {
      assertItsSource(spec, peer, request.sourceSite);
      // Before our turn: a commit of the older stream that waits for records would else keep us waiting.
      const superseded = new Fault("PEER_UNREACHABLE", `A newer stream of group "${spec.groupId}" was opened`);
      end(superseded);
      try {
        return await inTurn(async () => {
          end(superseded);
          return openStream(peer, request);
        });
      } catch (error) {
        throw fail(error);
      }
    },
    join(peer, streamId) {
      const own = current(streamId);
      if (peer.identity.site !== spec.sourceSite)
        throw new Fault("PEER_REJECTED", `Group "${spec.groupId}" is replicated from site "${spec.sourceSite}"`);
      own.peers.add(peer);
      void peer.closed.then(() => own.peers.delete(peer));
    },
    async receive(head, payload) {
      const own = current(head.streamId);
      const disk = diskOf(head);
      facts = { ...facts, shippedBytes: facts.shippedBytes + payload.length };
      if (disk.data.cycle >= head.cycle) return; // Sent again after a lost answer; it is committed.
      const assembly = own.cycles.assembly(disk, head.cycle);
      const before = assembly.sweptBytes;
      // A store that stays down must not keep the link's messages waiting for ever: the source opens again, and has everything.
      const late = (): Fault => {
        const fault = disk.trouble ?? new Fault("STORE_UNAVAILABLE", "Segments could not be stored in time");
        if (stream === own) end(fault); // Before the payload goes back to its pool: nothing may look into it then.
        return fault;
      };
      await within(2 * deps.patienceMs, assembly.receive(payload), late);
      rate.add(assembly.sweptBytes - before, clock.monotonic());
      deps.onProgress();
    },
    beginCompare: async (head) => current(head.streamId).compared.begin(diskOf(head), head.cycle),
    async compare(request) {
      const disk = diskOf(request);
      checkCompareRun(disk, request);
      return current(request.streamId).compared.run(disk, request);
    },
    async commit(request) {
      const own = current(request.streamId);
      try {
        const committed = await inTurn(() => commitCycle(own, request));
        own.failedCycle = 0;
        return committed;
      } catch (error) {
        own.failedCycle = request.cycle;
        const fault = fail(error);
        if (fault.code === "FENCED" || fault.code === "PEER_UNREACHABLE") {
          // After the answer, which says more than a closed link.
          setImmediate(() => {
            if (stream === own) end(fault);
          });
        }
        throw fault;
      }
    },
    end(fault) {
      tell({ fault, state: fault.code === "FENCED" ? "fenced" : facts.state });
      end(fault);
    },
    settled: () => inTurn(() => Promise.resolve()),
    progress: () =>
      progressOf(facts, {
        groupId: spec.groupId,
        connected: stream !== undefined,
        disks: [...deps.disks.values()],
        newestBarrier: newestBarrier.record,
        syncBytesPerSecond: rate.perSecond(clock.monotonic()),
        nowMs: clock.now(),
      }),
  };
}
