/**
 * A source that sweeps, cuts and commits in random order against the real mover of one disk, over a store in memory. What the source does is a model: a tap
 * that dies, a spool that sends late, streams that are lost. What is judged is code: the mover's group, its disks and its comparisons, the agent's
 * comparer, the process server's repeat filter.
 *
 * Few blocks and few contents, so that a block is often what it was before: that is where "the same" goes wrong. Every point is compared
 * with the disk at its cut.
 */
import { createFramePacker } from "#model/frame-packer.ts";
import { KIND_DELTA, KIND_SWEEP, MAX_FRAME_BLOCKS, readFrameRecords, type FrameKind } from "#model/frame-record.ts";
import { Fault, isFault } from "#model/fault.ts";
import { createRepeatFilter } from "#model/repeat-filter.ts";
import { BLOCK_SIZE } from "#model/units.ts";
import type { Peer } from "#ports/link.ts";
import { createFrameTools } from "../../src/agent/frame-tools.ts";
import { createStripeComparer } from "../../src/agent/stripe-comparer.ts";
import { systemClock } from "../../src/adapters/clock/system-clock.ts";
import { silentLog } from "../../src/adapters/log/pino-log.ts";
import { memoryStore } from "../../src/adapters/memory/memory-store.ts";
import { systemRandom } from "../../src/adapters/random/system-random.ts";
import type { StoreContext } from "../../src/data-mover/disk-context.ts";
import { createDisk } from "../../src/data-mover/disk-moves.ts";
import { claimGroupEpoch } from "../../src/data-mover/group-fence.ts";
import { openImage } from "../../src/data-mover/image.ts";
import { ensureStoreRecord, openMoverStore } from "../../src/data-mover/mover-store.ts";
import type { StreamOpened } from "../../src/data-mover/mover-messages.ts";
import { seededNumbers } from "../data-mover/mover-source.ts";

/** The modules under judgement: those of production, or a changed copy. */
export type MoverModules = Awaited<ReturnType<typeof loadMover>>;

export const MOVER_ROOTS = ["mover-group.ts", "mover-disk.ts", "container-buffers.ts", "segment-upload.ts"] as const;

export async function loadMover(folder: URL = new URL("../../src/data-mover/", import.meta.url)) {
  const load = <Module>(name: string): Promise<Module> => import(new URL(name, folder).href) as Promise<Module>;
  const [group, disk, buffers, upload] = await Promise.all([
    load<typeof import("../../src/data-mover/mover-group.ts")>(MOVER_ROOTS[0]),
    load<typeof import("../../src/data-mover/mover-disk.ts")>(MOVER_ROOTS[1]),
    load<typeof import("../../src/data-mover/container-buffers.ts")>(MOVER_ROOTS[2]),
    load<typeof import("../../src/data-mover/segment-upload.ts")>(MOVER_ROOTS[3]),
  ]);
  return { ...group, ...disk, ...buffers, ...upload };
}

export interface Outcome {
  readonly seed: number;
  /** A point that is not the disk at its cut. */
  readonly violation?: string;
  readonly points: number;
  /** Blocks that a sweep left out because the target had them. */
  readonly same: number;
  /** Commits that the mover refused because of what was compared. */
  readonly refused: number;
}

const BLOCKS = 24;
const CONTENTS = 3;
const STEPS = 60;
const GROUP = "group";
const DISK = "disk-0";
const LIFE = "0123abcd";

interface Cycle {
  readonly number: number;
  readonly life: number;
  readonly swept: number[];
  compared: boolean;
  sweepRecords: number;
  deltas: Uint8Array[];
  deltaRecords: number;
  sent: boolean;
  point: boolean;
  state: Uint8Array;
  remaining: number;
}

