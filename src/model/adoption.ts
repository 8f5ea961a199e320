/**
 * A group whose workflow is lost, along with Temporal: where it stands, decided from what it last wrote into the catalog, from the claims, and
 * from what runs at the target now.
 *
 * ```
 *  claimed for the source ──► at source: it replicates, or goes on seeding
 *  claimed for the target ─┬► at target: machines of one operation run on the branch that is claimed
 *                          └► nowhere: fenced, and no machine was ever started. A person decides: failover again, or resume
 *  claimed for a third site, or for none that the record knows ──► elsewhere: not taken over
 * ```
 *
 * Invariants:
 * - the claims decide who is active, never the record, which may be older;
 * - machines that were ever started are kept: their disks may hold writes that exist nowhere else;
 * - what an interrupted operation made and nobody needs is listed as left over, so that a janitor removes it.
 */
import type { GroupPhase } from "./group-phase.ts";
import { readList, readObject, readText } from "./json-reader.ts";
import type { JsonObject } from "./json.ts";

export interface AdoptionFacts {
  /** From the catalog. */
  readonly phase: GroupPhase;
  readonly sourceSite: string;
  readonly targetSite: string;
  /** The operation whose machines ran at the target. */
  readonly replica?: string;
  /** A test failover. */
  readonly test?: string;
  /** Failovers and changes of point that had not ended. */
  readonly unfinished: readonly string[];
  /** The group's newest claim; without one it was never prepared. */
  readonly claim?: { readonly activeSite: string };
  /** What its first disk's newest claim says; `moving`: a move is half done. */
  readonly disk?: { readonly branch: string; readonly moving: boolean };
  readonly exports: readonly {
    readonly operationId: string;
    readonly mode: "read-only" | "throw-away" | "read-write";
    readonly branch?: string;
  }[];
  readonly machines: readonly {
    readonly operationId: string;
    readonly running: boolean;
    /** Running, or it ever was. */
    readonly started: boolean;
  }[];
}

/** What is seen beside the catalog. */
export type AdoptionSight = Pick<AdoptionFacts, "claim" | "disk" | "exports" | "machines">;

/** `record` as the group's workflow wrote it into the catalog. Throws PROTOCOL_INVALID for what no workflow of ours wrote. */
export function adoptionFacts(record: JsonObject, seen: AdoptionSight): AdoptionFacts {
  const operationOf = (name: string): string | undefined =>
    record[name] === undefined ? undefined : readText(readObject(record[name], name), "operationId");
  const [replica, test] = [operationOf("replica"), operationOf("test")];
  const unfinished = readList(record, "operations", (one) => one).filter(
    ({ kind, state }) => state === "running" && (kind === "failover" || kind === "changePoint"),
  );
  return {
    // One that this program does not know is treated by its claims alone.
    phase: readText(record, "phase") as GroupPhase,
    sourceSite: readText(record, "sourceSite"),
    targetSite: readText(record, "targetSite"),
    ...(replica === undefined ? {} : { replica }),
    ...(test === undefined ? {} : { test }),
    unfinished: unfinished.map((one) => readText(one, "operationId")),
    ...(seen.claim === undefined ? {} : { claim: seen.claim }),
    ...(seen.disk === undefined ? {} : { disk: seen.disk }),
    exports: seen.exports,
    machines: seen.machines,
  };
}

export type Standing =
  | { readonly at: "ended" }
  | { readonly at: "source"; readonly phase: "seeding" | "reseeding" | "protected" }
  | {
      readonly at: "target";
      readonly replica: string;
      readonly phase: "failed-over" | "committed";
      readonly interrupted: boolean;
    }
  | { readonly at: "nowhere" }
  | { readonly at: "elsewhere"; readonly activeSite: string };

export interface Adoption {
  readonly standing: Standing;
  /** Operations whose machines and exports are to be removed. */
  readonly leftOver: readonly string[];
}

export function planAdoption(facts: AdoptionFacts): Adoption {
  const standing = standingOf(facts);
  if (standing.at === "ended" || standing.at === "elsewhere") return { standing, leftOver: [] };
  const needed = standing.at === "target" ? standing.replica : undefined;
  const candidates = [facts.test, facts.replica, ...facts.unfinished].filter((one) => one !== undefined);
  const leftOver = [...new Set(candidates)].filter((one) => one !== needed && isThere(facts, one) && mayGo(facts, one));
  return { standing, leftOver };
}

function standingOf(facts: AdoptionFacts): Standing {
  const { phase, claim, disk, sourceSite, targetSite } = facts;
  if (phase === "unprotected") return { at: "ended" };
  if (claim === undefined) return { at: "source", phase: "seeding" };
  if (claim.activeSite === sourceSite)
    return disk?.moving === true
      ? { at: "nowhere" }
      : { at: "source", phase: phase === "seeding" || phase === "reseeding" ? phase : "protected" };
  if (claim.activeSite !== targetSite) return { at: "elsewhere", activeSite: claim.activeSite };
  const replica = replicaOf(facts);
  if (replica === undefined) return { at: "nowhere" };
  return {
    at: "target",
    replica,
    phase: phase === "committed" ? "committed" : "failed-over",
    // A move that stopped the machines and did not get further: they are brought back by whoever watches.
    interrupted: replica === facts.replica && (phase === "undoing" || phase === "changing-point"),
  };
}

/** Whose machines are the group's: those on the branch that is claimed now; else those of the record, whose disks can be opened again. */
function replicaOf(facts: AdoptionFacts): string | undefined {
  const { disk, exports, replica } = facts;
  const onBranch = exports.find(({ mode, branch }) => mode === "read-write" && branch === disk?.branch)?.operationId;
  if (onBranch !== undefined && (onBranch === replica || wasStarted(facts, onBranch))) return onBranch;
  return replica ?? facts.unfinished.find((one) => wasStarted(facts, one));
}

function wasStarted({ machines }: AdoptionFacts, operationId: string): boolean {
  return machines.some((machine) => machine.operationId === operationId && machine.started);
}

function isThere({ exports, machines }: AdoptionFacts, operationId: string): boolean {
  return [...exports, ...machines].some((one) => one.operationId === operationId);
}

/** A test's machines always; those of a failover only if they do not run and, unless it is the recorded one that was left, never did. */
function mayGo(facts: AdoptionFacts, operationId: string): boolean {
  if (operationId === facts.test) return true;
  if (facts.machines.some((machine) => machine.operationId === operationId && machine.running)) return false;
  return operationId === facts.replica || !wasStarted(facts, operationId);
}
