/**
 * A group's entry in the catalog of its store: what another control plane needs to go on with it when Temporal and control are lost.
 *
 * Invariants:
 * - it is written whenever something changes that the rest of the store does not say: phase, order, machines, what a move made. What is only observed
 *   (progress, health, steps of a running operation) is not in it;
 * - its number is given here, before the call, and only grows; so an attempt that was given up and lands late is older, and changes nothing;
 * - nothing waits for it: a store that is away is a health reason, and is asked again after a minute. The claims in the store say what became
 *   of a move whose entry was never written.
 *
 * Source: docs/orchestration.md, "The catalog"; docs/format.md, "Catalog".
 */
import { isCancellation, patched } from "@temporalio/workflow";
import { crc32c } from "#model/checksum.ts";
import { utf8Bytes } from "#model/format/utf8.ts";
import type { JsonObject } from "#model/json.ts";
import { act } from "./act.ts";
import { faultOf } from "./failures.ts";
import type { GroupRecord } from "./group-record.ts";
import { now } from "./workflow-time.ts";

const RETRY_MS = 60_000;
const BUDGET_MS = 20_000;

/** Write the entry if it is due. Throws only when cancelled. `last`: the group ends, there is no next time. */
export async function keepInCatalog(record: GroupRecord, options: { readonly last?: boolean } = {}): Promise<void> {
  if (record.target.port === 0) return; // Nothing of it is in a store yet.
  const kept = catalogRecord(record);
  const text = JSON.stringify(kept);
  const mark = `${text.length}-${crc32c(utf8Bytes(text))}`;
  const { revision: former = 0, mark: written = "", sites: known = [], retryAtMs = 0 } = record.catalog ?? {};
  if (mark === written || (retryAtMs > now() && options.last !== true)) return;
  if (!patched("catalog")) return;
  const revision = Math.max(former + 1, now());
  // Also where it was kept before a reprotect: whoever reads that store only must not find it as it was then.
  const sites = [...new Set([record.targetSite, ...known])];
  record.catalog = { revision, mark: "", sites };
  try {
    const answers: number[] = [];
    for (const site of sites) {
      const { newest } = await act(
        "recordGroup",
        { site, groupId: record.groupId, revision, record: kept },
        {
          at: record.targetSite,
          summary: `catalog of ${site}: ${record.phase}`,
          ...(options.last === true ? {} : { budgetMs: BUDGET_MS, attempts: 3 }),
        },
      );
      answers.push(newest);
    }
    // Somebody had this name before, on a clock that was ahead: written again above it, at the next turn.
    const newest = Math.max(...answers);
    record.catalog = { revision: newest, mark: newest === revision ? mark : "", sites };
  } catch (error) {
    if (isCancellation(error)) throw error;
    record.catalog = { ...record.catalog, fault: faultOf(error).toJSON(), retryAtMs: now() + RETRY_MS };
  }
}

/** The record without what is observed, what is shown, and what continue-as-new alone needs. Fields that come later are in it by themselves. */
export function catalogRecord(record: GroupRecord): JsonObject {
  const {
    cursor: _cursor,
    progress: _progress,
    observedAtMs: _observedAtMs,
    connectionUnknown: _connectionUnknown,
    syncMovedAtMs: _syncMovedAtMs,
    targetFault: _targetFault,
    results: _results,
    shown: _shown,
    catalog: _catalog,
    orderDue: _orderDue,
    replica,
    operations,
    ...kept
  } = record;
  const { export: _export, fault: _fault, machinesOff: _off, uncommittedSinceMs: _since, ...ran } = replica ?? {};
  return {
    ...kept,
    ...(replica === undefined ? {} : { replica: ran }),
    operations: operations.map(({ steps: _steps, waitsFor: _waitsFor, waitsUntilMs: _until, ...one }) => one),
  } as unknown as JsonObject; // The record is plain JSON throughout; see its first invariant.
}