/** `waits`: the source compares only when all cycles before are committed, as the process server does. Without, the mover's own rules stand alone. */
export async function runCompared(
  modules: MoverModules,
  seed: number,
  options: { readonly waits: boolean },
): Promise<Outcome> {
  const random = seededNumbers(seed);
  const integer = (below: number): number => Math.floor(random() * below);
  const tools = createFrameTools();
  const target = await openTarget(modules);

  // The tap. Contents are small numbers; 0 is zeroes.
  const content = new Uint8Array(BLOCKS).map(() => integer(CONTENTS));
  let life = 0;
  let dirty = new Set<number>();
  let cuts = new Map<number, Set<number>>();
  let unsynced = new Set(content.keys());
  /** As of the newest commit. */
  let committed: Uint8Array = content.slice();
  /** Nothing is written within cycles. */
  let calm = false;
  const write = (writes: number): void => {
    for (let count = 0; count < writes; count++) {
      const block = integer(BLOCKS);
      content[block] = integer(CONTENTS);
      dirty.add(block);
    }
  };
  /** Blocks of open cuts become what they were before: where comparing with an old state goes wrong. */
  const restore = (): void => {
    for (const blocks of cuts.values())
      for (const block of blocks) {
        content[block] = committed[block]!;
        dirty.add(block);
      }
  };
  const plainOf = (block: number, value: number): Uint8Array => {
    const plain = new Uint8Array(BLOCK_SIZE);
    if (value > 0) plain.fill(value).set([block & 0xff, value]);
    return plain;
  };
  const read = (start: number, count: number, from: Uint8Array): Uint8Array => {
    const plain = new Uint8Array(count * BLOCK_SIZE);
    for (let at = 0; at < count; at++) plain.set(plainOf(start + at, from[start + at]!), at * BLOCK_SIZE);
    return plain;
  };

  // The process server.
  let number = 0;
  const inFlight: Cycle[] = [];
  let stream = await target.open();
  const filter = createRepeatFilter(1000);
  let points = 0;
  let same = 0;
  let refused = 0;

  const giveUpFrom = async (index: number): Promise<void> => {
    const lost = inFlight.splice(index);
    for (const cycle of lost) {
      for (const block of cuts.get(cycle.number) ?? []) dirty.add(block);
      cuts.delete(cycle.number);
    }
    filter.clear();
    await loseStream();
  };
  const loseStream = async (): Promise<void> => {
    stream = await target.open();
    for (const cycle of inFlight) cycle.sent = false;
    const lost = inFlight.findIndex((cycle) => cycle.compared || cycle.sweepRecords > 0);
    if (lost >= 0) await giveUpFrom(lost);
  };
  const payloadsOf = async (kind: FrameKind, fill: (add: (block: number) => Promise<void>) => Promise<void>) => {
    const payloads: Uint8Array[] = [];
    const packer = createFramePacker({
      tools,
      kind,
      frameBlocks: 16,
      compress: true,
      emit: async (payload) => void payloads.push(payload.slice()),
    });
    await fill((block) => packer.add(plainOf(block, content[block]!), block));
    await packer.flush();
    return payloads;
  };
  const send = async (cycle: Cycle, payload: Uint8Array): Promise<void> =>
    target.group.receive({ streamId: stream.streamId, diskId: DISK, cycle: cycle.number }, payload);

  const sweep = async (cycle: Cycle): Promise<void> => {
    const swept = new Set(inFlight.filter((one) => one.life === life).flatMap((one) => one.swept));
    const wanted = [...unsynced].filter((block) => !swept.has(block)).sort((a, b) => a - b);
    const part = wanted.slice(0, random() < 0.5 ? wanted.length : integer(wanted.length + 1));
    const head = { streamId: stream.streamId, diskId: DISK, cycle: cycle.number };
    if (random() < 0.9 && (!options.waits || inFlight[0] === cycle)) {
      try {
        await target.group.beginCompare(head);
        cycle.compared = true;
      } catch (error) {
        if (!isFault(error, "REFUSED") && !isFault(error, "NO_POINT")) throw error;
      }
    }
    const packer = createFramePacker({
      tools,
      kind: KIND_SWEEP,
      frameBlocks: MAX_FRAME_BLOCKS,
      compress: true,
      async emit(payload, records) {
        for (const record of readFrameRecords(payload)) filter.forget(record);
        cycle.sweepRecords += records;
        await send(cycle, payload);
      },
    });
    const comparer = createStripeComparer({
      tools,
      read: (block, count) => read(block, count, content),
      ask: async (run, digests) => {
        if (!calm && random() < 0.3) write(integer(3));
        const answer = await target.group.compare({ ...head, run, digests });
        if (!calm && random() < 0.3) write(integer(3));
        return answer;
      },
      ship: (plain, block) => packer.add(plain, block),
      onCompared: (_blocks, equal) => (same += equal),
      onFault: (fault) => {
        throw fault;
      },
    });
    for (const { start, count } of runsOf(part)) {
      if (cycle.compared) await comparer.add({ start, count });
      else await packer.add(read(start, count, content), start);
    }
    await comparer.finish();
    await packer.flush();
    cycle.swept.push(...part);
  };

  const runCycle = async (): Promise<void> => {
    const remainingBefore = remainingNow();
    const cycle: Cycle = {
      number: ++number,
      life,
      swept: [],
      compared: false,
      sweepRecords: 0,
      deltas: [],
      deltaRecords: 0,
      sent: false,
      point: false,
      state: new Uint8Array(),
      remaining: 0,
    };
    inFlight.push(cycle);
    if (remainingBefore > 0) await sweep(cycle);
    if (!calm) write(integer(4));
    if (life !== cycle.life) throw new RangeError("A tap does not die within a cycle here");
    const cut = dirty;
    dirty = new Set();
    cuts.set(cycle.number, cut);
    cycle.state = content.slice();
    cycle.remaining = remainingNow();
    cycle.point = remainingBefore === 0 && cycle.remaining === 0 && cycle.swept.length === 0;
    const said = await payloadsOf(KIND_DELTA, async (add) => {
      for (const block of [...cut].sort((a, b) => a - b)) await add(block);
    });
    for (const payload of said) {
      const kept = new Uint8Array(payload.length);
      const { bytes, said: statements } = filter.filter(payload, kept);
      if (bytes > 0) cycle.deltas.push(kept.subarray(0, bytes));
      cycle.deltaRecords += statements.length;
    }
    if (!calm) write(integer(4));
  };
  const remainingNow = (): number => {
    const swept = new Set(inFlight.filter((one) => one.life === life).flatMap((one) => one.swept));
    return [...unsynced].filter((block) => !swept.has(block)).length;
  };

  const sendDeltas = async (cycle: Cycle): Promise<void> => {
    if (cycle.sent) return;
    cycle.sent = true;
    for (const payload of cycle.deltas) await send(cycle, payload);
  };
  const commit = async (): Promise<string | undefined> => {
    const cycle = inFlight[0];
    if (cycle === undefined) return undefined;
    await sendDeltas(cycle);
    try {
      await target.group.commit({
        streamId: stream.streamId,
        cycle: cycle.number,
        cutAtMs: 1_800_000_000_000 + cycle.number,
        consistent: true,
        point: cycle.point,
        syncTotalBytes: 0,
        backlogBytes: 0,
        writtenBytes: 0,
        disks: [
          {
            diskId: DISK,
            records: cycle.sweepRecords + cycle.deltaRecords,
            syncRemainingBytes: cycle.remaining * BLOCK_SIZE,
            tracker: { bootId: "boot", generation: String(cycle.life) },
          },
        ],
      });
    } catch (error) {
      if (!isFault(error, "REFUSED")) throw error;
      refused++;
      await giveUpFrom(0);
      return undefined;
    }
    inFlight.shift();
    committed = cycle.state;
    cuts.delete(cycle.number);
    if (cycle.life === life) for (const block of cycle.swept) unsynced.delete(block);
    if (!cycle.point) return undefined;
    points++;
    return target.judge(read(0, BLOCKS, cycle.state), cycle.number);
  };

  const outcome = (violation?: string): Outcome => ({
    seed,
    points,
    same,
    refused,
    ...(violation === undefined ? {} : { violation }),
  });
  for (let step = 0; step < STEPS; step++) {
    const dice = random();
    let violation: string | undefined;
    calm = random() < 0.5;
    if (dice < 0.45) {
      if (inFlight.length < 2) await runCycle();
    } else if (dice < 0.75) violation = await commit();
    else if (dice < 0.79 && inFlight.length > 0) await sendDeltas(inFlight[integer(inFlight.length)]!);
    else if (dice < 0.82) await loseStream();
    else if (dice < 0.94) {
      // The tap dies: what it tracked is gone, and everything is compared again.
      if (random() < 0.5) restore();
      life++;
      dirty = new Set();
      cuts = new Map();
      unsynced = new Set(content.keys());
    } else write(integer(6));
    if (violation !== undefined) return outcome(violation);
  }
  return outcome();
}

