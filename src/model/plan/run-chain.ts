/** The chain of a plan's runs, checked with nothing but the records; and what one run did otherwise than the one before. */
import type { JsonObject } from "../json.ts";
import { digestOfRecord, runRecordOf, type ReportedStep, type RunReport } from "./run-report.ts";

export interface ChainLink {
  readonly number: number;
  readonly record: JsonObject;
}

export interface ChainVerdict {
  readonly whole: boolean;
  /** What is wrong, oldest first. */
  readonly findings: readonly string[];
  /** The first that could be checked against the one before it; 1: from the beginning. */
  readonly from: number;
  /** Of the newest: to be noted elsewhere. Whoever has it can tell whether any record was changed since. */
  readonly digest: string;
}

/** `links` oldest first. `hash`: bytes → 64 hex digits, SHA-256. */
export function verifyChain(links: readonly ChainLink[], hash: (bytes: Uint8Array) => string): ChainVerdict {
  const findings: string[] = [];
  let before: { readonly number: number; readonly digest: string } | undefined;
  for (const { number, record } of links) {
    const known = runRecordOf(record);
    if (known === undefined) findings.push(`Record ${number} is of no form that this program knows`);
    if (before !== undefined && number !== before.number + 1)
      findings.push(`Between record ${before.number} and ${number} there is nothing, expected ${before.number + 1}`);
    const expected = before?.digest ?? (number === 1 ? "" : undefined);
    if (known !== undefined && expected !== undefined && known.previous !== expected)
      findings.push(`Record ${number} does not follow the record before it: one of the two was changed`);
    before = { number, digest: digestOfRecord(record, hash) };
  }
  if (before === undefined) findings.push("There is no record");
  return { whole: findings.length === 0, findings, from: links[0]?.number ?? 0, digest: before?.digest ?? "" };
}

export interface RunDifference {
  readonly step: string;
  readonly what: string;
}

/** What got worse or better by a quarter and a second, and what is new, gone, or ended otherwise. */
export function differences(now: RunReport, before: RunReport): readonly RunDifference[] {
  const old = new Map(before.steps.map((step) => [step.id, step]));
  return [
    ...now.steps.flatMap((step): readonly RunDifference[] => {
      const was = old.get(step.id);
      if (was === undefined) return [{ step: step.id, what: "new" }];
      if (was.state !== step.state) return [{ step: step.id, what: `${was.state} before, ${step.state} now` }];
      const what = slower(step, was);
      return what === undefined ? [] : [{ step: step.id, what }];
    }),
    ...before.steps
      .filter(({ id }) => !now.steps.some((step) => step.id === id))
      .map(({ id }) => ({ step: id, what: "gone" })),
  ];
}

function slower({ tookMs }: ReportedStep, was: ReportedStep): string | undefined {
  if (tookMs === undefined || was.tookMs === undefined) return undefined;
  const moreMs = tookMs - was.tookMs;
  if (Math.abs(moreMs) < Math.max(1_000, was.tookMs / 4)) return undefined;
  return `${(Math.abs(moreMs) / 1_000).toFixed(1)} s ${moreMs > 0 ? "longer" : "shorter"}`;
}
