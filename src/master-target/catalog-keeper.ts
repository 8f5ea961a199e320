/** The catalog and control's sealed keys, as the master target keeps them: under the MAC of this site's key, and create-only. */
import { Fault } from "#model/fault.ts";
import { decodeSealedKeys, encodeSealedKeys } from "#model/format/control-records.ts";
import { isName } from "#model/format/fields.ts";
import { storeNames } from "#model/format/object-names.ts";
import type { Mac } from "#model/format/records.ts";
import type { CatalogedGroup, MasterTarget } from "#ports/master-target.ts";
import { readCatalog, readStanding, writeCatalogEntry, type CatalogGroup } from "../data-mover/catalog.ts";
import { listNumbers } from "../data-mover/claims.ts";
import { createOnce } from "../data-mover/create-once.ts";
import { readIfThere, readIntact, type StoreContext } from "../data-mover/disk-context.ts";

type CatalogMethods = Pick<MasterTarget, "recordGroup" | "readCatalog" | "keepControlKeys">;

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
