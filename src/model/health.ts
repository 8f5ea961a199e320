/**
 * Health of a group: coded reasons, each with what was seen and what to do, from what was observed and the policy's thresholds.
 *
 * Invariants:
 * - a code never changes its meaning: alerts and scripts match on it;
 * - no reason means healthy; the level of a group is that of its worst reason;
 * - only facts in, text out: the same facts give the same reasons.
 */
import type { HealthCode } from "./health-codes.ts";
import { CONDITIONS, isMoving, type GroupPhase } from "./group-phase.ts";

/** `unknown`: something is just coming up, and whether it is well will be known in a moment. */
export type HealthLevel = "unknown" | "warning" | "critical";

export interface HealthReason {
  readonly code: HealthCode;
  readonly level: HealthLevel;
  readonly cause: string;
  readonly remedy: string;
}

/** The initial sync is called stalled after this long without a byte less to do. */
export const SYNC_STALLED_MS = 60_000;
/** RPO_BREACH turns from warning to critical at this multiple of the threshold. */
export const RPO_CRITICAL_FACTOR = 3;

/** A source has this long to connect after its target, or its order, was started anew. Until then nobody calls it lost. */
export const CONNECT_GRACE_MS = 30_000;
/** How often a replica machine that died is started again before a person is asked. */
export const RESTART_TRIES = 5;

interface FaultText {
  readonly code: string;
  readonly message: string;
  readonly hint?: string;
}

export interface HealthFacts {
  readonly name: string;
  readonly phase: GroupPhase;
  readonly conditions: readonly string[];
  readonly sourceSite: string;
  readonly targetSite: string;
  readonly nowMs: number;
  readonly rpoThresholdMs: number;
  /** What the master target said last. */
  readonly progress?: {
    readonly state: "waiting" | "seeding" | "live" | "fenced" | "failed";
    readonly connected: boolean;
    readonly fault?: FaultText;
    /** Zero: no point yet. */
    readonly currentAsOfMs: number;
  };
  /** Since when the source is expected to connect, because the target or its order was started anew; absent once it has. */
  readonly connectingSinceMs?: number;
  /** When the remaining bytes of a sync last got fewer. */
  readonly syncMovedAtMs: number;
  /** Why the master target could not be asked. */
  readonly targetFault?: FaultText;
  /** Why the catalog could not be written. */
  readonly catalogFault?: FaultText;
  /** While reseeding: the cut that a failover would go back to; zero when there is none. */
  readonly reseedPointCutAtMs?: number;
  /** After a failover: the replica machines and what of their writes is in the store. */
  readonly replica?: {
    /** Since when writes of theirs wait for a commit; zero when none do. */
    readonly uncommittedSinceMs: number;
    /** The failover or change of point that made them. */
    readonly operationId: string;
    readonly machinesOff: readonly string[];
    /** Those that died and are started again, by name. */
    readonly restarts: Readonly<Record<string, { readonly tries: number; readonly fault?: FaultText }>>;
    readonly fault?: FaultText;
  };
}

/** From the least to the worst. */
const LEVELS: readonly HealthLevel[] = ["unknown", "warning", "critical"];

/** Reasons, worst first. */
export function assessHealth(facts: HealthFacts): readonly HealthReason[] {
  const reasons =
    facts.phase === "failed-over" || facts.phase === "committed" ? afterFailover(facts) : replicating(facts);
  return [...reasons, ...conditional(facts)].sort((a, b) => LEVELS.indexOf(b.level) - LEVELS.indexOf(a.level));
}

export function healthLevel(reasons: readonly HealthReason[]): "healthy" | HealthLevel {
  return LEVELS.findLast((level) => reasons.some((reason) => reason.level === level)) ?? "healthy";
}

/** Whether the source has had less than its time to connect, as of `nowMs`. */
export function isConnecting(connectingSinceMs: number | undefined, nowMs: number): boolean {
  return connectingSinceMs !== undefined && nowMs - connectingSinceMs < CONNECT_GRACE_MS;
}

export function isRpoBreach(reasons: readonly HealthReason[]): boolean {
  return reasons.some((reason) => reason.code === "RPO_BREACH");
}

