/** `leeward group …`, `leeward point …` and `leeward status`. */
import type { Command } from "commander";
import { Fault, isFault } from "#model/fault.ts";
import { PERIODS } from "#model/retention/calendar.ts";
import { checkRetention, DEFAULT_RETENTION, type RetentionPolicy } from "#model/retention/policy.ts";
import type { RecoveryPoint } from "../api/contract.ts";
import type { GroupView, StatusView } from "../api/contract.ts";
import { globalOptions, outputOf, parseDuration, type CliDependencies, type WaitOptions } from "./context.ts";
import { describeStore } from "./control-commands.ts";
import { beforeMove } from "./dry-run.ts";
import { duration, size, table } from "./output.ts";
import { startAndWatch } from "./watch-operation.ts";

interface ProtectOptions extends WaitOptions {
  readonly disk: readonly string[];
  readonly machine?: string;
  readonly site?: string;
  readonly interval?: string;
  readonly rpo?: string;
  readonly keep?: string;
  readonly forward: readonly string[];
  readonly cpus?: string;
  readonly memory?: string;
}

interface UnprotectOptions extends WaitOptions {
  readonly stopReplica?: boolean;
  readonly dryRun?: boolean;
  readonly yes?: boolean;
}

export function addGroupCommands(program: Command, { client, control, stop }: CliDependencies): void {
  program
    .command("status")
    .description("sites, roles, groups: phase, health, RPO, lag, backlog, ETA")
    .option("--store <file>", "ask a replica store, without control: its groups, and how old their newest points are")
    .action(async ({ store }: { readonly store?: string }, command: Command) => {
      if (store !== undefined) return outputOf(command).answer(await control.survey({ store }), describeStore);
      const output = outputOf(command);
      const { state } = globalOptions(command);
      try {
        output.answer(await client(state).status(), describeStatus);
      } catch (error) {
        // Without control, what its store says is better than nothing, for a person. A script gets the fault, and so does the exit code.
        const away = isFault(error, "PEER_UNREACHABLE") || isFault(error, "NOT_FOUND");
        const found = away && !output.json ? await control.surveyOwn(state) : undefined;
        if (found !== undefined) output.answer(found, (value) => `Control does not answer.\n${describeStore(value)}\n`);
        throw error;
      }
    });

  const group = program.command("group").description("protection groups");
  group
    .command("protect")
    .argument("<name>", "name of the group")
    .description("protect a machine's disks: initial sync, then deltas")
    .option("--disk <source>", "tap:IMAGE; repeat for each disk, the one it boots from first", collect, [])
    .option("--machine <name>", "whose agent has the disks (this machine, if left out)")
    .option("--site <name>", "the site that the machine runs at")
    .option("--interval <duration>", "time between cuts", "5s")
    .option("--rpo <duration>", "age of the newest point above which the group is unhealthy", "60s")
    .option(
      "--forward <guest:host>",
      "port of the machine to publish on 127.0.0.1 of the recovery site; host 0 picks one",
      collect,
      [],
    )
    .option(
      "--keep <policy>",
      'how long points are kept: "default", or window=24h,hourly=48,daily=14,weekly=8,monthly=12,yearly=0; without, nothing expires',
    )
    .option("--cpus <count>", "processors of the replica machine", "1")
    .option("--memory <MiB>", "memory of the replica machine", "256")
    .option("--no-wait", "do not wait for the first recovery point")
    .option("--timeout <duration>", "stop waiting after this time")
    .action(async (name: string, options: ProtectOptions, command: Command) => {
      if (options.disk.length === 0) {
        throw new Fault("USAGE", "Expected at least one --disk", {
          hint: `For example: leeward group protect ${name} --disk tap:/var/lib/images/${name}.img`,
        });
      }
      const api = client(globalOptions(command).state);
      const start = () =>
        api.protect({
          name,
          disks: options.disk,
          ...(options.machine === undefined ? {} : { machine: options.machine }),
          ...(options.site === undefined ? {} : { site: options.site }),
          policy: {
            intervalMs: parseDuration(options.interval ?? "5s"),
            rpoThresholdMs: parseDuration(options.rpo ?? "60s"),
            ...(options.keep === undefined ? {} : { retention: parseRetention(options.keep) }),
          },
          config: {
            cpus: count(options.cpus ?? "1", "--cpus"),
            memoryMiB: count(options.memory ?? "256", "--memory"),
            firmware: "bios",
          },
          forwards: options.forward.map(parseForward),
        });
      await startAndWatch(start, api, outputOf(command), { ...options, stop });
    });
  group
    .command("list")
    .description("all groups")
    .action(async (_: unknown, command: Command) => {
      outputOf(command).answer(await client(globalOptions(command).state).groups(), describeGroups);
    });
  group
    .command("show")
    .argument("<name>")
    .description("one group: phase, health with coded reasons, RPO, disks, what is allowed now")
    .action(async (name: string, _: unknown, command: Command) => {
      outputOf(command).answer(await client(globalOptions(command).state).group(name), describeGroup);
    });
  for (const verb of ["pause", "resume"] as const) {
    group
      .command(verb)
      .argument("<name>")
      .description(verb === "pause" ? "stop shipping; changes are still tracked" : "go on shipping")
      .action(async (name: string, _: unknown, command: Command) => {
        outputOf(command).answer(await client(globalOptions(command).state)[verb](name), describeGroup);
      });
  }
  group
    .command("unprotect")
    .argument("<name>")
    .description("end protection; the store keeps what it has")
    .option("--stop-replica", "after a commit: shut down and remove the machines that run on the group's disks")
    .option("--dry-run", "say what would be done, and do nothing")
    .option("--yes", "do not ask")
    .option("--no-wait", "do not wait")
    .option("--timeout <duration>", "stop waiting after this time")
    .action(async (name: string, options: UnprotectOptions, command: Command) => {
      const api = client(globalOptions(command).state);
      const output = outputOf(command);
      const stopReplica = options.stopReplica ?? false;
      const what = `Ending the protection of "${name}" stops its replication; the store keeps what it has`;
      const body = { move: "unprotect", stopReplica } as const;
      if (!(await beforeMove({ api, output, group: name, body, what }, options))) return;
      await startAndWatch(() => api.unprotect(name, { stopReplica }), api, output, { ...options, stop });
    });

  const point = program.command("point").description("recovery and retention points");
  point
    .command("list")
    .argument("<group>")
    .description("points, newest first")
    .action(async (name: string, _: unknown, command: Command) => {
      const points = await client(globalOptions(command).state).points(name);
      outputOf(command).answer(points.map(pointView), describePoints);
    });
  point
    .command("bookmark")
    .argument("<group>")
    .argument("<name>", "select it later as @name")
    .description("cut now and keep that point under a name")
    .action(async (name: string, bookmark: string, _: unknown, command: Command) => {
      const kept = await client(globalOptions(command).state).bookmark(name, bookmark);
      outputOf(command).answer(pointView(kept), (value) => `@${bookmark} → ${value.id}, cut at ${value.cutAt}`);
    });
}

