/**
 * What the API hears and answers, as schemas: bodies are checked against them, and /v1/openapi.json is made from them. Answers are described,
 * not checked: they come from our own types (contract.ts), and fields that are not described here pass.
 */
import { z } from "@hono/zod-openapi";
import { PLAN_MODES } from "#model/plan/recovery-plan.ts";
import { DECISIONS } from "../workflows/plan-messages.ts";
import { DRY_MOVES } from "./dry-run.ts";

const count = z.number().int().nonnegative();
const port = z.number().int().min(0).max(65_535);
const text = z.string().max(4096);
const operationId = z.string().min(1).max(100).exactOptional().describe("Makes a repeated call the same call");

const forwards = z.array(z.object({ guestPort: port, hostPort: port.describe("0 picks a free one") })).max(64);
const machineConfig = z.object({
  cpus: z.number().int().min(1).max(256),
  memoryMiB: z.number().int().min(16),
  firmware: z.enum(["bios", "uefi"]),
});
/** `partial` would make the fields `undefined`-able, which the contract does not allow. */
const machineConfigPart = z.object({
  cpus: machineConfig.shape.cpus.exactOptional(),
  memoryMiB: machineConfig.shape.memoryMiB.exactOptional(),
  firmware: machineConfig.shape.firmware.exactOptional(),
});

export const bodies = {
  operation: z.object({ operationId }).describe("Nothing but an id").openapi("Operation"),
  protect: z
    .object({
      operationId,
      name: text,
      machine: text.exactOptional(),
      disks: z.array(text).max(256).describe("Sources, such as tap:/srv/web.img; the one it boots from first"),
      site: text.exactOptional(),
      policy: z
        .object({
          intervalMs: count.exactOptional(),
          rpoThresholdMs: count.exactOptional(),
          compressAt: z.enum(["agent", "process-server"]).exactOptional(),
          retention: z
            .object({
              journalWindowMs: count,
              hourly: count,
              daily: count,
              weekly: count,
              monthly: count,
              yearly: count,
            })
            .exactOptional()
            .describe("How long points are kept; left out: nothing ever expires"),
        })
        .exactOptional(),
      config: machineConfigPart.exactOptional(),
      forwards: forwards.exactOptional(),
    })
    .openapi("Protect"),
  bookmark: z.object({ operationId, name: text }).openapi("Bookmark"),
  failover: z
    .object({
      operationId,
      mode: z.enum(["unplanned", "planned"]),
      point: text.exactOptional().describe("latest, latest-app, latest-verified, @name, an RFC 3339 time, a point id"),
      sourceLost: z.boolean().exactOptional(),
      note: text.exactOptional(),
      afterwards: z
        .object({ move: z.enum(["commit", "undo"]), afterMs: z.number().int().min(1_000) })
        .exactOptional()
        .describe("What the group does by itself when nobody has decided by then"),
    })
    .openapi("Failover"),
  move: z.object({ operationId, note: text.exactOptional() }).openapi("Move"),
  unprotect: z
    .object({
      operationId,
      note: text.exactOptional(),
      stopReplica: z
        .boolean()
        .exactOptional()
        .describe("A committed group's machines are shut down and removed; what they wrote stays in the store"),
    })
    .openapi("Unprotect"),
  dryRun: z
    .object({
      move: z.enum(DRY_MOVES),
      point: text.exactOptional(),
      sourceLost: z.boolean().exactOptional(),
      stopReplica: z.boolean().exactOptional(),
    })
    .openapi("DryRunRequest"),
  reprotect: z
    .object({
      operationId,
      agent: text.exactOptional().describe("Whose agent at the machines' site is to have their disks"),
      withoutOldDisks: z.boolean().exactOptional().describe("The old disks at the other site are gone"),
      note: text.exactOptional(),
    })
    .openapi("Reprotect"),
  failback: z
    .object({
      operationId,
      point: text.exactOptional().describe("Left out: the final cut, and nothing is lost"),
      note: text.exactOptional(),
    })
    .openapi("Failback"),
  changePoint: z
    .object({
      operationId,
      point: text.describe("latest and times look along what the source wrote; @name and ids may be on any branch"),
      note: text.exactOptional(),
    })
    .openapi("ChangePoint"),
  retry: z
    .object({
      operationId,
      machine: text.exactOptional(),
      point: text.exactOptional().describe("they go on from it; the others stay where they are"),
    })
    .openapi("Retry"),
  testFailover: z
    .object({ operationId, point: text.exactOptional(), leaseMs: z.number().int().min(1_000).exactOptional() })
    .openapi("TestFailover"),
  export: z
    .object({ operationId, point: text.exactOptional(), writable: z.boolean().exactOptional() })
    .openapi("Export"),
  token: z.object({ site: text, role: text, name: text }).openapi("TokenRequest"),
  enrol: z.object({ token: text, csr: z.string().max(16_384) }).openapi("EnrolmentRequest"),
  machine: z
    .object({
      operationId: z.string().min(1).max(100),
      name: text,
      config: machineConfig,
      disks: z.array(z.object({ diskId: text, url: text, bootIndex: count.exactOptional() })).max(64),
      network: z.object({ mode: z.enum(["user", "isolated"]), mac: text.exactOptional(), forwards }),
      start: z.boolean(),
    })
    .openapi("NewMachine"),
  shutdown: z.object({ timeoutMs: z.number().int().min(0).max(3_600_000) }).openapi("Shutdown"),
  plan: z
    .object({ source: z.string().max(1 << 20), note: text.exactOptional(), dryRun: z.boolean().exactOptional() })
    .openapi("ApplyPlan"),
  runPlan: z
    .object({
      operationId,
      mode: z.enum(PLAN_MODES),
      sourceLost: z.boolean().exactOptional(),
      version: z.number().int().min(1).exactOptional(),
      note: text.exactOptional(),
      force: z.boolean().exactOptional().describe("Although something blocks it"),
    })
    .openapi("RunPlan"),
  drill: z.object({ operationId, note: text.exactOptional() }).openapi("RunDrill"),
  drillSchedule: z
    .object({
      cron: text.describe("Five fields"),
      timeZone: text.exactOptional(),
      jitterMs: count.exactOptional(),
      catchUpMs: z.number().int().min(10_000).exactOptional(),
      pauseOnFailure: z.boolean().exactOptional(),
      now: z.boolean().exactOptional().describe("It begins a drill at once, too; unless one still runs"),
    })
    .openapi("ScheduleDrill"),
  decide: z
    .object({
      operationId,
      decision: z.enum(DECISIONS),
      step: text.exactOptional().describe("May be left out when only one step asks for that"),
      note: text.exactOptional(),
    })
    .openapi("Decide"),
  nothing: z.object({}),
};

