/** The store of a simulated world, as one process reaches it; and what the world remembers of every commit ever made. */
import { faultyStore, type CreateFate } from "../../src/adapters/faulty/faulty-store.ts";
import { memoryStore, type MemoryStore } from "../../src/adapters/memory/memory-store.ts";
import type { CommitCodec, CommitHeader, CommitPlace, SealedCommit } from "../../src/data-mover/commit-codec.ts";
import { Fault } from "#model/fault.ts";
import { parseHex16 } from "#model/units.ts";
import type { ObjectStore } from "#ports/object-store.ts";
import type { Actor, Scheduler } from "./scheduler.ts";

/** What a simulated commit carries: writes, by number, and the write before the first of them. */
export interface Payload {
  readonly cycle: number;
  readonly cutAtMs: number;
  readonly cycleDisks: number;
  readonly point: boolean;
  readonly writes: readonly number[];
  readonly after: number;
}

export interface SealedHeader extends CommitHeader {
  readonly payload: Payload | undefined;
}

export interface SimulatedStore {
  readonly memory: MemoryStore;
  /** All commits ever sealed, by hash. */
  readonly sealed: ReadonlyMap<string, SealedHeader>;
  /** First object that ever stood in a slot: `{disk}/{branch}` → seq → commit. Collection does not touch it. */
  readonly slots: ReadonlyMap<string, ReadonlyMap<number, SealedHeader>>;
  /** Slots that were created again, after a collection. */
  readonly recreated: ReadonlySet<string>;
  codec(diskId: string): CommitCodec;
  seal(diskId: string, place: CommitPlace, payload: Payload | undefined): SealedCommit;
  /** The store as `actor` reaches it. */
  of(actor: Actor): ObjectStore;
}

export interface StoreWeather {
  /** Part of the calls that go wrong. */
  readonly faults: () => number;
  /** Chance that a PUT takes long to arrive, while its sender waits. */
  readonly slow: (key: string) => number;
  /** A store whose create looks first and writes later. */
  readonly racyCreate: boolean;
}

const FATES: readonly CreateFate[] = [
  "lost-request",
  "lost-reply",
  "lost-reply",
  "late",
  "late",
  "doubled",
  "doubled-early",
  "refused",
];
const HASH_LENGTH = 32;

export function simulatedStore(scheduler: Scheduler, weather: StoreWeather): SimulatedStore {
  const memory = memoryStore();
  const sealed = new Map<string, SealedHeader>();
  const slots = new Map<string, Map<number, SealedHeader>>();
  const recreated = new Set<string>();
  const { dice } = scheduler;

  const note = (key: string, body: Uint8Array | readonly Uint8Array[]): void => {
    const slot = /^disks\/([^/]+)\/branches\/([^/]+)\/journal\/(.+)$/.exec(key);
    if (slot === null) return;
    const branch = `${slot[1]}/${slot[2]}`;
    const seq = parseHex16(slot[3]!)!;
    const row = slots.get(branch) ?? new Map<number, SealedHeader>();
    slots.set(branch, row);
    if (row.has(seq)) recreated.add(key);
    else row.set(seq, sealed.get(text(body as Uint8Array))!);
  };
  const noting: ObjectStore = {
    ...memory,
    async create(key, body) {
      const outcome = await memory.create(key, body);
      if (outcome === "created") note(key, body);
      return outcome;
    },
  };
  const racy: ObjectStore = {
    ...noting,
    async create(key, body) {
      if (memory.objects.has(key)) return "exists";
      await new Promise<void>((resolve) => scheduler.add(undefined, "request", resolve));
      await memory.delete([key]);
      return noting.create(key, body);
    },
  };
  const faulty = faultyStore(weather.racyCreate ? racy : noting, {
    create: () => (dice.chance(weather.faults()) ? dice.pick(FATES) : "pass"),
    fails: () => dice.chance(weather.faults() / 3),
    later: (put) => scheduler.add(undefined, "request", () => void put(), dice.chance(0.8)),
  });

  const seal: SimulatedStore["seal"] = (diskId, place, payload) => {
    const commitHash = (sealed.size + 1).toString(16).padStart(HASH_LENGTH, "0");
    const { branch, epoch, seq, chain, writerId } = place;
    const kind = payload === undefined ? "fence" : "journal";
    const { cycle = 0, cutAtMs = 0, point = false, cycleDisks = 0 } = payload ?? {};
    const described = { kind, diskId, branch, epoch, seq, cycle, cutAtMs, point, cycleDisks } as const;
    sealed.set(commitHash, { ...described, consistency: "crash", chain, commitHash, writerId, payload });
    return { body: Buffer.from(commitHash, "latin1"), commitHash };
  };

  return {
    memory,
    sealed,
    slots,
    recreated,
    seal,
    codec: (diskId) => ({
      sealFence: (place) => seal(diskId, place, undefined),
      firstReadBytes: HASH_LENGTH,
      inspect: (prefix) => {
        const header = sealed.get(text(prefix));
        if (header === undefined) throw new Fault("OBJECT_CORRUPT", "No such commit was ever sealed");
        return header;
      },
    }),
    of: (actor) => ({
      create: (key, body) => scheduler.call(actor, () => faulty.create(key, body), dice.chance(weather.slow(key))),
      get: (key) => scheduler.call(actor, () => faulty.get(key)),
      head: (key) => scheduler.call(actor, () => faulty.head(key)),
      delete: (keys) => scheduler.call(actor, () => faulty.delete(keys)),
      // In pages, as S3 does: what is created meanwhile may be in a later one.
      async *list(prefix, options) {
        const limit = dice.chance(0.1) ? 2 : 1_000;
        let startAfter = options?.startAfter ?? "";
        for (;;) {
          const after = startAfter;
          const page = await scheduler.call(actor, async () => {
            if (dice.chance(weather.faults() / 3)) throw new Fault("STORE_UNAVAILABLE", "The list was cut short");
            return memory.entries(prefix, { startAfter: after, limit });
          });
          yield* page;
          if (page.length < limit) return;
          startAfter = page.at(-1)!.key;
        }
      },
    }),
  };
}

/** Bytes that are ASCII, by construction. */
function text(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("latin1");
}