export function collect(value: string, before: readonly string[]): readonly string[] {
  return [...before, value];
}

/** Throws USAGE. What is left out is as in the default policy. */
export function parseRetention(text: string): RetentionPolicy {
  const policy: Record<string, number> = { ...DEFAULT_RETENTION };
  for (const part of text === "default" ? [] : text.split(",")) {
    const [name = "", value = ""] = part.split("=");
    if (name === "window") policy["journalWindowMs"] = parseDuration(value);
    else if ((PERIODS as readonly string[]).includes(name) && /^[0-9]{1,6}$/.test(value)) policy[name] = Number(value);
    else
      throw new Fault("USAGE", `Expected --keep "default" or parts such as "window=24h" and "daily=14", got "${part}"`);
  }
  const retention = { ...DEFAULT_RETENTION, ...policy };
  checkRetention(retention);
  return retention;
}

function count(text: string, option: string): number {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 1)
    throw new Fault("USAGE", `Expected a whole number for ${option}, got "${text}"`);
  return value;
}

function parseForward(text: string): { guestPort: number; hostPort: number } {
  const match = /^(\d+)(?::(\d+))?$/.exec(text);
  if (match === null) throw new Fault("USAGE", `Expected "GUEST:HOST" ports, got "${text}"`);
  return { guestPort: Number(match[1]), hostPort: Number(match[2] ?? 0) };
}

interface PointView extends RecoveryPoint {
  readonly cutAt: string;
  /** The line of history that it is on; after an undo or a change of point there are several. */
  readonly branch: string;
}

/** `point list --json`: the contract's fields, with the cut as RFC 3339. */
function pointView(point: RecoveryPoint): PointView {
  const branches = [...new Set(point.members.map((member) => member.branch))];
  return { ...point, cutAt: new Date(point.cutAtMs).toISOString(), branch: branches.join(",") };
}

