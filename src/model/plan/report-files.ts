/** What is kept of a run outside of the bucket: a page for people, and the records up to that run, for whoever checks the chain. */
import type { JsonObject } from "../json.ts";
import { reportPage } from "./report-page.ts";
import type { ChainLink } from "./run-chain.ts";
import { digestOfRecord, runRecordOf, type RunReport } from "./run-report.ts";

export const CHAIN_FORMAT = 1;

export interface KeptRun {
  readonly number: number;
  readonly record: JsonObject;
}

export interface ReportFiles {
  readonly number: number;
  readonly report: RunReport;
  /** Names without a folder, and what is in them. */
  readonly html: { readonly name: string; readonly text: string };
  readonly json: { readonly name: string; readonly text: string };
  /** What stands in `json`, oldest first. */
  readonly chain: readonly ChainLink[];
}

/**
 * Of the newest run that `wanted` takes; undefined when there is none. `runs` newest first, of one plan.
 * `hash`: bytes → 64 hex digits, SHA-256.
 */
export function reportFiles(
  runs: readonly KeptRun[],
  wanted: (report: RunReport) => boolean,
  hash: (bytes: Uint8Array) => string,
): ReportFiles | undefined {
  const reports = runs.map(({ record }) => runRecordOf(record)?.report);
  const at = reports.findIndex((report) => report !== undefined && wanted(report));
  const run = runs[at];
  const report = reports[at];
  if (run === undefined || report === undefined) return undefined;
  const beforeAt = reports.findIndex((other, index) => index > at && other?.mode === report.mode);
  const before = runs[beforeAt];
  const past = reports[beforeAt];
  const chain = runs
    .slice(at)
    .toReversed()
    .map(({ number, record }) => ({ number, record }));
  const page = reportPage({
    number: run.number,
    report,
    digest: digestOfRecord(run.record, hash),
    ...(before === undefined || past === undefined ? {} : { before: { number: before.number, report: past } }),
  });
  const json = JSON.stringify({ format: CHAIN_FORMAT, plan: report.plan, records: chain }, null, 1);
  return {
    number: run.number,
    report,
    html: { name: `${report.operationId}.html`, text: page },
    json: { name: `${report.operationId}.json`, text: `${json}\n` },
    chain,
  };
}
