/**
 * `group show --json`: what the group's workflow decided, with what its sites say right now. The workflow looks once per window, up to a
 * minute ago; the phase and the epoch are its own, figures are fresher from the sites. A site that does not answer leaves the workflow's.
 */
import { runsAtTarget } from "#model/group-phase.ts";
import type { HealthCode } from "#model/health-codes.ts";
import type { HealthReason } from "#model/health.ts";
import type { PeerIdentity } from "#ports/link.ts";
import type { SourceState } from "#ports/process-server.ts";
import type { RecoveryPoint } from "#ports/replication.ts";
import type { GroupState } from "../workflows/messages.ts";
import { expiringCertificates } from "./certificates.ts";
import type { GroupView } from "./contract.ts";
import type { ApiDependencies } from "./dependencies.ts";
import { isConnected, lookAtGroup, type LiveFacts } from "./sites.ts";

export async function viewOf(dependencies: ApiDependencies, state: GroupState): Promise<GroupView> {
  const view = groupView(state, await lookAtGroup(dependencies, state), dependencies.clock.now());
  const more = [
    ...missingRoles(dependencies, state, view.health),
    ...expiringCertificates(dependencies, (identity) => takesPart(identity, state)),
  ];
  return more.length === 0 ? view : { ...view, health: [...view.health, ...more] };
}

export function groupView(state: GroupState, live: LiveFacts, nowMs: number): GroupView {
  const progress = live.progress ?? state.progress;
  const syncRemainingBytes = sum(progress?.disks.map((disk) => disk.syncRemainingBytes));
  // What is compared and the same never reaches the target: while comparing, only the source knows how fast it goes.
  const syncBytesPerSecond =
    (live.source?.compared === undefined ? undefined : live.source.sync?.bytesPerSecond) ??
    progress?.syncBytesPerSecond ??
    0;
  const newestPoint = newer(live.newestPoint, state.newestPoint);
  return {
    name: state.name,
    phase: state.phase,
    conditions: state.conditions,
    health: [...state.health, ...sourceHealth(state, live.source)],
    sourceSite: state.sourceSite,
    targetSite: state.targetSite,
    activeSite: state.activeSite,
    homeSite: state.homeSite,
    reversed: (runsAtTarget(state.phase) ? state.targetSite : state.sourceSite) !== state.homeSite,
    epoch: state.epoch,
    branch: state.branch,
    policy: state.policy,
    rpoMs: runsAtTarget(state.phase) ? replicaRpoMs(state, live, nowMs) : age(progress?.currentAsOfMs, nowMs),
    // When the newest barrier was committed is known of those that came since the mover's start.
    lagMs:
      runsAtTarget(state.phase) || progress === undefined || progress.barrierCommittedAtMs === 0
        ? null
        : Math.max(0, progress.barrierCommittedAtMs - progress.barrierCutAtMs),
    backlogBytes: progress?.backlogBytes ?? 0,
    etaMs: etaMs(syncRemainingBytes, syncBytesPerSecond),
    syncRemainingBytes,
    syncTotalBytes: sum(progress?.disks.map((disk) => disk.syncTotalBytes)),
    syncBytesPerSecond,
    comparedBytes: live.source?.compared?.comparedBytes ?? 0,
    sameBytes: live.source?.compared?.sameBytes ?? 0,
    writtenBytes: progress?.writtenBytes ?? 0,
    shippedBytes: progress?.shippedBytes ?? 0,
    storedBytes: progress?.storedBytes ?? 0,
    allowedOperations: state.allowedOperations,
    disks: state.machines.flatMap((machine) =>
      machine.disks.map(({ diskId, sizeBytes, source, tapUrl }) => {
        const url = live.source?.disks.find((disk) => disk.diskId === diskId)?.tapUrl ?? tapUrl;
        return { id: diskId, machine: machine.name, sizeBytes, source, ...(url === undefined ? {} : { tapUrl: url }) };
      }),
    ),
    ...(newestPoint === undefined ? {} : { newestPoint }),
    ...runsOn(state),
    ...(state.due === undefined ? {} : { due: { move: state.due.move, at: new Date(state.due.atMs).toISOString() } }),
    operations: state.operations,
  };
}

/** Whether the group's replication, or its next move, goes through this role. */
function takesPart(
  { role, site, name }: PeerIdentity,
  { phase, machines, sourceSite, targetSite }: GroupState,
): boolean {
  if (phase === "unprotected") return false;
  if (role === "agent") return site === sourceSite && machines.some(({ name: own, agent = own }) => agent === name);
  if (role === "process-server") return site === sourceSite;
  return role === "worker" || (role === "master-target" && site === targetSite);
}

/**
 * The group's health is what its worker saw at its last look, through the sites' roles. Without one of them it is old news: "healthy" would be
 * a guess.
 */
