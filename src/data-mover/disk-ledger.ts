/**
 * The ledger of a disk in the store: each version is a manifest, and whoever changes what is promised goes through here.
 *
 * Invariants:
 * - a version is written only if it may follow the one before it (`checkSuccessor`), as its number's first. Of two who write at once one looks again;
 * - who needs a position has it in a version *before* going by it: a failover before its branch exists, an export before it opens, a bookmark
 *   before its record;
 * - maps that no version names yet may have been taken for garbage: who names them looks for them first, after reading the version that it builds on;
 * - a version that nobody can read is passed over by those who promise something, and marked (`lost`): then nothing is collected any more until
 *   a person has looked, so what the lost version promised stays too.
 *
 * Source: docs/replication.md, "Collection"; #model/collection/ledger.ts.
 */
import { thinAnchors } from "#model/anchor-choice.ts";
import {
  checkSuccessor,
  floorOf,
  isOpenable,
  type Ledger,
  type LedgerAnchor,
  type Position,
  samePosition,
} from "#model/collection/ledger.ts";
import { Fault } from "#model/fault.ts";
import type { LedgerRecord, PinRecord } from "#model/format/ledger-record.ts";
import type { Anchor } from "#model/format/manifest.ts";
import { readOrigin } from "./branch-reader.ts";
import { storeOptions, withRetries, type DiskContext, type DiskLedger } from "./disk-context.ts";
import type { MapAccess } from "./map-access.ts";
import { readNewestManifest, writeManifest } from "./manifests.ts";
import { condemnedKeys } from "./tombstones.ts";

/** A version as it stands in the store, and as the model sees it. */
export interface Version {
  readonly ledger: Ledger;
  readonly record: LedgerRecord;
  readonly anchors: readonly Anchor[];
}

export interface Change {
  readonly anchors?: readonly Anchor[];
  readonly parents?: LedgerRecord["parents"];
  readonly pins?: readonly PinRecord[];
}

/** The newest version. `condemned`: with the keys of its tombstones, which are read for it; else each has none. Throws STORE_…, FORMAT_UNSUPPORTED, and for tombstones OBJECT_…. */
export async function readVersion(access: MapAccess, options: { readonly condemned: boolean }): Promise<Version> {
  const { highest, anchors, ledger, lost } = await readNewestManifest(access, { toWrite: true });
  const record = lost.length === 0 ? ledger : { ...ledger, lost: [...ledger.lost, ...lost] };
  const keys = options.condemned
    ? await Promise.all(record.condemned.map((one) => condemnedKeys(access.disk, one)))
    : record.condemned.map(() => []);
  return { ledger: ledgerOf(access.disk, highest, { record, anchors, keys }), record, anchors };
}

function ledgerOf(
  disk: DiskContext,
  no: number,
  from: {
    readonly record: LedgerRecord;
    readonly anchors: readonly Anchor[];
    readonly keys: readonly (readonly string[])[];
  },
): Ledger {
  const { record, anchors, keys } = from;
  return {
    no,
    floors: record.floors,
    parents: parentsOf(record),
    anchors: anchors.map((anchor) => ledgerAnchor(disk, anchor)),
    points: record.points,
    pins: record.pins,
    condemned: record.condemned.map(({ tombstone, dueMs }, index) => ({ tombstone, dueMs, keys: keys[index]! })),
  };
}

export function parentsOf({ parents }: Pick<LedgerRecord, "parents">): Ledger["parents"] {
  return Object.fromEntries(Object.entries(parents).map(([branch, parent]) => [branch, parent ?? undefined]));
}

export function ledgerAnchor(disk: DiskContext, { branch, seq, maps }: Anchor): LedgerAnchor {
  return { branch, seq, maps: maps.map(({ shard, name }) => disk.names.map(shard, name)) };
}

/**
 * Make the version that `change` makes of the newest one, whoever else writes. `change` answers undefined when nothing is to be changed; the result
 * is then false, as it is when the change may not follow.
 */
export async function changeVersion(
  access: MapAccess,
  change: (version: Version) => Change | undefined | Promise<Change | undefined>,
  options: { readonly condemned: boolean },
): Promise<boolean> {
  for (;;) {
    access.disk.signal?.throwIfAborted();
    const version = await readVersion(access, options);
    const changes = await change(version);
    if (changes === undefined) return false;
    const record: LedgerRecord = {
      ...version.record,
      ...(changes.parents && { parents: changes.parents }),
      ...(changes.pins && { pins: changes.pins }),
    };
    const anchors = changes.anchors ?? version.anchors;
    const no = version.ledger.no + 1;
    const keys = version.ledger.condemned.map((one) => one.keys);
    if (checkSuccessor(version.ledger, ledgerOf(access.disk, no, { record, anchors, keys })) !== undefined)
      return false;
    if (await writeManifest(access, { no, anchors, ...(isPlain(record) ? {} : { ledger: record }) })) return true;
  }
}