function replicating(facts: HealthFacts): HealthReason[] {
  if (facts.phase === "unprotected" || isMoving(facts.phase)) return [];
  const lost = `If the site is lost, type "leeward failover ${facts.name} --source-lost"`;
  if (facts.conditions.includes(CONDITIONS.sourceFenced)) {
    return [
      critical(
        "SOURCE_FENCED",
        `The replica is claimed for site "${facts.targetSite}", but no machine runs there: the last failover failed`,
        `${lost}; or "leeward group resume ${facts.name}" gives the replica back to its source`,
      ),
    ];
  }
  const reasons: HealthReason[] = [];
  const { progress } = facts;
  const paused = facts.conditions.includes(CONDITIONS.paused);
  const connecting = isConnecting(facts.connectingSinceMs, facts.nowMs);
  if (facts.targetFault !== undefined) {
    reasons.push(
      critical(
        "TARGET_UNREACHABLE",
        `The master target of site "${facts.targetSite}" cannot be asked: ${facts.targetFault.message}`,
        facts.targetFault.hint ?? "Start the master target, and look at its log",
      ),
    );
  }
  if (progress !== undefined) {
    if (progress.state === "fenced") {
      reasons.push(
        critical(
          "FENCED",
          progress.fault?.message ?? "Another site holds the claim on the replica",
          progress.fault?.hint ?? 'Look at "leeward status": the group runs elsewhere',
        ),
      );
    } else if (progress.state === "failed") {
      reasons.push(
        critical(
          "REPLICATION_FAILED",
          progress.fault === undefined
            ? "The master target gave up"
            : `${progress.fault.code}: ${progress.fault.message}`,
          progress.fault?.hint ?? "Look at the master target's log",
        ),
      );
    } else if (!progress.connected && facts.targetFault === undefined && !paused && connecting) {
      reasons.push({
        code: "SOURCE_CONNECTING",
        level: "unknown",
        cause: `The process server of site "${facts.sourceSite}" is expected to connect since ${duration(facts.nowMs - (facts.connectingSinceMs ?? facts.nowMs))}`,
        remedy: `It does so by itself; after ${duration(CONNECT_GRACE_MS)} it counts as not connected`,
      });
    } else if (!progress.connected && facts.targetFault === undefined && !paused) {
      reasons.push(
        critical(
          "SOURCE_DISCONNECTED",
          `The process server of site "${facts.sourceSite}" is not connected to the master target`,
          facts.phase === "protected" ? `Start it, or repair the network. ${lost}` : "Start it, or repair the network",
        ),
      );
    }
  }
  if (facts.phase === "protected") {
    const lagMs = facts.nowMs - (progress?.currentAsOfMs ?? facts.nowMs);
    if (lagMs > facts.rpoThresholdMs) {
      reasons.push({
        code: "RPO_BREACH",
        level: lagMs > facts.rpoThresholdMs * RPO_CRITICAL_FACTOR ? "critical" : "warning",
        cause: `The replica is ${duration(lagMs)} behind, the policy allows ${duration(facts.rpoThresholdMs)}`,
        remedy: paused
          ? `Type "leeward group resume ${facts.name}"`
          : "Look at backlog and bandwidth; it catches up by itself once the cause is gone",
      });
    }
  }
  if (facts.phase === "reseeding") {
    const cutAtMs = facts.reseedPointCutAtMs ?? 0;
    reasons.push(
      critical(
        "NOT_PROTECTED_YET",
        `What the machines write at site "${facts.sourceSite}" is kept nowhere else until its first point is at "${facts.targetSite}"; ${cutAtMs === 0 ? "there is no point to fail over to" : `a failover would go back to the old disks, ${duration(facts.nowMs - cutAtMs)} ago`}`,
        "Wait for the first point; look at backlog and bandwidth",
      ),
    );
  }
  if (
    (facts.phase === "seeding" || facts.phase === "reseeding") &&
    !paused &&
    facts.nowMs - facts.syncMovedAtMs > SYNC_STALLED_MS
  ) {
    reasons.push(
      warning(
        "SYNC_STALLED",
        `The ${facts.phase === "seeding" ? "initial " : ""}sync has not moved for ${duration(facts.nowMs - facts.syncMovedAtMs)}`,
        "Look at the agent and the process server of the source site",
      ),
    );
  }
  return reasons;
}

function afterFailover(facts: HealthFacts): HealthReason[] {
  const reasons: HealthReason[] = [
    warning(
      "NOT_REPLICATED",
      `The machines run at site "${facts.targetSite}" and are kept in its store only`,
      facts.phase === "committed"
        ? `Once site "${facts.sourceSite}" is up again, type "leeward reprotect ${facts.name}"`
        : `Decide: "leeward undo ${facts.name}", or "leeward commit ${facts.name}" and then reprotect it`,
    ),
  ];
  const { replica } = facts;
  const fault = replica?.fault ?? facts.targetFault;
  if (fault !== undefined)
    reasons.push(
      critical(
        "EXPORT_UNAVAILABLE",
        `The disks of the replica machines cannot be seen: ${fault.code}: ${fault.message}`,
        fault.hint ?? "Start the master target; the disks are opened again by themselves",
      ),
    );
  for (const name of replica?.machinesOff ?? [])
    reasons.push(critical("REPLICA_MACHINE_OFF", ...machineOff(name, replica!)));
  if (
    replica !== undefined &&
    replica.uncommittedSinceMs > 0 &&
    facts.nowMs - replica.uncommittedSinceMs > facts.rpoThresholdMs &&
    fault === undefined
  ) {
    reasons.push(
      warning(
        "LOCAL_RPO_BREACH",
        `What the replica machines write has not been committed for ${duration(facts.nowMs - replica.uncommittedSinceMs)}`,
        "Look at the store of the target site",
      ),
    );
  }
  return reasons;
}

