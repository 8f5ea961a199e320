/** A store of plain commits for tests of the log: each is a JSON header, so that a test can say what it holds, and forge one. */
import { createHash } from "node:crypto";
import { Fault } from "#model/fault.ts";
import { diskNames } from "#model/format/object-names.ts";
import type { Log } from "#ports/log.ts";
import type { ObjectStore } from "#ports/object-store.ts";
import { memoryStore, type MemoryStore } from "../../src/adapters/memory/memory-store.ts";
import { barrierMember, groupContext, writeBarrier, type GroupContext } from "../../src/data-mover/barriers.ts";
import type { CommitCodec, CommitHeader, CommitPlace, SealedCommit } from "../../src/data-mover/commit-codec.ts";
import { openWriter, type DiskWriter } from "../../src/data-mover/commit-log.ts";
import type { DiskContext } from "../../src/data-mover/disk-context.ts";
import { createDisk } from "../../src/data-mover/disk-moves.ts";
import { claimGroupEpoch } from "../../src/data-mover/group-fence.ts";

export const GROUP = "web";

export interface CommitFixture {
  readonly memory: MemoryStore;
  readonly group: GroupContext;
  disk(diskId: string): DiskContext;
  /** The same store as another process reaches it. */
  through(store: ObjectStore): CommitFixture;
  open(diskId: string, site?: string, branch?: string): Promise<DiskWriter>;
}

export function commitFixture(
  disks: readonly string[],
  store: ObjectStore = memoryStore(),
  memory = store as MemoryStore,
): CommitFixture {
  let salt = 0;
  let slept = 0;
  const context = {
    store,
    root: "some/root",
    clock: { now: () => 1_000 + slept, monotonic: () => slept, sleep: async (ms: number) => void (slept += ms) },
    random: {
      bytes: (length: number) => createHash("sha256").update(`${Math.random()} ${salt++}`).digest().subarray(0, length),
    },
    retry: { attempts: 3, firstMs: 1, mostMs: 2 },
  };
  const contexts = new Map<string, DiskContext>(
    disks.map((diskId) => [
      diskId,
      { ...context, diskId, names: diskNames(context.root, diskId), codec: plainCodec(diskId) },
    ]),
  );
  const disk = (diskId: string): DiskContext => contexts.get(diskId)!;
  return {
    memory,
    group: groupContext(context, GROUP, disk),
    disk,
    through: (other) => commitFixture(disks, other, memory),
    open: (diskId, site = "P", branch = "root") =>
      openWriter(disk(diskId), { site, branch, holder: "test", operation: "open" }),
  };
}

/** The group in the store, active at site P. */
export async function protect(fixture: CommitFixture, disks: readonly string[]): Promise<void> {
  const request = { operation: "protect", activeSite: "P", disks, holder: "test" };
  const { groupEpoch } = await claimGroupEpoch(fixture.group, { ...request, branch: "root" });
  for (const diskId of disks) await createDisk(fixture.disk(diskId), { ...request, groupEpoch });
}

export interface PlainCommit {
  readonly cycle: number;
  readonly point?: boolean;
  readonly cycleDisks?: number;
}

export function commit(writer: DiskWriter, details: PlainCommit) {
  const seal = (place: CommitPlace): SealedCommit => sealPlain(writer.diskId, place, details);
  return writer.commit({ cycle: details.cycle, cutAtMs: details.cycle * 1_000, seal });
}

/** One cycle over all writers, and its barrier. */
export async function commitCycle(
  fixture: CommitFixture,
  writers: readonly DiskWriter[],
  cycle: number,
  barrier = true,
): Promise<void> {
  for (const writer of writers) await commit(writer, { cycle, cycleDisks: writers.length });
  if (barrier) await placeBarrier(fixture, writers, cycle);
}

export async function placeBarrier(
  fixture: CommitFixture,
  writers: readonly DiskWriter[],
  barrier: number,
): Promise<void> {
  const members = writers.map((writer) => barrierMember(writer.diskId, writer.branch, writer.data));
  await writeBarrier(fixture.group, {
    barrier,
    groupId: GROUP,
    groupEpoch: 1,
    cutAtMs: barrier * 1_000,
    consistency: "crash",
    members,
  });
}

export function sealPlain(diskId: string, place: CommitPlace, details: PlainCommit | undefined): SealedCommit {
  const { branch, epoch, seq, chain, writerId } = place;
  const { cycle = 0, point = true, cycleDisks } = details ?? {};
  const header = {
    kind: details === undefined ? "fence" : "journal",
    ...{ diskId, branch, epoch, seq, chain, writerId },
    ...{ cycle, cutAtMs: cycle * 1_000, point: details !== undefined && point, consistency: "crash" },
    ...(cycleDisks === undefined ? {} : { cycleDisks }),
    salt: Math.random(),
  };
  const body = Buffer.from(JSON.stringify(header).padEnd(400));
  return { body, commitHash: hashOf(body) };
}

export function plainCodec(diskId: string): CommitCodec {
  return {
    sealFence: (place) => sealPlain(diskId, place, undefined),
    firstReadBytes: 100,
    inspect(prefix) {
      if (prefix.length < 400) return { needBytes: 400 };
      if (prefix[0] !== 0x7b) throw new Fault("OBJECT_CORRUPT", "This is no commit");
      const { salt: _, ...header } = JSON.parse(Buffer.from(prefix).toString()) as CommitHeader & { salt: number };
      return { ...header, commitHash: hashOf(prefix) };
    },
  };
}

const hashOf = (data: Uint8Array): string => createHash("sha256").update(data).digest("hex").slice(0, 32);

/** A log that remembers its errors. */
export function errorLog(): Log & { readonly errors: string[] } {
  const errors: string[] = [];
  const nothing = (): void => undefined;
  const log = {
    errors,
    debug: nothing,
    info: nothing,
    warn: nothing,
    error: (message: string) => void errors.push(message),
    child: () => log,
  };
  return log;
}
