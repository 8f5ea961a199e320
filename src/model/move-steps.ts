/**
 * The steps of each move, by the names under which they are shown while they run. The workflows take their lists from here, and so does a
 * dry run: what it prints is what would be done.
 */

/** Leaving the machines that run at the target. */
export const LEAVING = ["stop machines", "last commit"] as const;

const PLANNED = [
  "pre-check",
  "guard",
  "shut down source",
  "final cut",
  "stop replication",
  "fence",
  "choose point",
] as const;

const BOOT = ["open disks", "create machines", "start machines", "verify"] as const;

export const MOVE_STEPS = {
  failover: ["pre-check", "guard", "stop source", "fence", "choose point", ...BOOT],
  "planned-failover": [...PLANNED, ...BOOT],
  failback: [...PLANNED, ...BOOT],
  reprotect: [
    "pre-check",
    "guard",
    "prepare target",
    "sweep old disks",
    "keep old state",
    "stop sweep",
    "serve disks",
    "move disks",
    "turn",
    "first point",
  ],
  "change-point": [
    "choose point",
    "guard",
    ...LEAVING,
    "open disks",
    "create machines",
    "start machines",
    "remove old machines",
    "verify",
  ],
  commit: ["commit"],
  undo: ["pre-check", ...LEAVING, "give back", "remove replica", "start source"],
  "retry-member": BOOT,
  "retry-at-point": ["choose point", "open disks", "take point", "create machines", "start machines", "verify"],
  "test-failover": ["guard", "choose point", ...BOOT, "lease", "clean up"],
  unprotect: ["stop replication", "release target"],
  /** Of a group whose machines run at the target. */
  "unprotect-replica": [...LEAVING, "stop replication", "release target", "remove replica"],
} as const;