function describePoints(points: readonly PointView[]): string {
  if (points.length === 0) return "No points yet";
  return table([
    ["ID", "CUT AT", "BRANCH", "KIND", "CONSISTENCY", "GRADE", "KEPT BECAUSE"],
    ...points.map((point) => [
      point.id,
      point.cutAt,
      point.branch,
      point.name === undefined ? point.kind : `@${point.name}`,
      point.consistency,
      point.grade,
      point.reasonKept,
    ]),
  ]);
}

function describeGroups(groups: readonly GroupView[]): string {
  if (groups.length === 0) return "No groups; protect one with `leeward group protect NAME --disk tap:IMAGE`";
  return table([
    ["GROUP", "PHASE", "HEALTH", "ACTIVE", "RPO", "BACKLOG", "NEWEST POINT"],
    ...groups.map((one) => [
      one.name,
      one.phase,
      one.health.length === 0 ? "healthy" : one.health.map((reason) => `${reason.level}:${reason.code}`).join(","),
      `${one.activeSite}${one.reversed ? " (reversed)" : ""}`,
      duration(one.rpoMs),
      size(one.backlogBytes),
      one.newestPoint?.id ?? "–",
    ]),
  ]);
}

export function describeGroup(view: GroupView): string {
  const lines = [
    `${view.name}: ${view.phase}${view.conditions.length === 0 ? "" : ` (${view.conditions.join(", ")})`}, ${view.sourceSite} → ${view.targetSite}${view.reversed ? " (reversed)" : ""}, active at ${view.activeSite}, epoch ${view.epoch}, branch ${view.branch}`,
    ...(view.runsOn === undefined
      ? [
          `  RPO ${duration(view.rpoMs)}, lag ${duration(view.lagMs)}, backlog ${size(view.backlogBytes)}, shipped ${counted(view.shippedBytes)}, written ${counted(view.writtenBytes)} since the roles started`,
        ]
      : [
          `  runs on point ${view.runsOn.pointId}, cut at ${view.runsOn.cutAt}; what it writes is in the store but for the last ${duration(view.rpoMs)}`,
        ]),
    ...(view.newestPoint === undefined
      ? []
      : [`  newest point ${view.newestPoint.id}, cut at ${new Date(view.newestPoint.cutAtMs).toISOString()}`]),
  ];
  if (view.syncRemainingBytes > 0) {
    lines.push(
      `  ${view.comparedBytes > 0 ? "resync" : "initial sync"}: ${size(view.syncTotalBytes - view.syncRemainingBytes)} of ${size(view.syncTotalBytes)}, ${size(view.syncBytesPerSecond)}/s, ETA ${duration(view.etaMs)}`,
    );
  }
  if (view.comparedBytes > 0) {
    lines.push(
      `  compared ${size(view.comparedBytes)} with the replica, of which ${size(view.comparedBytes - view.sameBytes)} differed and were shipped`,
    );
  }
  for (const reason of view.health)
    lines.push(`  ${reason.level} ${reason.code}: ${reason.cause}`, `    → ${reason.remedy}`);
  for (const disk of view.disks)
    lines.push(
      `  disk ${disk.id}: ${size(disk.sizeBytes)}, ${disk.source}${disk.tapUrl === undefined ? "" : `, attach ${disk.tapUrl}`}`,
    );
  if (view.due !== undefined) lines.push(`  by itself: ${view.due.move} at ${view.due.at}, if nobody decides before`);
  for (const operation of view.operations.filter((one) => one.state === "running"))
    lines.push(
      `  running: ${operation.kind} ${operation.operationId}${operation.waitsFor === undefined ? "" : `, waits for ${operation.waitsFor}`}`,
    );
  lines.push(`  allowed now: ${view.allowedOperations.join(", ")}`);
  return lines.join("\n");
}

/** Zero is what is told before anything was counted. */
function counted(bytes: number): string {
  return bytes === 0 ? "–" : size(bytes);
}

function describeStatus(status: StatusView): string {
  const roles = table([
    ["SITE", "ROLE", "NAME", "STATE"],
    ...status.roles.map((one) => [one.site, one.role, one.name, one.connected ? "connected" : "not connected"]),
  ]);
  const temporal = `Temporal ${status.temporal.reachable ? "reachable" : "NOT reachable"}${status.temporal.uiUrl === undefined ? "" : `, Web UI ${status.temporal.uiUrl}`}`;
  return [
    roles,
    "",
    temporal,
    ...status.problems.map(
      ({ code, message, hint }) => `${code}: ${message}${hint === undefined ? "" : `\n  ${hint}`}`,
    ),
    "",
    describeGroups(status.groups),
  ].join("\n");
}
