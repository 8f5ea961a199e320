/**
 * One pass of the collector over one disk: performs what the state machine says (#model/collection/collector.ts), and decides nothing itself.
 *
 * Invariants:
 * - each step is the model's, over what was read for it: the version, then the listing. What somebody else published is seen before the next;
 * - a floor rises only to an anchor of which every map was opened and every container found; so do the anchors of points below it;
 * - only keys of a tombstone that the newest version names, that is due, and that are commits, segments or maps of this disk are deleted;
 * - any error ends the pass, wherever it is: killed at any await, it leaves what the next pass finds in the ledger, or unnamed maps and tombstones
 *   that order nothing;
 * - a version that was lost, or an anchor that cannot be read and is needed, stops collection before anything is changed.
 *
 * Source: docs/replication.md, "Collection".
 */
import {
  COLLECTOR_START,
  type CollectorEffect,
  type CollectorEvent,
  type CollectorState,
  type CollectorView,
  stepCollector,
} from "#model/collection/collector.ts";
import { floorOf, isOpenable, type Ledger, type LedgerAnchor, type Position } from "#model/collection/ledger.ts";
import { Fault } from "#model/fault.ts";
import { toHex } from "#model/format/fields.ts";
import type { CondemnedRecord, LedgerRecord, PinRecord } from "#model/format/ledger-record.ts";
import type { Anchor } from "#model/format/manifest.ts";
import { encodeRecord } from "#model/format/json-record.ts";
import { DAY_MS } from "#model/retention/policy.ts";
import { anchorAt } from "./anchor-maker.ts";
import { listNumbers, uniqueHolder } from "./claims.ts";
import { type CollectionMemory, lookAtDisk, type Look } from "./collection-listing.ts";
import { createOnce } from "./create-once.ts";
import { contentPosition, isStopped, ledgerAnchor, readVersion, type Version } from "./disk-ledger.ts";
import { readIfThere, storeOptions, withRetries } from "./disk-context.ts";
import type { MapAccess } from "./map-access.ts";
import { writeManifest } from "./manifests.ts";
import { buryTombstone, isCollectable, tombstoneKey, tombstoneName } from "./tombstones.ts";

export interface CollectDisk {
  /** What the retention plan keeps, where its content stands (`contentPosition`). */
  readonly kept: readonly Position[];
  /** By branch: the oldest commit that the journal window needs. Missing: all. */
  readonly windowFrom: Readonly<Record<string, number>>;
  /** This process, for people. */
  readonly holder: string;
  readonly memory: CollectionMemory;
  readonly graceMs?: number;
  /** Keys that one pass condemns at most. */
  readonly batch?: number;
  /** Wait between two requests that delete `CHUNK` keys. */
  readonly paceMs?: number;
  readonly onStep?: (effect: CollectorEffect["do"]) => void;
}

export interface Collected {
  readonly ended: "done" | "superseded";
  /** Objects, and anchors that were made for points. */
  readonly condemned: number;
  readonly deleted: number;
  readonly deletedBytes: number;
  readonly flattened: number;
}

/** For readers without a pin: rescue, and whoever has just opened an image. */
export const GRACE_MS: number = DAY_MS;
const BATCH = 20_000;
const CHUNK = 100;
const PACE_MS = 50;