function machineOff(name: string, replica: NonNullable<HealthFacts["replica"]>): [cause: string, remedy: string] {
  const byHand = `"leeward operation retry ${replica.operationId} ${name}"`;
  const restart = replica.restarts[name];
  if (restart === undefined)
    return [
      `The replica machine "${name}" is off: it was shut down, from inside or by a person`,
      `Start it again with ${byHand}`,
    ];
  const { tries, fault } = restart;
  const last = fault === undefined ? "" : `; the last try: ${fault.code}: ${fault.message}`;
  return tries < RESTART_TRIES
    ? [
        `The replica machine "${name}" died${last}`,
        `It is started again by itself, try ${tries + 1} of ${RESTART_TRIES}; at once with ${byHand}`,
      ]
    : [
        `The replica machine "${name}" died, and was started again ${RESTART_TRIES} times in vain${last}`,
        `Look at its console and its host, then type ${byHand}`,
      ];
}

function conditional(facts: HealthFacts): HealthReason[] {
  const has = (condition: string): boolean => facts.conditions.includes(condition);
  const reasons: HealthReason[] = [];
  if (has(CONDITIONS.paused))
    reasons.push(
      warning(
        "PAUSED",
        "Replication is paused; changes are tracked at the source",
        `Type "leeward group resume ${facts.name}"`,
      ),
    );
  if (has(CONDITIONS.testCleanupFailed)) {
    reasons.push(
      warning(
        "TEST_CLEANUP_FAILED",
        "Machines or disks of a test failover could not be removed",
        `Type "leeward test-failover cleanup ${facts.name}", with --force if the site is gone`,
      ),
    );
  }
  if (facts.catalogFault !== undefined)
    reasons.push(
      warning(
        "CATALOG_BEHIND",
        `The catalog does not have the group as it is now: ${facts.catalogFault.code}: ${facts.catalogFault.message}`,
        facts.catalogFault.hint ??
          "It is written by itself once the store answers; until then do not lose this control",
      ),
    );
  if (has(CONDITIONS.partial))
    reasons.push(
      critical(
        "MEMBER_NOT_STARTED",
        "Not every machine of the group started at the target",
        'Look at the failed step in "leeward operation show"',
      ),
    );
  if (has(CONDITIONS.sourceMayRun))
    reasons.push(
      warning(
        "SOURCE_MAY_RUN",
        `Machines at site "${facts.sourceSite}" could not be shut down; what they write is not replicated`,
        "Power them off there, so that nobody works on them by mistake",
      ),
    );
  if (has(CONDITIONS.undoUnfinished))
    reasons.push(
      critical(
        "UNDO_UNFINISHED",
        "The last undo stopped the replica machines and could not be carried through: the group runs nowhere",
        `Type "leeward undo ${facts.name}" again: it goes on where it stopped`,
      ),
    );
  if (has(CONDITIONS.disksMoved))
    reasons.push(
      critical(
        "DISKS_NOT_KEPT",
        `A reprotect that was not carried through has moved disks onto images at site "${facts.targetSite}": what is written to them is in no store`,
        `Type "leeward reprotect ${facts.name}" again: it goes on with what is there`,
      ),
    );
  if (has(CONDITIONS.notAnswering))
    reasons.push(
      warning(
        "NOT_ANSWERING",
        "A replica machine runs, but did not answer in time",
        'Look at its console with "leeward operation show"',
      ),
    );
  return reasons;
}

function critical(code: HealthCode, cause: string, remedy: string): HealthReason {
  return { code, level: "critical", cause, remedy };
}

function warning(code: HealthCode, cause: string, remedy: string): HealthReason {
  return { code, level: "warning", cause, remedy };
}

/** 850 ms, 12 s, 4 min, 3 h, 2 d: for a person, one unit. */
export function duration(ms: number): string {
  const whole = Math.max(0, Math.round(ms));
  if (whole < 1_000) return `${whole} ms`;
  if (whole < 120_000) return `${Math.round(whole / 1_000)} s`;
  if (whole < 7_200_000) return `${Math.round(whole / 60_000)} min`;
  if (whole < 172_800_000) return `${Math.round(whole / 3_600_000)} h`;
  return `${Math.round(whole / 86_400_000)} d`;
}
