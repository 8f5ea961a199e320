/** Before a move: what it would do (`--dry-run`), or what a person should know before saying yes. */
import { Fault } from "#model/fault.ts";
import type { ApiClient, DryRun, DryRunBody } from "../api/contract.ts";
import { confirm } from "./confirm.ts";
import { answeredFailure, duration, size, type Output } from "./output.ts";

export interface BeforeMove {
  readonly api: ApiClient;
  readonly output: Output;
  readonly group: string;
  readonly body: DryRunBody;
  /** What is asked; a person who says it knows what happens. */
  readonly what: string;
}

/**
 * Whether to go on. `--dry-run` prints and never does; `--yes` goes on at once. Otherwise what is refused is refused before anybody is asked,
 * and what speaks against it is said with the question.
 */
export async function beforeMove(
  { api, output, group, body, what }: BeforeMove,
  options: { readonly dryRun?: boolean; readonly yes?: boolean },
): Promise<boolean> {
  if (options.dryRun === true) {
    const plan = await api.dryRun(group, body);
    output.answer(plan, describeDryRun);
    if (plan.refusal !== undefined) throw answeredFailure(refused(plan.refusal));
    return false;
  }
  if (options.yes === true) return true;
  const { refusal, warnings, point, lossMs } = await api.dryRun(group, body);
  if (refusal !== undefined) throw refused(refusal);
  const loss =
    point === undefined || body.move === "change-point" ? "" : `, from the point of ${point.cutAt}${lost(lossMs)}`;
  await confirm([...warnings, `${what}${loss}`].join("\n"), group, { yes: false });
  return true;
}

function refused({ message, hint }: NonNullable<DryRun["refusal"]>): Fault {
  return new Fault("REFUSED", message, { hint });
}

function lost(lossMs: number | null | undefined): string {
  if (lossMs === undefined || lossMs === null) return "";
  return lossMs === 0 ? "; nothing is lost" : `; what was written in the last ${duration(lossMs)} is lost`;
}

export function describeDryRun(plan: DryRun): string {
  const lines = [
    `${plan.move} of "${plan.group}" (${plan.phase}): ${plan.refusal === undefined ? "allowed now" : "refused now"}; nothing was changed`,
  ];
  if (plan.refusal !== undefined)
    lines.push(`  refused   ${plan.refusal.message}`, `            → ${plan.refusal.hint}`);
  if (plan.point !== undefined)
    lines.push(
      `  point     ${plan.point.id}, cut at ${plan.point.cutAt}, ${duration(plan.point.ageMs)} ago, branch ${plan.point.branch}, ${plan.point.consistency}-consistent, ${plan.point.grade}`,
    );
  if (plan.lossMs !== undefined)
    lines.push(
      `  loses     ${plan.lossMs === null ? "not known: the target does not answer" : plan.lossMs === 0 ? "nothing" : `what was written in the last ${duration(plan.lossMs)}`}`,
    );
  if (plan.setsAside !== undefined) lines.push(`  sets aside ${setAsideText(plan.setsAside)}`);
  for (const warning of plan.warnings) lines.push(`  warning   ${warning}`);
  lines.push(`  steps     ${plan.steps.join(" → ")}`);
  return lines.join("\n");
}

/** "37 min 2 s, 4.1 GiB, as branch x-…", as far as it is known. */
export function setAsideText({ branch, ranMs, bytes }: NonNullable<DryRun["setsAside"]>): string {
  const parts = [...(ranMs === undefined ? [] : [duration(ranMs)]), ...(bytes === 0 ? [] : [size(bytes)])];
  return `${parts.length === 0 ? "its writes" : parts.join(", ")}, as branch ${branch}`;
}