const healthReason = z.looseObject({
  code: z.string(),
  level: z.enum(["unknown", "warning", "critical"]),
  cause: z.string(),
  remedy: z.string(),
});
const point = z
  .looseObject({
    id: z.string(),
    barrier: count,
    cutAtMs: count,
    kind: z.enum(["recovery", "bookmark"]),
    name: z.string().optional(),
    consistency: z.enum(["crash", "app"]),
    grade: z.enum(["committed", "verified"]),
    reasonKept: z.string(),
  })
  .openapi("RecoveryPoint");
const step = z.looseObject({
  name: z.string(),
  state: z.enum(["waiting", "running", "done", "failed", "skipped", "undone"]),
  detail: z.string().optional(),
});
const operation = z
  .looseObject({
    operationId: z.string(),
    kind: z.string(),
    groupId: z.string(),
    workflowId: z.string(),
    state: z.enum(["running", "done", "failed", "cancelled"]),
    startedAtMs: count,
    endedAtMs: count.optional(),
    waitsFor: z.string().optional(),
    steps: z.array(step),
    setAside: z.looseObject({ branch: z.string(), bytes: count }).optional(),
  })
  .openapi("OperationState");
const group = z
  .looseObject({
    name: z.string(),
    phase: z.enum([
      "unprotected",
      "seeding",
      "protected",
      "failing-over",
      "failed-over",
      "changing-point",
      "undoing",
      "committed",
      "reseeding",
    ]),
    conditions: z.array(z.string()),
    health: z.array(healthReason),
    activeSite: z.string(),
    homeSite: z.string(),
    reversed: z.boolean(),
    epoch: count,
    branch: z.string(),
    rpoMs: count.nullable(),
    lagMs: count.nullable(),
    backlogBytes: count,
    etaMs: count.nullable(),
    allowedOperations: z.array(z.string()),
    disks: z.array(
      z.looseObject({ id: z.string(), sizeBytes: count, source: z.string(), tapUrl: z.string().optional() }),
    ),
    newestPoint: point.optional(),
    due: z.looseObject({ move: z.enum(["commit", "undo"]), at: z.string() }).optional(),
    operations: z.array(operation),
  })
  .openapi("Group");
const role = z.looseObject({ site: z.string(), role: z.string(), name: z.string(), connected: z.boolean() });
const machine = z
  .looseObject({ id: z.string(), name: z.string(), power: z.enum(["off", "running", "paused"]) })
  .openapi("Machine");
