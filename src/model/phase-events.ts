/**
 * What moves a group from phase to phase: the arrows of the picture in group-phase.ts. Whether a person may ask for a move is decided there;
 * what happened, happened, and only its place in the picture is checked here.
 */
import type { GroupPhase } from "./group-phase.ts";

export type PhaseEvent =
  | "protect"
  | "protect-failed"
  | "seeded"
  | "failover"
  | "failover-undone"
  | "booted"
  | "unprotect"
  | "change-point"
  | "point-settled"
  | "undo"
  | "undone"
  | "undo-failed"
  | "commit"
  | "turned"
  | "reseeded";

/**
 * The phase after `event`. `before` is the phase that a failover began in (needed for "failover-undone" and "undone").
 * Throws RangeError for an event that cannot happen in this phase: a bug in the caller.
 */
export function nextPhase(phase: GroupPhase, event: PhaseEvent, before: GroupPhase = "protected"): GroupPhase {
  const step = `${phase} ${event}`;
  switch (step) {
    case "unprotected protect":
      return "seeding";
    case "seeding protect-failed":
    case "seeding unprotect":
    case "reseeding unprotect":
    case "protected unprotect":
    case "committed unprotect":
      return "unprotected";
    case "seeding seeded":
      return "protected";
    case "seeding failover":
    case "reseeding failover":
    case "protected failover":
      return "failing-over";
    case "failing-over failover-undone":
      return before;
    case "failing-over booted":
    case "changing-point point-settled":
    case "undoing undo-failed":
      return "failed-over";
    case "failed-over change-point":
      return "changing-point";
    case "failed-over undo":
      return "undoing";
    case "undoing undone":
      return before === "reseeding" ? "reseeding" : "protected";
    case "failed-over commit":
      return "committed";
    case "committed turned":
      return "reseeding";
    case "reseeding reseeded":
      return "protected";
    default:
      throw new RangeError(`Event "${event}" in phase "${phase}"`);
  }
}