/** Throws what reading and writing the store throws, OBJECT_MISSING or OBJECT_CORRUPT for what it needs and cannot read, REFUSED. The next pass begins anew. */
export async function collectDisk(access: MapAccess, request: CollectDisk): Promise<Collected> {
  const { disk } = access;
  const { graceMs = GRACE_MS, batch = BATCH } = request;
  const name = tombstoneName(disk.clock.now() + graceMs, toHex(disk.random.bytes(10)));
  const options = { graceMs, tombstoneName: name, batch };
  const pass = startPass(access, request);
  const tally = { condemned: 0, deleted: 0, deletedBytes: 0, flattened: 0 };
  let state: CollectorState = COLLECTOR_START;
  let event: CollectorEvent = { type: "started", newestTerm: await pass.newestTerm() };
  for (;;) {
    const { next, effect } = stepCollector(state, event, options);
    state = next;
    if (effect === undefined) {
      if (state.stage !== "ended" || state.why === "failed") throw pass.failed();
      return { ended: state.why, ...tally };
    }
    disk.signal?.throwIfAborted();
    request.onStep?.(effect.do);
    event = await pass.perform(effect);
    if (effect.do === "flatten") tally.flattened++;
    if (effect.do === "bury") tally.condemned += effect.condemned.keys.length;
    if (effect.do === "delete") {
      tally.deleted += effect.keys.length;
      tally.deletedBytes += pass.bytesOf(effect.keys);
    }
  }
}

