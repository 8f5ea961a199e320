/** What our workflows tell each other. Signals only between them; people and programs use updates. */
import { defineSignal } from "@temporalio/workflow";
import type { GroupProgress, RecoveryPoint } from "#ports/replication.ts";
import type { OperationState, ProtectedMachine } from "./messages.ts";

/** A child's steps, whenever one changes. */
export const operationChanged = defineSignal<[OperationState]>("operationChanged");
export const operationEnded = defineSignal<[OperationEnd]>("operationEnded");
/** The janitor removed everything of an operation; `lost`: the operation's workflow ended without saying so. */
export const resourcesGone = defineSignal<[{ readonly operationId: string; readonly lost: boolean }]>("resourcesGone");
export const syncProgressed =
  defineSignal<[{ readonly progress: GroupProgress; readonly cursor: string }]>("syncProgressed");

/** The target's store is written by the machines' new site: the group swaps its sites. */
export const turned = defineSignal<[Turned]>("turned");
/** To a reprotect: its group has the first point of the new state, or is on another way (`instead`). */
export const reseeded = defineSignal<[{ readonly instead?: string }]>("reseeded");

/** To a test failover: end it now. */
export const cleanUp = defineSignal<[{ readonly reason: string }]>("cleanUp");
/** To a janitor: nothing is left for you. */
export const release = defineSignal("release");

export interface OperationEnd {
  readonly operation: OperationState;
  readonly failover?: FailoverOutcome;
  readonly changePoint?: ChangePointOutcome;
  readonly undo?: UndoOutcome;
  readonly reprotect?: ReprotectOutcome;
  readonly retry?: RetryOutcome;
  readonly test?: { readonly cleanupFailed: boolean };
}

/** How the replica that a group was leaving stands after a move that was not carried through. */
export interface LeftReplica {
  /** Its machines, or its disks, were stopped and could not all be brought back: whoever watches goes on trying. */
  readonly stopped: boolean;
}

export interface ChangePointOutcome extends LeftReplica {
  /** The machines run on the other point. */
  readonly changed: boolean;
  readonly branch?: string;
  readonly partial: boolean;
  readonly answering: boolean;
}

export interface UndoOutcome extends LeftReplica {
  /** The replica belongs to its source again. */
  readonly undone: boolean;
  /** It was asked for, and whether the store did it is not known. */
  readonly unknown: boolean;
  readonly epoch?: number;
}

export interface Turned {
  readonly operationId: string;
  readonly branch: string;
  readonly epoch: number;
  readonly target: { readonly host: string; readonly port: number };
  /** As they are at their new source site. */
  readonly machines: readonly ProtectedMachine[];
  /** The newest point of what was there before; 0: none. */
  readonly afterBarrier: number;
  readonly pointCutAtMs: number;
}

export interface ReprotectOutcome {
  readonly turned: boolean;
  /** Disks that are on taps now, and no more on the export that commits what is written to them. */
  readonly moved: number;
}

/** Which machines run now is in the operation. */
export interface RetryOutcome {
  readonly answering: boolean;
}

export interface FailoverOutcome {
  readonly booted: boolean;
  /** The group's epoch in the store as last heard; undefined when nothing was fenced. */
  readonly epoch?: number;
  /** Fenced, and not given back: the source cannot replicate. */
  readonly sourceFenced: boolean;
  readonly branch?: string;
  readonly partial: boolean;
  readonly answering: boolean;
  readonly sourceMayRun: boolean;
  readonly point?: RecoveryPoint;
}