/** Nothing was ever promised or collected: the manifest stays one that earlier programs know. */
function isPlain(record: LedgerRecord): boolean {
  const { floors, parents, points, pins, condemned, lost } = record;
  const lists = [Object.keys(floors), Object.keys(parents), points, pins, condemned, lost];
  return lists.every((list) => list.length === 0);
}

/** Make `anchor` known, whoever else does the same. Its maps must be stored. False when it is no history any more, or its maps were collected. */
export async function addAnchor(access: MapAccess, anchor: Anchor): Promise<boolean> {
  const { disk } = access;
  const { maps: keys } = ledgerAnchor(disk, anchor);
  return changeVersion(
    access,
    async ({ ledger, record, anchors }) => {
      const named = new Set(ledger.anchors.flatMap(({ maps }) => maps));
      const unnamed = keys.filter((key) => !named.has(key));
      const there = await Promise.all(unnamed.map((key) => isThere(disk, key))); // [look for unnamed maps]
      if (there.includes(false)) return undefined;
      const isNeeded = (one: Anchor): boolean =>
        one.seq <= floorOf(ledger, one.branch) || record.pins.some((pin) => samePosition(pin, one));
      return { anchors: thinAnchors([...anchors, anchor], isNeeded) };
    },
    { condemned: true },
  );
}

async function isThere(disk: DiskContext, key: string): Promise<boolean> {
  return (await withRetries(disk, () => disk.store.head(key, storeOptions(disk)))) !== undefined;
}

/**
 * Where the content of a position stands: the start of a branch is a state of its parent. Undefined: nowhere, for nothing was written by then.
 * Throws NOT_FOUND (branch), OBJECT_CORRUPT.
 */
export async function contentPosition(disk: DiskContext, position: Position): Promise<Position | undefined> {
  let at = position;
  while (at.seq === 0) {
    const { parent } = await readOrigin(disk, at.branch);
    if (parent === undefined) return undefined;
    at = { branch: parent.branch, seq: parent.seq };
  }
  return { branch: at.branch, seq: at.seq };
}

export function diskLedger(access: MapAccess): DiskLedger {
  const { disk } = access;
  return {
    async anchorAt(position) {
      const at = await contentPosition(disk, position);
      return at && (await readNewestManifest(access)).anchors.find((anchor) => samePosition(anchor, at));
    },
    async isOpenable(position) {
      const at = await contentPosition(disk, position);
      if (at === undefined) return true;
      const { highest, anchors, ledger } = await readNewestManifest(access);
      return isOpenable(ledgerOf(disk, highest, { record: { ...ledger, condemned: [] }, anchors, keys: [] }), at);
    },
    async beginBranch(branch, parent) {
      const at = (await contentPosition(disk, parent)) ?? null;
      let known = false;
      const made = await changeVersion(
        access,
        ({ record }) => {
          known = Object.hasOwn(record.parents, branch);
          return known ? undefined : { parents: { ...record.parents, [branch]: at } };
        },
        { condemned: false },
      );
      if (!made && !known && !(await isThere(disk, disk.names.origin(branch)))) throw isNoHistory(disk, parent);
    },
    async pin({ id, holder }, position) {
      const at = await contentPosition(disk, position);
      if (at === undefined) return;
      let known = false;
      const pin: PinRecord = { ...at, id, holder, sinceMs: disk.clock.now() };
      const made = await changeVersion(
        access,
        ({ record }) => {
          known = record.pins.some((one) => one.id === id && samePosition(one, at));
          return known ? undefined : { pins: [...record.pins, pin] };
        },
        { condemned: false },
      );
      if (!made && !known) throw isNoHistory(disk, position);
    },
    async release(id) {
      await changeVersion(
        access,
        ({ record }) => {
          const pins = record.pins.filter((one) => one.id !== id);
          return pins.length === record.pins.length ? undefined : { pins };
        },
        { condemned: false },
      );
    },
  };
}

/** The disk with what its ledger says: where reading begins, what may be opened. */
export function withLedger(access: MapAccess): DiskContext {
  return {
    ...access.disk,
    ledger: diskLedger(access),
    async checkpoint(branch) {
      const { anchors, ledger } = await readNewestManifest(access);
      const floor = ledger.floors[branch] ?? 0;
      return floor === 0 ? undefined : anchors.find((anchor) => samePosition(anchor, { branch, seq: floor }));
    },
  };
}

function isNoHistory(disk: DiskContext, { branch, seq }: Position): Fault {
  return new Fault("POINT_NOT_FOUND", `Commit ${seq} of disk "${disk.diskId}", branch "${branch}", has expired`, {
    details: { diskId: disk.diskId, branch, seq },
    hint: "List the points of the group, and choose one that is there: `leeward point list`.",
  });
}

/** Whether collection is stopped for good because a version was lost. */
export function isStopped(version: Version): Fault | undefined {
  const [first] = version.record.lost;
  if (first === undefined) return undefined;
  return new Fault("OBJECT_CORRUPT", `Manifest ${first} could not be read, and nothing may be collected without it`, {
    details: { manifest: first },
    hint: "Restore the object from another copy of the bucket; until then the store keeps everything.",
  });
}
