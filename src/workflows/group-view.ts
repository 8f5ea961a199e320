/**
 * How a group shows itself in Temporal: current details in Markdown at every look, search attributes only when phase or health change
 * (each change is an event of its own).
 *
 * Continue-as-new drops the static summary, so its line also opens the details and stands in the memo.
 */
import { setCurrentDetails, upsertMemo, upsertSearchAttributes } from "@temporalio/workflow";
import { allowedOperations } from "#model/group-phase.ts";
import { assessHealth, duration, healthLevel, isRpoBreach, type HealthReason } from "#model/health.ts";
import { factsOf, healthFactsOf, homeSiteOf, type GroupRecord } from "./group-record.ts";
import { groupSummary } from "./messages.ts";
import { EPOCH, GROUP, HEALTH, KIND, LAST_POINT, PHASE, RPO_BREACH, SITE } from "./operation-view.ts";
import { now, timestamp } from "./workflow-time.ts";

/** Show the record as it is now. `waitsFor` says what the workflow does next, for a person. */
export function showGroup(record: GroupRecord, waitsFor: string): void {
  const health = assessHealth(healthFactsOf(record, now()));
  setCurrentDetails(groupDetails(record, health, waitsFor));
  const shown = [
    record.phase,
    healthLevel(health),
    isRpoBreach(health),
    record.activeSite,
    record.epoch,
    record.conditions.join(),
  ].join("|");
  if (shown === record.shown || record.name === "" || record.sourceSite === "") return;
  if (record.shown === "") upsertMemo(groupMemo(record));
  record.shown = shown;
  const cutAtMs = record.progress?.barrierCutAtMs ?? 0;
  upsertSearchAttributes([
    { key: KIND, value: "group" },
    { key: GROUP, value: record.name },
    { key: PHASE, value: record.phase },
    { key: HEALTH, value: healthLevel(health) },
    { key: SITE, value: record.activeSite },
    { key: RPO_BREACH, value: isRpoBreach(health) },
    { key: EPOCH, value: record.epoch },
    ...(cutAtMs === 0 ? [] : [{ key: LAST_POINT, value: new Date(cutAtMs) }]),
  ]);
}

export function groupMemo(record: GroupRecord): Record<string, unknown> {
  return { name: record.name, summary: groupSummary({ ...record, homeSite: homeSiteOf(record) }) };
}

function groupDetails(record: GroupRecord, health: readonly HealthReason[], waitsFor: string): string {
  const { progress, replica } = record;
  const asOf = record.observedAtMs === 0 ? "" : ` (seen ${timestamp(record.observedAtMs)})`;
  const lines = [
    `**${record.name === "" ? record.groupId : groupSummary({ ...record, homeSite: homeSiteOf(record) })}**`,
    "",
    "| | |",
    "| --- | --- |",
  ];
  lines.push(
    `| Phase | **${record.phase}**${record.conditions.length === 0 ? "" : ` (${record.conditions.join(", ")})`} |`,
  );
  lines.push(`| Health | **${healthLevel(health)}** |`);
  lines.push(`| Runs at | ${record.activeSite}, epoch ${record.epoch} |`);
  if (progress !== undefined && replica === undefined) {
    const remaining = progress.disks.reduce((sum, disk) => sum + disk.syncRemainingBytes, 0);
    lines.push(
      `| Lag | ${progress.currentAsOfMs === 0 ? "no point yet" : duration(record.observedAtMs - progress.currentAsOfMs)}${asOf} |`,
    );
    if (progress.barrier > 0)
      lines.push(`| Last point | ${timestamp(progress.barrierCutAtMs)}, barrier ${progress.barrier} |`);
    if (remaining > 0)
      lines.push(
        `| To sync | ${(remaining / 2 ** 20).toFixed(1)} MiB at ${(progress.syncBytesPerSecond / 2 ** 20).toFixed(1)} MiB/s |`,
      );
    lines.push(`| Backlog | ${(progress.backlogBytes / 2 ** 20).toFixed(1)} MiB |`);
  }
  if (replica?.export !== undefined) {
    lines.push(
      `| Replica | runs on point \`${replica.pointId}\`, ${(replica.export.writtenBytes / 2 ** 20).toFixed(1)} MiB written since |`,
    );
    if (replica.export.barrier > 0)
      lines.push(`| Kept here | up to ${timestamp(replica.export.barrierCutAtMs)}${asOf} |`);
  }
  if (replica?.due !== undefined)
    lines.push(`| By itself | ${replica.due.move} at ${timestamp(replica.due.atMs)}, if nobody decides before |`);
  lines.push(`| Waits for | ${waitsFor} |`);
  for (const reason of health)
    lines.push("", `**${reason.code}** (${reason.level}): ${reason.cause}. *${reason.remedy}.*`);
  const running = record.operations.filter((operation) => operation.state === "running");
  for (const operation of running)
    lines.push(
      "",
      `Running: ${operation.kind} \`${operation.workflowId}\`, waits for ${operation.waitsFor ?? "its next step"}`,
    );
  lines.push("", `Allowed now: ${allowedOperations(factsOf(record)).join(", ") || "nothing but waiting"}`);
  if (record.phase === "protected") {
    lines.push(
      "",
      "```",
      `leeward group show ${record.name}`,
      `leeward failover ${record.name} --planned`,
      `leeward failover ${record.name} --source-lost   # the site is gone`,
      "```",
    );
  } else lines.push("", "```", `leeward group show ${record.name}`, "```");
  return lines.join("\n");
}