const started = z
  .looseObject({ operationId: z.string(), workflowId: z.string(), epoch: count })
  .openapi("OperationStarted");

const setAside = z.looseObject({
  branch: z.string(),
  ranMs: count.optional(),
  bytes: count.describe("As last seen; 0 when nothing was"),
});

const plan = z
  .looseObject({
    name: z.string(),
    version: count,
    appliedAt: z.string(),
    by: z.string(),
    source: z.string(),
    boot: z.array(z.looseObject({ name: z.string(), groups: z.array(z.string()) })),
    versions: z.array(count),
    changes: z.array(z.looseObject({ at: z.string() })),
  })
  .openapi("RecoveryPlan");

export const answers = {
  plan,
  drillSchedule: z.looseObject({ plan: z.string(), cron: z.string(), paused: z.boolean() }),
  drillSchedules: z.array(z.looseObject({ plan: z.string(), cron: z.string(), paused: z.boolean() })),
  runs: z.array(z.looseObject({ number: count, writtenAt: z.string(), record: z.looseObject({}) })),
  resolvedPlan: z
    .looseObject({
      plan: z.string(),
      version: count,
      mode: z.enum(PLAN_MODES),
      steps: z.array(z.looseObject({ id: z.string(), after: z.array(z.string()), expectedMs: count.optional() })),
      leftOut: z.array(z.looseObject({ step: z.string(), why: z.string() })),
      predicted: z.looseObject({ rtoMs: count.optional(), rpoMs: count.nullable() }),
      blockers: z.array(z.looseObject({ step: z.string(), message: z.string() })),
    })
    .openapi("ResolvedPlan"),
  appliedPlan: plan.extend({ stored: z.boolean() }),
  plans: z.array(
    z.looseObject({ name: z.string(), version: count, groups: z.array(z.string()), problem: z.string().optional() }),
  ),
  dryRun: z
    .looseObject({
      group: z.string(),
      move: z.enum(DRY_MOVES),
      phase: z.string(),
      refusal: z.looseObject({ message: z.string(), hint: z.string() }).optional(),
      steps: z.array(z.string()),
      point: z.looseObject({ id: z.string(), cutAt: z.string(), ageMs: count, branch: z.string() }).optional(),
      lossMs: count.nullable().optional(),
      setsAside: setAside.optional(),
      warnings: z.array(z.string()),
    })
    .openapi("DryRun"),
  status: z
    .looseObject({
      version: z.string(),
      roles: z.array(role),
      temporal: z.looseObject({ reachable: z.boolean(), uiUrl: z.string().optional() }),
      redis: z.looseObject({ reachable: z.boolean() }),
      control: z.looseObject({ id: z.string(), epoch: count }).optional(),
      groups: z.array(group),
      problems: z.array(z.looseObject({ code: z.string(), message: z.string(), hint: z.string().optional() })),
    })
    .openapi("Status"),
  group,
  groups: z.array(group),
  protected: started.extend({ group }),
  point,
  points: z.array(point),
  operation,
  operations: z.array(operation),
  started,
  leaving: started.extend({ setsAside: setAside }).openapi("LeaveStarted"),
  export: z
    .looseObject({
      operationId: z.string(),
      pointId: z.string(),
      disks: z.array(z.looseObject({ diskId: z.string(), url: z.string() })),
    })
    .openapi("ExportStatus"),
  candidates: z.array(
    z.looseObject({
      group: z.string(),
      points: z.array(z.looseObject({})),
      blockers: z.array(z.string()),
      command: z.string(),
      commands: z.array(z.string()),
    }),
  ),
  agents: z.array(z.looseObject({ machine: z.string(), site: z.string(), connected: z.boolean() })),
  token: z.object({ token: z.string(), expiresAt: z.string(), caFingerprint: z.string() }),
  enrolment: z.object({ cert: z.string(), ca: z.string(), orderKey: z.string() }),
  machine,
  machines: z.array(machine),
  nothing: z.null(),
};

export const fault = z
  .object({
    code: z.string().describe("Stable; docs/errors.md has a paragraph for each"),
    message: z.string(),
    details: z.record(z.string(), z.union([z.string(), z.number()])),
    hint: z.string().optional().describe("What can be done now"),
  })
  .openapi("Fault");

export const queries = {
  none: z.object({}),
  wait: z.object({
    wait: z.coerce.number().int().min(0).max(60_000).exactOptional().describe("Milliseconds to wait for its end"),
  }),
  version: z.object({ version: z.coerce.number().int().min(1).exactOptional() }),
  cleanup: z.object({ force: z.enum(["true", "false"]).exactOptional(), operationId }),
};
