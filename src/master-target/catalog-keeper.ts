/** The catalog and control's sealed keys, as the master target keeps them: under the MAC of this site's key, and create-only. */
import { Fault } from "#model/fault.ts";
import { decodeSealedKeys, encodeSealedKeys } from "#model/format/control-records.ts";
import { isName } from "#model/format/fields.ts";
import { isKeptCollection, KEPT_COLLECTIONS } from "#model/format/kept-record.ts";
import { storeNames } from "#model/format/object-names.ts";
import type { Mac } from "#model/format/mac-record.ts";
import type { CatalogedGroup, MasterTarget } from "#ports/master-target.ts";
import { readCatalog, readStanding, writeCatalogEntry, type CatalogGroup } from "../data-mover/catalog.ts";
import { listNumbers } from "../data-mover/claims.ts";
import { createOnce } from "../data-mover/create-once.ts";
import { readIfThere, readIntact, type StoreContext } from "../data-mover/disk-context.ts";
import { keepRecord, readKeptRecords } from "../data-mover/kept-records.ts";

type CatalogMethods = Pick<
  MasterTarget,
  "recordGroup" | "readCatalog" | "keepRecord" | "readRecords" | "keepControlKeys"
>;

/** So that an answer fits into one message of a link. */
const RECORD_BYTES_MAX = 1 << 20;
const ANSWER_BYTES_MAX = 3 << 20;

export function catalogKeeper(deps: {
  readonly context: StoreContext;
  /** With a key of this site; asks the store who it is. */
  readonly mac: () => Promise<Mac>;
  readonly storeId: () => Promise<string>;
}): CatalogMethods {
  const { context } = deps;
  const names = storeNames(context.root);
  return {
    async recordGroup({ groupId, revision, record }) {
      if (!isName(groupId, 64) || !Number.isSafeInteger(revision) || revision < 1)
        throw new Fault("USAGE", `Expected the record of a group with a revision, got "${groupId}", ${revision}`);
      const entry = { groupId, revision, writtenAtMs: context.clock.now(), record };
      return { newest: await writeCatalogEntry(context, entry, await deps.mac()) };
    },

    async readCatalog() {
      const storeId = await deps.storeId();
      const groups = await readCatalog(context, await deps.mac());
      return { storeId, groups: await Promise.all(groups.map((group) => catalogedGroup(context, group))) };
    },

    async keepRecord({ collection, name, number, record }) {
      checkSeries(collection, name);
      if (!Number.isSafeInteger(number) || number < 1)
        throw new Fault("USAGE", `Expected a number from 1 for a record of "${name}", got ${number}`);
      const bytes = Buffer.byteLength(JSON.stringify(record));
      if (bytes > RECORD_BYTES_MAX)
        throw new Fault("USAGE", `A record of "${name}" has ${bytes} bytes, expected at most ${RECORD_BYTES_MAX}`);
      await deps.storeId(); // There is a store: it is not made by what is kept in it.
      const kept = { collection, name, number, writtenAtMs: context.clock.now(), record };
      return { kept: await keepRecord(context, kept, await deps.mac()) };
    },

    async readRecords({ collection, name, ...options }) {
      checkSeries(collection, name ?? "all");
      const which = { collection, ...(name === undefined ? {} : { name }), ...options };
      const series = await readKeptRecords(context, await deps.mac(), which);
      let room = ANSWER_BYTES_MAX;
      return series.map(({ records, damaged, ...one }) => ({
        ...one,
        records: records
          .map(({ number, writtenAtMs, record }) => ({ number, writtenAtMs, record }))
          .filter(({ record }) => (room -= Buffer.byteLength(JSON.stringify(record))) > 0),
        damaged: damaged.map(({ key, fault }) => ({ key, message: fault.message })),
      }));
    },

    async keepControlKeys({ keys }) {
      const body = encodeSealedKeys(keys);
      decodeSealedKeys(body, "control's keys"); // Whoever needs it must be able to read it.
      for (;;) {
        const number = (await listNumbers(context, names.controlKeys)).at(-1) ?? 0;
        const newest = await readKeys(number);
        if (newest?.mark === keys.mark && newest.controlId === keys.controlId) return { number };
        const taken = await createOnce(context, {
          key: names.controlKey(number + 1),
          body,
          look: () => readKeys(number + 1),
          isMine: (found) => found.nonce === keys.nonce,
        });
        if (taken === undefined) return { number: number + 1 };
      }
    },
  };

  async function readKeys(number: number) {
    const key = names.controlKey(number);
    return await readIntact(async () => {
      const data = await readIfThere(context, key);
      return data && decodeSealedKeys(data, key);
    });
  }
}

function checkSeries(collection: unknown, name: string): void {
  if (isKeptCollection(collection) && isName(name, 64)) return;
  throw new Fault(
    "USAGE",
    `Expected a series of ${KEPT_COLLECTIONS.join(" or ")}, got "${String(collection)}", "${name}"`,
  );
}

export async function catalogedGroup(context: StoreContext, group: CatalogGroup): Promise<CatalogedGroup> {
  const { groupId, entry, damaged } = group;
  const { claim, disk, newest } = await readStanding(context, groupId);
  return {
    groupId,
    ...(entry === undefined
      ? {}
      : { entry: { revision: entry.revision, writtenAtMs: entry.writtenAtMs, record: entry.record } }),
    ...(claim === undefined
      ? {}
      : { claim: { groupEpoch: claim.groupEpoch, activeSite: claim.activeSite, operation: claim.operation } }),
    ...(disk === undefined ? {} : { disk: { branch: disk.branch, moving: disk.moving ?? false } }),
    ...(newest === undefined ? {} : { newest }),
    damaged: damaged.map(({ key, fault }) => ({ key, message: fault.message })),
  };
}
