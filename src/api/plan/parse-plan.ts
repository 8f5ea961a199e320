/**
 * A plan's YAML → RecoveryPlan. Everything that is wrong with it is found in one go, and each finding says line and column: of the value that is wrong,
 * or of what lacks something.
 */
import { isMap, isNode, isScalar, LineCounter, parseDocument, type Document } from "yaml";
import type { z } from "zod";
import { Fault } from "#model/fault.ts";
import { planProblems, type PlanProblem } from "#model/plan/check-plan.ts";
import type { RecoveryPlan } from "#model/plan/recovery-plan.ts";
import { planOfDocument, planSchema } from "./plan-schema.ts";

const BYTES_MAX = 256 * 1_024;
const SHOWN = 10;

interface Finding {
  readonly line: number;
  readonly column: number;
  readonly message: string;
  readonly hint?: string;
}

/** `known`: names of the protection groups that exist; left out: any may. Throws PLAN_INVALID. */
export function parsePlan(source: string, known?: readonly string[]): RecoveryPlan {
  if (Buffer.byteLength(source) > BYTES_MAX)
    throw invalid([{ line: 1, column: 1, message: `A plan has at most ${BYTES_MAX / 1_024} KiB` }]);
  const lines = new LineCounter();
  const document = parseDocument(source, { lineCounter: lines, prettyErrors: false, stringKeys: true });
  const at = (offset: number): { readonly line: number; readonly column: number } => {
    const { line, col } = lines.linePos(offset);
    return { line, column: col };
  };
  if (document.errors.length > 0)
    throw invalid(document.errors.map(({ pos, message }) => ({ ...at(pos[0]), message: `No YAML: ${message}` })));

  const json = asJson(document, at);
  const shape = planSchema.safeParse(json);
  if (!shape.success) {
    throw invalid(
      shape.error.issues.map((issue) => ({
        ...at(offsetOf(document, pathOf(issue), issue.code === "unrecognized_keys")),
        message: messageOf(issue),
      })),
    );
  }
  const found: PlanProblem[] = [];
  const plan = planOfDocument(shape.data, (problem) => void found.push(problem));
  if (found.length === 0) found.push(...planProblems(plan, known));
  if (found.length > 0) throw invalid(found.map((one) => ({ ...at(offsetOf(document, one.path)), ...one })));
  return plan;
}

function asJson(
  document: Document,
  at: (offset: number) => { readonly line: number; readonly column: number },
): unknown {
  try {
    return document.toJS({ maxAliasCount: 100 });
  } catch (error) {
    // Aliases that would unfold to something huge, or that lead nowhere.
    throw invalid([{ ...at(0), message: error instanceof Error ? error.message : String(error) }]);
  }
}

/** Where the value of a path is in the document, or its key; its nearest ancestor when it is not there. */
function offsetOf(document: Document, path: readonly PropertyKey[], wantsKey = false): number {
  for (let length = path.length; length >= 0; length -= 1) {
    const part = path.slice(0, length);
    const parent: unknown = length === 0 ? undefined : document.getIn(part.slice(0, -1), true);
    const pair = isMap(parent) ? parent.items.find(({ key }) => isScalar(key) && key.value === part.at(-1)) : undefined;
    const value: unknown = length === 0 ? document.contents : document.getIn(part, true);
    // A key without a value is all that there is to point at.
    for (const node of wantsKey && length === path.length ? [pair?.key, value] : [value, pair?.key])
      if (isNode(node) && node.range) return node.range[0];
  }
  return 0;
}

/** Of unknown keys the first; everything else points at itself. */
function pathOf(issue: z.core.$ZodIssue): readonly PropertyKey[] {
  return issue.code === "unrecognized_keys" ? [...issue.path, ...issue.keys.slice(0, 1)] : issue.path;
}

function messageOf(issue: z.core.$ZodIssue): string {
  const where = issue.path.length === 0 ? "the plan" : `"${issue.path.join(".")}"`;
  if (issue.code === "unrecognized_keys") return `${where} knows no ${issue.keys.map((key) => `"${key}"`).join(", ")}`;
  return `${where}: ${issue.message}`;
}

function invalid(findings: readonly Finding[]): Fault {
  const sorted = findings.toSorted((a, b) => a.line - b.line || a.column - b.column);
  const [first, ...others] = sorted.map(({ line, column, message }) => `line ${line}, column ${column}: ${message}`);
  const hints = [
    ...(sorted[0]?.hint === undefined ? [] : [sorted[0].hint]),
    ...(others.length === 0 ? [] : [`Also ${others.slice(0, SHOWN).join("; ")}`]),
    ...(others.length > SHOWN ? [`And ${others.length - SHOWN} more`] : []),
  ];
  return new Fault("PLAN_INVALID", `L${(first ?? "").slice(1)}`, {
    details: { line: sorted[0]?.line ?? 0, column: sorted[0]?.column ?? 0, findings: sorted.length },
    hint: hints.join(". ") || "See docs/recovery-plan.md; docs/recovery-plan.schema.json lets an editor check it",
  });
}