function startPass(access: MapAccess, request: CollectDisk) {
  const { disk } = access;
  const { names, clock } = disk;
  const { holder } = uniqueHolder(disk, request.holder);
  /** The anchors of the store, by those that the model has of them. */
  const whole = new WeakMap<LedgerAnchor, Anchor>();
  const made: Anchor[] = [];
  let version: Version | undefined;
  let look: Look | undefined;
  let buried: CondemnedRecord | undefined;
  let buriedKeys: readonly string[] = [];

  const newestTerm = async (): Promise<number> => (await listNumbers(disk, names.collectorTerms)).at(-1) ?? 0;

  const read = async (): Promise<CollectorView> => {
    const term = await newestTerm();
    const found = await readVersion(access, { condemned: true });
    const stopped = isStopped(found);
    if (stopped !== undefined) throw stopped;
    look = await lookAtDisk(access, { ledger: found.ledger, anchors: [...found.anchors, ...made] }, request.memory);
    const anchors = found.anchors.filter((anchor) => mayGoOn(found.ledger, anchor, look!));
    const parents = await allParents(found, [...look.tips.keys()]);
    const record: LedgerRecord = { ...found.record, parents };
    const asModel = anchors.map((anchor) => {
      const one = ledgerAnchor(disk, anchor);
      whole.set(one, anchor);
      return one;
    });
    const ledger: Ledger = {
      ...found.ledger,
      anchors: asModel,
      parents: Object.fromEntries(Object.entries(parents).map(([branch, parent]) => [branch, parent ?? undefined])),
    };
    version = { ledger, record, anchors };
    const { kept, windowFrom } = request;
    return { ledger, listing: look.listing, newestTerm: term, nowMs: clock.now(), kept, windowFrom };
  };

  /** Branches of which no version says where they begin were there before there were ledgers. */
  const allParents = async (found: Version, branches: readonly string[]): Promise<LedgerRecord["parents"]> => {
    const parents: Record<string, Position | null> = { ...found.record.parents };
    for (const branch of branches) {
      if (Object.hasOwn(parents, branch)) continue;
      const start = (await contentPosition(disk, { branch, seq: 0 })) ?? null;
      if (start !== null && floorOf(found.ledger, branch) === 0 && !isOpenable(found.ledger, start))
        throw refused(`branch "${branch}" begins at commit ${start.seq} of "${start.branch}", which has expired`);
      parents[branch] = start;
    }
    return parents;
  };

  const publish = async (after: Ledger): Promise<CollectorEvent> => {
    const anchors = after.anchors.map((anchor) => whole.get(anchor)!);
    // Below a floor there is no other way to read them.
    for (const anchor of anchors) {
      const fault = look!.unusable.get(anchor);
      if (fault !== undefined && anchor.seq <= floorOf(after, anchor.branch)) throw fault;
    }
    const record: LedgerRecord = {
      floors: after.floors,
      parents: version!.record.parents,
      points: after.points,
      pins: after.pins as readonly PinRecord[], // The very ones that were read.
      condemned: after.condemned.map(({ tombstone, keys }) => {
        const known = version!.record.condemned.find((one) => one.tombstone === tombstone);
        if (known !== undefined) return known;
        const left = new Set(keys);
        const spared = buriedKeys.filter((key) => !left.has(key)).map((key) => key.slice(names.prefix.length));
        return { ...buried!, spared };
      }),
      lost: version!.record.lost,
    };
    const landed = await writeManifest(access, { no: after.no, anchors, ledger: record });
    return { type: landed ? "published" : "publish-taken" };
  };

  const claim = async (term: number): Promise<CollectorEvent> => {
    const key = names.collectorTerm(term);
    const body = encodeRecord({ term, holder, claimedAtMs: clock.now() });
    const other = await createOnce(disk, {
      key,
      body,
      look: () => readIfThere(disk, key),
      isMine: (found) => Buffer.compare(found, body) === 0,
    });
    if (other === undefined) return { type: "claimed", term };
    return { type: "claim-taken", newestTerm: Math.max(term, await newestTerm()) };
  };

  const remove = async (keys: readonly string[]): Promise<void> => {
    const wrong = keys.find((key) => !isCollectable(disk, key));
    if (wrong !== undefined) throw new RangeError(`Object "${wrong}" is nothing that is collected`);
    for (let at = 0; at < keys.length; at += CHUNK) {
      if (at > 0) await clock.sleep(request.paceMs ?? PACE_MS, disk.signal);
      disk.signal?.throwIfAborted();
      await withRetries(disk, () => disk.store.delete(keys.slice(at, at + CHUNK), storeOptions(disk)));
    }
  };

  return {
    newestTerm,
    bytesOf: (keys: readonly string[]) => keys.reduce((sum, key) => sum + (look?.sizes.get(key) ?? 0), 0),
    failed: () => refused("the version that would follow is not allowed; run `leeward store check`"),
    async perform(effect: CollectorEffect): Promise<CollectorEvent> {
      switch (effect.do) {
        case "claim":
          return claim(effect.term);
        case "read":
          return { type: "seen", view: await read() };
        case "flatten": {
          const { branch, seq } = effect.position;
          const anchor = await anchorAt(
            access,
            effect.position,
            disk.signal === undefined ? {} : { signal: disk.signal },
          );
          if (anchor?.branch !== branch || anchor.seq !== seq)
            throw refused(
              `no anchor can be made at commit ${seq} of "${branch}": a disk that was resized is not collected`,
            );
          made.push(anchor);
          const one = ledgerAnchor(disk, anchor);
          whole.set(one, anchor);
          return { type: "flattened", anchor: one };
        }
        case "publish":
          return publish(effect.ledger);
        case "bury": {
          const sha256 = await buryTombstone(disk, effect.condemned);
          const { tombstone, dueMs, keys } = effect.condemned;
          buried = { tombstone, dueMs, sha256, spared: [] };
          buriedKeys = keys;
          return { type: "buried" };
        }
        case "delete":
          await remove(effect.keys);
          return { type: "deleted" };
        case "forget": {
          const key = tombstoneKey(disk, effect.tombstone);
          await withRetries(disk, () => disk.store.delete([key], storeOptions(disk)));
          return { type: "forgotten" };
        }
      }
    },
  };

  function refused(why: string): Fault {
    return new Fault("REFUSED", `Disk "${disk.diskId}" cannot be collected: ${why}`, {
      details: { diskId: disk.diskId },
    });
  }
}

/** An anchor above its floor only shortens the way, and is left out when it is damaged. Everything else that is wrong must not be made worse. */
function mayGoOn(ledger: Ledger, anchor: Anchor, look: Look): boolean {
  const fault = look.unusable.get(anchor);
  if (fault === undefined) return true;
  if (anchor.seq <= floorOf(ledger, anchor.branch) || fault.code === "OBJECT_MISSING") throw fault;
  return false;
}
