/**
 * The phases of a protection group, and which move is allowed when. API, console, command line and workflows all ask here.
 *
 * ```
 * unprotected ─protect─► seeding ─seeded─► protected ─failover─► failing-over ─booted─► failed-over
 *      ▲                   │  ▲                │  ▲                  │                  │  ▲  │
 *      └──── gave up ──────┘  └── undone ──────┼──┴───── undone ─────┘                  │  │  └─commit─► committed
 *      └──────────────── unprotected ──────────┘  ▲                                     │  │
 *                                                 │               ┌──change point / undo┘  │
 *                                                 │               ▼                        │
 *                                                 └─ undone ─ changing-point, undoing ─────┘ changed, or not carried out
 *
 * committed ─turned (reprotect)─► reseeding ─reseeded─► protected, its sites swapped
 *                                    │ ▲
 *                                    ▼ └─ undone ─ failing-over, undoing
 * ```
 * A committed group is unprotected too: its machines are off by then, and what they wrote stays in the store.
 *
 * Which site the group is from ("home") is no phase either: *reversed* says that its machines run at the other one and are replicated to home.
 * Failback is a planned failover of a reversed group.
 *
 * Invariants:
 * - pause, test failover and a fenced source are conditions beside the phase, never phases;
 * - a refusal always says which moves are allowed now, and what to type when something is missing;
 * - everything here is decided from facts that the caller has at hand: no waiting, so that it can run in a validator.
 *
 * Source: docs of the moves; the design's state picture of a protection group.
 */
export type GroupPhase =
  | "unprotected"
  | "seeding"
  | "protected"
  | "failing-over"
  | "failed-over"
  | "changing-point"
  | "undoing"
  | "committed"
  | "reseeding";

/** Phases in which a child workflow moves the group: it is waited for, and nothing else begins. */
export function isMoving(phase: GroupPhase): boolean {
  return phase === "failing-over" || phase === "changing-point" || phase === "undoing";
}

/** The group's machines are those at the target. */
export function runsAtTarget(phase: GroupPhase): boolean {
  return phase === "failed-over" || phase === "changing-point" || phase === "undoing" || phase === "committed";
}

export const GROUP_OPERATIONS = [
  "protect",
  "pause",
  "resume",
  "bookmark",
  "failover",
  "planned-failover",
  "failback",
  "change-point",
  "commit",
  "undo",
  "reprotect",
  "retry-member",
  "skip-member",
  "test-failover",
  "test-failover-cleanup",
  "unprotect",
] as const;
export type GroupOperation = (typeof GROUP_OPERATIONS)[number];

/** What stands beside the phase. */
export const CONDITIONS = {
  paused: "Paused",
  /** The store is claimed for the target, but nothing runs there: a failover with a lost source failed before the boot. */
  sourceFenced: "SourceFenced",
  testing: "Testing",
  testCleanupFailed: "TestCleanupFailed",
  unprotecting: "Unprotecting",
  /** Some machines of the group did not start at the target. */
  partial: "Partial",
  /** A replica machine runs but did not answer in time. */
  notAnswering: "NotAnswering",
  /** The source was reachable at the failover, but its machines could not be shut down. */
  sourceMayRun: "SourceMayRun",
  /** An undo stopped the replica machines, and whether the replica was given back is not known. Only another undo ends it. */
  undoUnfinished: "UndoUnfinished",
  /** Machines that did not start are being started. */
  retrying: "Retrying",
  /** The old disks at the other site are being swept, and the machines' disks are leaving their export. */
  reprotecting: "Reprotecting",
  /** A reprotect that was not carried through has moved disks off their export: what is written to them is in no store. */
  disksMoved: "DisksMoved",
} as const;
export type GroupCondition = (typeof CONDITIONS)[keyof typeof CONDITIONS];

export interface GroupFacts {
  readonly name: string;
  readonly phase: GroupPhase;
  readonly conditions: readonly string[];
  /** At least one complete point exists. */
  readonly hasPoint: boolean;
  /** As last observed: the target hears the source's process server. Undefined when that cannot be known now. */
  readonly sourceConnected: boolean | undefined;
  /** After a failover: its machines at the target, as last seen. */
  readonly replica?: { readonly running: readonly string[]; readonly off: readonly string[] };
  /** Its machines run at the site to which they were once recovered, and are replicated to the one they are from. */
  readonly reversed?: boolean;
  /** Some of its machines do not run at the target, whether somebody has noted that or not. */
  readonly missing?: boolean;
}

/** What a person must say for a move that would otherwise be refused. */
export interface MoveOptions {
  readonly sourceLost?: boolean;
  /** Ending the protection of a committed group takes the disks of its machines away: shut them down. */
  readonly stopReplica?: boolean;
}

/** With everything said that can be said: what is listed as allowed. */
const SAID: MoveOptions = { sourceLost: true, stopReplica: true };

