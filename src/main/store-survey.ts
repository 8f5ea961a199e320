/** What a bucket says of a whole installation, read without control and without any key: for `control adopt` and `status`. */
import { adoptionFacts, planAdoption } from "#model/adoption.ts";
import type { ControlClaim, SealedKeysRecord } from "#model/format/control-records.ts";
import { decodeSealedKeys } from "#model/format/control-records.ts";
import { isFault } from "#model/fault.ts";
import { storeNames } from "#model/format/object-names.ts";
import { adoptedGroup, describeStanding } from "../api/rebuild-groups.ts";
import { readCatalog } from "../data-mover/catalog.ts";
import { listNumbers } from "../data-mover/claims.ts";
import { readControlClaim } from "../data-mover/control-claims.ts";
import { readIfThere, type StoreContext } from "../data-mover/disk-context.ts";
import { readStoreRecord } from "../data-mover/mover-store.ts";
import { tenantMac } from "../data-mover/sealing.ts";
import { listFolders } from "../data-mover/store-groups.ts";
import { catalogedGroup } from "../master-target/catalog-keeper.ts";

export interface StoreSurvey {
  readonly storeId: string;
  readonly claim: ControlClaim | undefined;
  /** The newest sealed copy of control's keys. */
  readonly keys: SealedKeysRecord | undefined;
  readonly groups: readonly SurveyedGroup[];
}

export interface SurveyedGroup {
  readonly group: string;
  /** As the catalog has it; "unknown" where no entry can be read. */
  readonly phase: string;
  readonly activeSite: string | undefined;
  /** What an adoption would make of it. */
  readonly standing: string;
  /** No adoption can bring it back: why. */
  readonly problem?: string;
  readonly recordedAt?: string;
  readonly newestPoint?: { readonly barrier: number; readonly cutAt: string; readonly ageMs: number };
  readonly damaged: readonly { readonly key: string; readonly message: string }[];
}

/** With the site's `tenantKey` only entries that its holder wrote count. Throws NOT_FOUND when there is no store, STORE_…. */
export async function surveyStore(context: StoreContext, tenantKey?: Uint8Array): Promise<StoreSurvey> {
  const { storeId } = await readStoreRecord(context);
  const mac = tenantKey === undefined ? undefined : tenantMac(tenantKey, storeId);
  const [claim, keys, catalog, ids] = await Promise.all([
    readControlClaim(context),
    readSealedKeys(context),
    readCatalog(context, mac),
    listFolders(context, storeNames(context.root).groups),
  ]);
  const groups: SurveyedGroup[] = [];
  for (const groupId of new Set([...catalog.map((one) => one.groupId), ...ids])) {
    const found = catalog.find((one) => one.groupId === groupId) ?? { groupId, damaged: [] };
    groups.push(await surveyGroup(context, found));
  }
  return { storeId, claim, keys, groups: groups.sort((a, b) => (a.group < b.group ? -1 : 1)) };
}

async function surveyGroup(context: StoreContext, found: Parameters<typeof catalogedGroup>[1]): Promise<SurveyedGroup> {
  const group = await catalogedGroup(context, found);
  const nowMs = context.clock.now();
  const { newest, entry, claim, damaged } = group;
  const seen = {
    group: group.groupId,
    phase: typeof entry?.record["phase"] === "string" ? entry.record["phase"] : "unknown",
    activeSite: claim?.activeSite,
    damaged,
    ...(entry === undefined ? {} : { recordedAt: new Date(entry.writtenAtMs).toISOString() }),
    ...(newest === undefined
      ? {}
      : {
          newestPoint: {
            barrier: newest.barrier,
            cutAt: new Date(newest.cutAtMs).toISOString(),
            ageMs: Math.max(0, nowMs - newest.cutAtMs),
          },
        }),
  };
  if (found.entry === undefined && damaged.length === 0) {
    const problem = "written before there was a catalog: its points are whole, protect its machines anew";
    return { ...seen, standing: "unknown", problem };
  }
  try {
    const adopted = adoptedGroup(group, { exports: [], machines: [] });
    const { standing } = planAdoption(adoptionFacts(adopted.record, adopted));
    const text = describeStanding(standing);
    return { ...seen, standing: text, ...(standing.at === "elsewhere" ? { problem: text } : {}) };
  } catch (error) {
    if (!isFault(error)) throw error;
    return { ...seen, standing: "unknown", problem: `${error.code}: ${error.message}` };
  }
}

async function readSealedKeys(context: StoreContext): Promise<SealedKeysRecord | undefined> {
  const names = storeNames(context.root);
  for (const number of (await listNumbers(context, names.controlKeys)).toReversed()) {
    const key = names.controlKey(number);
    try {
      const data = await readIfThere(context, key);
      if (data !== undefined) return decodeSealedKeys(data, key);
    } catch (error) {
      if (!isFault(error, "OBJECT_CORRUPT")) throw error; // The one before it is older by an enrolment at most.
    }
  }
  return undefined;
}