function missingRoles(
  dependencies: ApiDependencies,
  state: GroupState,
  known: readonly HealthReason[],
): readonly HealthReason[] {
  const { phase, sourceSite, targetSite } = state;
  if (phase === "unprotected") return [];
  const said = (...codes: readonly HealthCode[]): boolean => known.some(({ code }) => codes.includes(code));
  const seen =
    state.observedAtMs === 0 ? "it was not looked at yet" : `last seen ${new Date(state.observedAtMs).toISOString()}`;
  const unknown = (code: HealthCode, role: string, site: string): HealthReason => ({
    code,
    level: "unknown",
    cause: `The ${role} of site "${site}" is not connected to control: how the group is now is not known, ${seen}`,
    remedy: "It connects by itself when it runs; `leeward status` shows who is connected",
  });
  const reasons: HealthReason[] = [];
  if (!dependencies.connected().some(({ identity }) => identity.role === "worker"))
    reasons.push(unknown("WORKER_CONNECTING", "worker", dependencies.controlSite));
  if (!isConnected(dependencies, targetSite, "master-target") && !said("TARGET_UNREACHABLE", "EXPORT_UNAVAILABLE"))
    reasons.push(unknown("TARGET_CONNECTING", "master target", targetSite));
  const replicates = (phase === "protected" || phase === "seeding") && !state.conditions.includes("Paused");
  if (
    replicates &&
    !isConnected(dependencies, sourceSite, "process-server") &&
    !said("SOURCE_DISCONNECTED", "SOURCE_CONNECTING", "SOURCE_FENCED", "FENCED", "TARGET_UNREACHABLE")
  )
    reasons.push(unknown("SOURCE_CONNECTING", "process server", sourceSite));
  return reasons;
}

/** What the source's process server knows and the workflow does not look at. */
function sourceHealth(state: GroupState, source: SourceState | undefined): readonly HealthReason[] {
  if (source === undefined) return [];
  if (runsAtTarget(state.phase)) {
    if (source.state !== "fenced" && source.state !== "stopped") return [];
    return [
      {
        code: "OLD_SOURCE_FENCED",
        level: "warning",
        cause: `Site "${state.sourceSite}" is back and replicates nothing: site "${state.activeSite}" is active with epoch ${state.epoch}${source.fault === undefined ? "" : ` (${source.fault.code}: ${source.fault.message})`}`,
        remedy: `Keep its machines switched off: nothing that they write there is replicated${state.phase === "failed-over" ? `. If it is that site that has what you need, "leeward undo ${state.name}" goes back to it` : ""}`,
      },
    ];
  }
  if (source.state === "failed" && source.fault !== undefined) {
    return [
      {
        code: "SOURCE_FAILED",
        level: "critical",
        cause: `The process server of "${state.sourceSite}" gave up: ${source.fault.code}: ${source.fault.message}`,
        remedy: source.fault.hint ?? "Look into the process server's log",
      },
    ];
  }
  if (source.state === "bitmap") {
    return [
      {
        code: "SPOOL_FULL",
        level: "warning",
        cause: "The spool of the process server is full: changes are tracked, no points are made",
        remedy: "It catches up by itself once the way to the target is free; look at bandwidth and at the target",
      },
    ];
  }
  return [];
}

/** An idle disk writes nothing, and what it has is all in the store: the age of its newest barrier says nothing then. */
function replicaRpoMs(state: GroupState, live: LiveFacts, nowMs: number): number | null {
  const { replica } = state;
  if (replica === undefined) return null;
  const sinceMs = state.replicaMachines?.uncommittedSinceMs ?? 0;
  if (live.replica !== undefined && live.replica.barrier !== replica.barrier)
    return age(live.replica.barrierCutAtMs, nowMs);
  if (sinceMs > 0) return Math.max(0, nowMs - sinceMs);
  return live.replica?.writtenBytes === replica.writtenBytes ? 0 : age(state.observedAtMs, nowMs);
}

/** A point's id begins with the time of its cut. */
function runsOn({ replica }: GroupState): Pick<GroupView, "runsOn"> {
  const cutAtMs = /^(\d{13})-/.exec(replica?.pointId ?? "")?.[1];
  if (replica === undefined || cutAtMs === undefined) return {};
  return { runsOn: { pointId: replica.pointId, cutAt: new Date(Number(cutAtMs)).toISOString() } };
}

function newer(one: RecoveryPoint | undefined, other: RecoveryPoint | undefined): RecoveryPoint | undefined {
  if (one === undefined || other === undefined) return one ?? other;
  return one.barrier >= other.barrier ? one : other;
}

function age(atMs: number | undefined, nowMs: number): number | null {
  return atMs === undefined || atMs === 0 ? null : Math.max(0, nowMs - atMs);
}

function etaMs(remainingBytes: number, bytesPerSecond: number): number | null {
  return remainingBytes === 0 || bytesPerSecond <= 0 ? null : Math.round((remainingBytes / bytesPerSecond) * 1000);
}

function sum(values: readonly number[] = []): number {
  return values.reduce((total, value) => total + value, 0);
}