export interface Refusal {
  readonly message: string;
  readonly hint: string;
}

/** Why `operation` is not allowed now; undefined when it is. */
export function refusalOf(
  facts: GroupFacts,
  operation: GroupOperation,
  options: MoveOptions = {},
): Refusal | undefined {
  const found = reason(facts, operation, options);
  if (found === undefined) return undefined;
  const allowed = allowedOperations(facts);
  return {
    message: `Group "${facts.name}" is "${facts.phase}"${facts.conditions.length === 0 ? "" : ` (${facts.conditions.join(", ")})`}: ${found.why}`,
    hint: `${found.instead === undefined ? "" : `${found.instead}. `}Allowed now: ${allowed.length === 0 ? "nothing but waiting" : allowed.join(", ")}`,
  };
}

/** Moves that would be accepted now, in the order of GROUP_OPERATIONS. */
export function allowedOperations(facts: GroupFacts): readonly GroupOperation[] {
  return GROUP_OPERATIONS.filter((operation) => reason(facts, operation, SAID) === undefined);
}

interface Reason {
  readonly why: string;
  readonly instead?: string;
}

/** Phases in which a move may begin. */
const PHASES: Readonly<Record<GroupOperation, readonly GroupPhase[]>> = {
  protect: ["unprotected"],
  pause: ["protected"],
  resume: ["protected", "reseeding"],
  bookmark: ["protected"],
  failover: ["seeding", "protected", "reseeding"],
  "planned-failover": ["protected"],
  failback: ["protected"],
  "change-point": ["failed-over"],
  commit: ["failed-over"],
  undo: ["failed-over"],
  reprotect: ["committed"],
  "retry-member": ["failed-over", "committed"],
  "skip-member": ["failed-over", "committed"],
  "test-failover": ["protected"],
  "test-failover-cleanup": [
    "seeding",
    "protected",
    "failing-over",
    "failed-over",
    "changing-point",
    "undoing",
    "committed",
    "reseeding",
  ],
  unprotect: ["seeding", "protected", "reseeding", "committed"],
};

