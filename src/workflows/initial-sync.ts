/**
 * Watching the first copy until the first recovery point exists.
 *
 * The copy itself is a mode of each disk's one writer, driven by the signed order; this workflow moves nothing. It watches in slices:
 * short ones first, so that progress shows at once, then up to five minutes, and tells its group after each.
 */
import { continueAsNew, getExternalWorkflowHandle, setCurrentDetails, sleep, workflowInfo } from "@temporalio/workflow";
import { Fault, FAULTS, isFaultCode } from "#model/fault.ts";
import { duration } from "#model/health.ts";
import type { GroupProgress } from "#ports/replication.ts";
import type { WatchInput, WatchResult } from "../activities/contract.ts";
import { act, PRIORITY } from "./act.ts";
import { failureOf } from "./failures.ts";
import { groupWorkflowId } from "./messages.ts";
import { syncProgressed } from "./signals.ts";

const FIRST_SLICE_MS = 2_000;
const SLICE_MS_MAX = 300_000;
const UNREACHABLE_PAUSE_MS = 5_000;

export interface InitialSyncInput {
  readonly groupId: string;
  readonly groupName: string;
  readonly site: string;
  readonly rpoThresholdMs: number;
  readonly cursor: string;
  readonly sliceMs?: number;
  /** Which points count; left out: any. */
  readonly line?: WatchInput["line"];
}

/** Ends with the progress that has a point; throws a failure with a fault when the target says it cannot go on. */
export async function initialSync(input: InitialSyncInput): Promise<GroupProgress> {
  const group = getExternalWorkflowHandle(groupWorkflowId(input.groupId));
  let cursor = input.cursor;
  let sliceMs = input.sliceMs ?? FIRST_SLICE_MS;
  let known = { state: "", connected: false, faultCode: "", rpoBreached: false };
  for (;;) {
    const result: WatchResult = await act(
      "watchGroup",
      {
        site: input.site,
        groupId: input.groupId,
        cursor,
        windowMs: sliceMs,
        known,
        rpoThresholdMs: Number.MAX_SAFE_INTEGER,
        until: "point",
        ...(input.line === undefined ? {} : { line: input.line }),
      },
      { at: input.site, summary: `initial sync, slice of ${duration(sliceMs)}`, priority: PRIORITY.sync },
    );
    cursor = result.cursor;
    const { progress } = result;
    setCurrentDetails(syncDetails(input, result));
    if (progress !== undefined) {
      await group.signal(syncProgressed, { progress, cursor });
      if (result.endedBy === "point") return progress;
      if (progress.state === "fenced" || (progress.state === "failed" && !isRetryable(progress.fault?.code)))
        throw failureOf(givenUp(progress));
      known = {
        state: progress.state,
        connected: progress.connected,
        faultCode: progress.fault?.code ?? "",
        rpoBreached: false,
      };
    }
    if (result.endedBy === "unreachable")
      await sleep(UNREACHABLE_PAUSE_MS, { summary: "the master target cannot be asked" });
    else if (result.endedBy === "window") sliceMs = Math.min(sliceMs * 2, SLICE_MS_MAX);
    if (workflowInfo().continueAsNewSuggested)
      return await continueAsNew<typeof initialSync>({ ...input, cursor, sliceMs });
  }
}

function isRetryable(code: string | undefined): boolean {
  return isFaultCode(code) && FAULTS[code].retryable;
}

function givenUp(progress: GroupProgress): Fault {
  const { code, message, hint } = progress.fault ?? {
    code: "",
    message: "the master target gave up without a reason",
    hint: undefined,
  };
  return new Fault(isFaultCode(code) ? code : "OPERATION_FAILED", message, hint === undefined ? {} : { hint });
}

function syncDetails(input: InitialSyncInput, result: WatchResult): string {
  const { progress, fault } = result;
  const lines = [`**${input.groupName}: initial sync to ${input.site}**`, ""];
  if (progress === undefined) lines.push("Nothing was heard of it yet.");
  else {
    const total = progress.disks.reduce((sum, disk) => sum + disk.syncTotalBytes, 0);
    const remaining = progress.disks.reduce((sum, disk) => sum + disk.syncRemainingBytes, 0);
    const rate = progress.syncBytesPerSecond;
    lines.push(
      `State: **${progress.state}**, source ${progress.connected ? "connected" : "not connected"}`,
      "",
      `${mebibytes(total - remaining)} of ${mebibytes(total)} MiB, ${mebibytes(rate)} MiB/s${rate > 0 ? `, about ${duration((remaining / rate) * 1_000)} left` : ""}`,
    );
    if (progress.fault !== undefined)
      lines.push("", `**${progress.fault.code}**: ${progress.fault.message}`, "", progress.fault.hint ?? "");
  }
  if (fault !== undefined) lines.push("", `The master target cannot be asked. **${fault.code}**: ${fault.message}`);
  lines.push("", `Follow it: \`leeward group show ${input.groupName}\``);
  return lines.join("\n");
}

function mebibytes(bytes: number): string {
  return (bytes / 2 ** 20).toFixed(1);
}
