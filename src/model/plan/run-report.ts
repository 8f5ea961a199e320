/**
 * What became of a run of a plan: kept in the bucket behind the run before it, so that nobody can leave one out unseen.
 *
 * ```
 * record 1 ◄──previous── record 2 ◄──previous── record 3        previous: SHA-256 of the canonical JSON of the record before
 * ```
 * Times are read from it to predict the next run.
 */
import { canonicalJson } from "../format/json-record.ts";
import { utf8Bytes } from "../format/utf8.ts";
import type { JsonObject, JsonValue } from "../json.ts";
import type { PlanDirection, PlanMode } from "./recovery-plan.ts";
import type { Prediction } from "./resolved-plan.ts";

export const REPORT_VERSION = 1;

export interface RunReport {
  readonly plan: string;
  readonly planVersion: number;
  readonly mode: PlanMode;
  readonly direction: PlanDirection;
  readonly operationId: string;
  readonly by: string;
  readonly drill: boolean;
  readonly startedAtMs: number;
  readonly endedAtMs: number;
  readonly state: "done" | "failed" | "cancelled";
  readonly fault?: { readonly code: string; readonly message: string; readonly hint?: string };
  readonly objectives: { readonly rtoMs?: number; readonly rpoMs?: number };
  readonly predicted: Prediction;
  /** From the start to the end of the last step, before anything was cleaned up; only of a run that was carried through. */
  readonly rtoMs?: number;
  /** How old the oldest point was that a group came back to; planned moves take what is written last. */
  readonly rpoMs?: number;
  readonly steps: readonly ReportedStep[];
  readonly leftOut: readonly { readonly step: string; readonly why: string }[];
  readonly decisions: readonly ReportedDecision[];
  readonly groups: readonly {
    readonly group: string;
    readonly operationId: string;
    readonly pointId?: string;
    readonly pointCutAtMs?: number;
  }[];
  /** What could not be undone or cleaned up. */
  readonly left: readonly { readonly step: string; readonly why: string }[];
}

export interface ReportedStep {
  readonly id: string;
  readonly what: string;
  readonly state: "done" | "failed" | "skipped" | "undone" | "waiting" | "running";
  readonly attempts: number;
  readonly budgetMs: number;
  readonly expectedMs?: number;
  readonly tookMs?: number;
  /** What was seen: the output of an action, the answer to a check, the point of a move. */
  readonly evidence?: string;
}

export interface ReportedDecision {
  readonly step: string;
  readonly decision: string;
  readonly by: string;
  readonly atMs: number;
  readonly note?: string;
}

/** What stands in the bucket. */
export interface RunRecord {
  readonly version: number;
  /** Empty for the first. */
  readonly previous: string;
  readonly report: RunReport;
}

/** Of a record, for the next one's `previous`. `hash`: bytes → 64 hex digits, SHA-256. */
export function digestOfRecord(record: JsonObject, hash: (bytes: Uint8Array) => string): string {
  return hash(utf8Bytes(canonicalJson(record)));
}

/** A record that this program knows; undefined for another form. */
export function runRecordOf(record: JsonObject): RunRecord | undefined {
  const { version, previous, report } = record;
  if (version !== REPORT_VERSION || typeof previous !== "string" || !isObject(report)) return undefined;
  return { version, previous, report: report as unknown as RunReport }; // Written by us, under a MAC.
}

/** Times of steps that were carried through at the first attempt, by id, in the order of `reports`. */
export function timesOf(reports: readonly RunReport[], mode: PlanMode): Readonly<Record<string, readonly number[]>> {
  const times = new Map<string, number[]>();
  for (const report of reports) {
    if (report.mode !== mode) continue;
    for (const { id, state, attempts, tookMs } of report.steps)
      if (state === "done" && attempts === 1 && tookMs !== undefined) times.set(id, [...(times.get(id) ?? []), tookMs]);
  }
  return Object.fromEntries(times);
}

function isObject(value: JsonValue | undefined): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