function reason(facts: GroupFacts, operation: GroupOperation, options: MoveOptions): Reason | undefined {
  const has = (condition: GroupCondition): boolean => facts.conditions.includes(condition);
  if (has(CONDITIONS.unprotecting)) return { why: "its protection is being removed" };
  if (!PHASES[operation].includes(facts.phase)) return wrongPhase(facts, operation);
  const type = `leeward failover ${facts.name} --source-lost`;
  switch (operation) {
    case "protect":
      return undefined;
    case "pause":
      if (has(CONDITIONS.sourceFenced)) return { why: "its source is fenced, nothing is replicated" };
      return has(CONDITIONS.paused) ? { why: "it is paused already" } : undefined;
    case "resume":
      return has(CONDITIONS.paused) || has(CONDITIONS.sourceFenced) ? undefined : { why: "it is not paused" };
    case "bookmark":
      if (has(CONDITIONS.paused))
        return {
          why: "a bookmark needs a cut, and it is paused",
          instead: `Type "leeward group resume ${facts.name}" first`,
        };
      if (has(CONDITIONS.sourceFenced)) return { why: "a bookmark needs a cut, and its source is fenced" };
      if (facts.sourceConnected === false)
        return {
          why: "a bookmark needs a cut, and its source is not connected",
          instead: "Connect the source site's process server",
        };
      return undefined;
    case "failover":
      if (!facts.hasPoint)
        return { why: "it has no complete recovery point yet", instead: "Wait for the initial sync" };
      if (facts.phase === "reseeding" && options.sourceLost !== true) {
        return {
          why: "its machines are on their way to the other site, which has only what they were before the last failover; to go back to that, a person must say that they are lost",
          instead: `If they are, type "${type}"`,
        };
      }
      if (facts.sourceConnected === false && options.sourceLost !== true) {
        return {
          why: "its source is not connected, so a person must say that it is lost",
          instead: `If it is, type "${type}"`,
        };
      }
      return undefined;
    case "failback":
      if (facts.reversed !== true)
        return {
          why: "its machines are at the site they are from",
          instead: `To move them to the other one, type "leeward failover ${facts.name} --planned"`,
        };
      return reason(facts, "planned-failover", options);
    case "planned-failover":
      if (!facts.hasPoint)
        return { why: "it has no complete recovery point yet", instead: "Wait for the initial sync" };
      if (has(CONDITIONS.sourceFenced))
        return { why: "its source is fenced and cannot make a final cut", instead: `Type "${type}"` };
      if (has(CONDITIONS.paused))
        return {
          why: "a planned failover needs a final cut, and it is paused",
          instead: `Type "leeward group resume ${facts.name}" first`,
        };
      if (facts.sourceConnected === false) {
        return {
          why: "a planned failover needs its source, and that is not connected",
          instead: `If it is lost, type "${type}"`,
        };
      }
      return undefined;
    case "retry-member":
    case "skip-member":
      if (has(CONDITIONS.retrying)) return { why: RETRYING };
      if (has(CONDITIONS.reprotecting)) return { why: REPROTECTING };
      if (has(CONDITIONS.undoUnfinished)) return unfinished(facts);
      if (has(CONDITIONS.partial)) return undefined;
      if (operation === "skip-member") return { why: "no machine of it is missing" };
      // What was skipped may be started after all: without it the group cannot be reprotected.
      if (facts.phase === "committed" && facts.missing === true) return undefined;
      return (facts.replica?.off.length ?? 0) > 0 ? undefined : { why: "no machine of it is missing or off" };
    case "reprotect":
      if (has(CONDITIONS.retrying)) return { why: RETRYING };
      if (has(CONDITIONS.reprotecting)) return { why: REPROTECTING };
      if (has(CONDITIONS.partial) || facts.missing === true)
        return {
          why: "not all of its machines run, and only what runs can be replicated",
          instead: 'Type "leeward operation retry" with the id of its failover first',
        };
      return undefined;
    case "change-point":
      if (has(CONDITIONS.retrying)) return { why: RETRYING };
      return has(CONDITIONS.undoUnfinished) ? unfinished(facts) : undefined;
    case "commit":
      return has(CONDITIONS.undoUnfinished) ? unfinished(facts) : undefined;
    case "undo":
      if (has(CONDITIONS.retrying)) return { why: RETRYING };
      if (facts.sourceConnected === false) {
        return {
          why: "an undo gives the replica back to its source, and that is not connected",
          instead: "Connect the source site's process server",
        };
      }
      return undefined;
    case "test-failover":
      if (!facts.hasPoint)
        return { why: "it has no complete recovery point yet", instead: "Wait for the initial sync" };
      if (has(CONDITIONS.testing) || has(CONDITIONS.testCleanupFailed)) {
        return {
          why: "a test failover of it exists already",
          instead: `Type "leeward test-failover cleanup ${facts.name}" first`,
        };
      }
      return undefined;
    case "test-failover-cleanup":
      return has(CONDITIONS.testing) || has(CONDITIONS.testCleanupFailed)
        ? undefined
        : { why: "no test failover of it exists" };
    case "unprotect":
      if (has(CONDITIONS.testing) || has(CONDITIONS.testCleanupFailed)) {
        return {
          why: "a test failover of it still exists",
          instead: `Type "leeward test-failover cleanup ${facts.name}" first`,
        };
      }
      if (has(CONDITIONS.retrying)) return { why: RETRYING };
      if (has(CONDITIONS.reprotecting))
        return { why: REPROTECTING, instead: 'Cancel that first: "leeward operation list" has its id' };
      if (facts.phase === "committed" && options.stopReplica !== true) return runsOnOurDisks(facts);
      return undefined;
  }
}

/** Without its export a replica machine has no disks. */
function runsOnOurDisks({ name, replica }: GroupFacts): Reason | undefined {
  if (replica === undefined || replica.running.length === 0) return undefined;
  const names = replica.running.map((one) => `"${one}"`).join(", ");
  return {
    why: `machine ${names} runs on disks that the group serves, and would lose them`,
    instead: `Copy what it needs first; "leeward group unprotect ${name} --stop-replica" shuts it down, and what it wrote stays in the store`,
  };
}

const RETRYING = "its missing machines are being started";
const REPROTECTING = "it is being reprotected";

function unfinished({ name }: GroupFacts): Reason {
  return { why: "its last undo is not finished", instead: `Type "leeward undo ${name}" again` };
}

/** The right to change point and to undo ends with a commit: that is worth saying. */
function wrongPhase({ name, phase }: GroupFacts, operation: GroupOperation): Reason {
  if (phase === "committed" && (operation === "undo" || operation === "change-point" || operation === "commit"))
    return {
      why:
        operation === "commit" ? "it is committed already" : "its failover was committed, which ended the right to it",
    };
  if (phase === "failed-over" && operation === "reprotect")
    return {
      why: "its failover is not committed, so it may still be undone; a reprotect begins where that right ends",
      instead: `Type "leeward commit ${name}" first`,
    };
  if (phase === "reseeding" && operation === "failback")
    return { why: "the site it is from has no complete point of its new state yet" };
  if (phase === "failing-over" && operation === "undo")
    return { why: "its failover still runs; cancelled before the boot, it undoes itself" };
  if (phase === "failed-over" && operation === "unprotect")
    return {
      why: "it has not been decided where it stays",
      instead: `Type "leeward commit ${name}" or "leeward undo ${name}" first`,
    };
  const needs = `${operation} needs ${PHASES[operation].map((one) => `"${one}"`).join(" or ")}`;
  return isMoving(phase) ? { why: needs, instead: 'Wait for its move: "leeward operation list"' } : { why: needs };
}