function* runsOf(blocks: readonly number[]): Generator<{ readonly start: number; readonly count: number }> {
  for (let at = 0; at < blocks.length;) {
    let count = 1;
    while (blocks[at + count] === blocks[at]! + count) count++;
    yield { start: blocks[at]!, count };
    at += count;
  }
}

async function openTarget(modules: MoverModules) {
  const context: StoreContext = { store: memoryStore(), root: "site", clock: systemClock, random: systemRandom };
  await ensureStoreRecord(context);
  const store = openMoverStore(context, { keys: () => new Uint8Array(32).fill(7) });
  const shape = { diskId: DISK, sizeBytes: BLOCKS * BLOCK_SIZE, sectorBytes: 512 };
  const opened = await store.openDisk(shape, { create: true });
  const groupContext = await store.group(GROUP, [DISK]);
  const move = { operation: "prepare", activeSite: "primary", holder: "test" };
  await claimGroupEpoch(groupContext, { ...move, disks: [DISK], branch: "root" });
  await createDisk(groupContext.disk(DISK), { ...move, groupEpoch: 1 });
  const disk = modules.moverDisk(opened, {
    buffers: modules.containerBuffers(1 << 20),
    uploads: modules.slots(3),
    holder: "test",
    onTrouble: () => undefined,
  });
  let streams = 0;
  const group = modules.moverGroup(
    { groupId: GROUP, sourceSite: "primary" },
    {
      storeId: await store.storeId(),
      context: groupContext,
      disks: new Map([[DISK, disk]]),
      log: silentLog,
      onProgress: () => undefined,
      newStreamId: () => `stream-${++streams}`,
      patienceMs: 5_000,
    },
  );
  return {
    group,
    open: (): Promise<StreamOpened> =>
      group.open(quietPeer(), {
        groupId: GROUP,
        branch: "root",
        groupEpoch: 1,
        sourceSite: "primary",
        orderVersion: 1,
        sourceLife: LIFE,
        disks: [{ diskId: DISK, sizeBytes: shape.sizeBytes }],
      }),
    /** What is wrong with the newest commit as an image; undefined: nothing. */
    async judge(expected: Uint8Array, cycle: number): Promise<string | undefined> {
      const { seq, commitHash } = disk.data;
      const { keyring, storeId } = opened;
      const image = await openImage(opened.context, { branch: "root", seq, commitHash, keyring, storeId });
      const found = new Uint8Array(image.sizeBytes);
      await image.read(found, 0);
      for (let block = 0; block < BLOCKS; block++) {
        const [is, was] = [found, expected].map((bytes) => bytes[block * BLOCK_SIZE + 1]!);
        if (is !== was) return `point ${cycle}: block ${block} is ${is} and was ${was} at the cut`;
      }
      return Buffer.compare(found, expected) === 0 ? undefined : `point ${cycle} differs inside a block`;
    },
  };
}

function quietPeer(): Peer {
  return {
    identity: { site: "primary", role: "process-server", name: "ps" },
    call: () => Promise.reject(new Fault("PEER_UNREACHABLE", "Nobody answers here")),
    notify: () => Promise.resolve(),
    closed: new Promise(() => undefined),
    close: () => undefined,
  };
}
