/** How an operation's own workflow shows itself: current details in Markdown, search attributes, and reports to its group. */
import { defineSearchAttributeKey, SearchAttributeType, type SearchAttributePair } from "@temporalio/common";
import {
  CancellationScope,
  getExternalWorkflowHandle,
  log,
  setCurrentDetails,
  type SignalDefinition,
} from "@temporalio/workflow";
import { duration } from "#model/health.ts";
import { groupWorkflowId, type Operation, type OperationState, type OperationStep } from "./messages.ts";
import { operationChanged, operationEnded, type OperationEnd } from "./signals.ts";
import { now, timestamp } from "./workflow-time.ts";

export const KIND = defineSearchAttributeKey("LeewardKind", SearchAttributeType.KEYWORD);
export const PHASE = defineSearchAttributeKey("LeewardPhase", SearchAttributeType.KEYWORD);
export const HEALTH = defineSearchAttributeKey("LeewardHealth", SearchAttributeType.KEYWORD);
export const GROUP = defineSearchAttributeKey("LeewardGroup", SearchAttributeType.KEYWORD);
export const SITE = defineSearchAttributeKey("LeewardSite", SearchAttributeType.KEYWORD);
export const RPO_BREACH = defineSearchAttributeKey("LeewardRpoBreach", SearchAttributeType.BOOL);
export const LAST_POINT = defineSearchAttributeKey("LeewardLastPoint", SearchAttributeType.DATETIME);
export const EPOCH = defineSearchAttributeKey("LeewardEpoch", SearchAttributeType.INT);

/** Attributes of a child workflow. */
export function childAttributes(kind: string, groupName: string, site: string): SearchAttributePair[] {
  return [
    { key: KIND, value: kind },
    { key: GROUP, value: groupName },
    { key: SITE, value: site },
  ];
}

/** An operation of a group as it stands before its first report. */
export function begun(
  group: { readonly groupId: string },
  request: Operation,
  kind: OperationState["kind"],
  workflowId: string,
): OperationState {
  const steps = kind === "cleanup" ? [{ name: "clean up", state: "running" as const, startedAtMs: now() }] : [];
  return {
    operationId: request.operationId,
    kind,
    workflowId,
    groupId: group.groupId,
    by: request.by,
    state: "running",
    startedAtMs: now(),
    waitsFor: kind === "cleanup" ? "machines and disks to be removed" : "its first step",
    steps,
  };
}

/**
 * Show the operation's state and tell its group, without waiting. One signal is under way at a time: two that leave together may arrive
 * in either order. What changes meanwhile is told as one.
 */
export function reporter(groupId: string, headline: string): Reporter {
  const group = getExternalWorkflowHandle(groupWorkflowId(groupId));
  let next: OperationState | undefined;
  let telling = false;
  let last: Promise<void> = Promise.resolve();
  async function tell(): Promise<void> {
    telling = true;
    for (let state = next; state !== undefined; state = next) {
      next = undefined;
      try {
        await group.signal(operationChanged, state);
      } catch (error) {
        // The group may be gone (ended by force). The operation goes on without it: its own workflow shows everything.
        log.warn("The group could not be told", { error: String(error) });
      }
    }
    telling = false;
  }
  const changed = (state: OperationState): void => {
    setCurrentDetails(operationDetails(headline, state));
    next = state;
    // Not under the cancellation of a step: the report of it must go out.
    if (!telling) last = CancellationScope.nonCancellable(tell);
  };
  return Object.assign(changed, { told: async () => await last });
}

export interface Reporter {
  (state: OperationState): void;
  /** The group knows all that was reported so far: to be awaited before something that it must know of, should we be ended from outside. */
  told(): Promise<void>;
}

/** The last word of an operation to its group. Waits until the group has it. */
export async function reportEnd(groupId: string, end: OperationEnd): Promise<void> {
  await tellGroup(groupId, operationEnded, end);
}

/** Waits until the group has it. */
export async function tellGroup<Word>(groupId: string, signal: SignalDefinition<[Word]>, word: Word): Promise<void> {
  await CancellationScope.nonCancellable(async () => {
    try {
      await getExternalWorkflowHandle(groupWorkflowId(groupId)).signal(signal, word);
    } catch (error) {
      // As above: a group that is gone cannot be told, and the operation goes on, or has ended, all the same.
      log.warn("The group could not be told", { signal: signal.name, error: String(error) });
    }
  });
}

const MARKS: Readonly<Record<OperationStep["state"], string>> = {
  waiting: "·",
  running: "▶",
  done: "✔",
  failed: "✘",
  skipped: "–",
  undone: "↩",
};

export function operationDetails(headline: string, state: OperationState): string {
  const lines = [`**${headline}**`, "", `State: **${state.state}**, since ${timestamp(state.startedAtMs)}`];
  if (state.waitsFor !== undefined)
    lines.push(
      "",
      `Waits for: ${state.waitsFor}${state.waitsUntilMs === undefined ? "" : `, until ${timestamp(state.waitsUntilMs)}`}`,
    );
  if (state.pointCutAtMs !== undefined)
    lines.push("", `Point: \`${state.pointId ?? ""}\`, cut at ${timestamp(state.pointCutAtMs)}`);
  lines.push("", "| | step | took | |", "| --- | --- | --- | --- |");
  for (const step of state.steps) {
    const took =
      step.startedAtMs !== undefined && step.endedAtMs !== undefined ? duration(step.endedAtMs - step.startedAtMs) : "";
    lines.push(`| ${MARKS[step.state]} | ${step.name} | ${took} | ${step.detail ?? ""} |`);
  }
  for (const machine of state.machines ?? []) {
    lines.push(
      "",
      `Machine \`${machine.name}\` at ${machine.site}: ${machine.forwards.map((one) => `port ${one.guestPort} at 127.0.0.1:${one.hostPort}`).join(", ") || "no ports"}`,
    );
  }
  if (state.fault !== undefined)
    lines.push("", `**${state.fault.code}**: ${state.fault.message}`, "", state.fault.hint ?? "");
  lines.push("", `Follow it: \`leeward operation watch ${state.operationId}\``);
  return lines.join("\n");
}
