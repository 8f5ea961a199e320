/** The moves people make in an emergency. */
import { Option, type Command } from "commander";
import { Fault } from "#model/fault.ts";
import type { ApiClient, FailoverCandidate, LeaveStarted } from "../api/contract.ts";
import { globalOptions, outputOf, parseDuration, type CliDependencies, type WaitOptions } from "./context.ts";
import { beforeMove, setAsideText } from "./dry-run.ts";
import { describeGroup } from "./group-commands.ts";
import { duration, type Output } from "./output.ts";
import { describeOperation, startAndWatch, watchOperation } from "./watch-operation.ts";

interface FailoverOptions extends WaitOptions {
  readonly planned?: boolean;
  readonly sourceLost?: boolean;
  readonly point: string;
  readonly yes?: boolean;
  readonly dryRun?: boolean;
  readonly note?: string;
  readonly then?: "commit" | "undo";
  readonly after: string;
}

interface MoveOptions extends WaitOptions {
  readonly yes?: boolean;
  readonly dryRun?: boolean;
  readonly note?: string;
}

export function addMoveCommands(program: Command, { client, stop }: CliDependencies): void {
  const reach = (command: Command): { readonly api: ApiClient; readonly output: Output } => ({
    api: client(globalOptions(command).state),
    output: outputOf(command),
  });

  program
    .command("failover")
    .argument("[group]", "left out: what could be failed over, and what to type")
    .description("bring a group up at the other site")
    .option("--planned", "shut the source down first: nothing is lost")
    .option("--source-lost", "the source site is gone; you have made sure that it does not run")
    .option("--point <selector>", "latest, @name, an RFC 3339 time, a point id", "latest")
    .addOption(new Option("--then <move>", "by itself, when nobody has decided by then").choices(["commit", "undo"]))
    .option("--after <duration>", "when: this long after the machines were started", "1h")
    .option("--note <text>", "kept with the operation")
    .option("--dry-run", "say what would be done, and do nothing")
    .option("--yes", "do not ask")
    .option("--no-wait", "print the operation id and return")
    .option("--timeout <duration>", "stop waiting after this time")
    .action(async (name: string | undefined, options: FailoverOptions, command: Command) => {
      const api = client(globalOptions(command).state);
      const output = outputOf(command);
      if (name === undefined) {
        output.answer(await api.failoverCandidates(), describeCandidates);
        return;
      }
      if (options.planned === true && options.sourceLost === true)
        throw new Fault("USAGE", "Choose one of --planned and --source-lost");
      const planned = options.planned === true;
      const what = `A failover of "${name}" ${planned ? "shuts it down here and moves" : "moves"} it to the other site`;
      const body = planned
        ? ({ move: "planned-failover" } as const)
        : ({ move: "failover", point: options.point, sourceLost: options.sourceLost ?? false } as const);
      if (!(await beforeMove({ api, output, group: name, body, what }, options))) return;
      const start = () =>
        api.failover(name, {
          mode: planned ? "planned" : "unplanned",
          point: options.point,
          sourceLost: options.sourceLost ?? false,
          ...(options.note === undefined ? {} : { note: options.note }),
          ...(options.then === undefined
            ? {}
            : { afterwards: { move: options.then, afterMs: parseDuration(options.after) } }),
        });
      await startAndWatch(start, api, output, { ...options, stop });
    });

  program
    .command("change-point")
    .argument("<group>")
    .description("after a failover: go on from another point; what was written since is kept as a branch")
    .requiredOption("--point <selector>", "latest (of the source), @name, an RFC 3339 time, a point id")
    .option("--note <text>", "kept with the operation")
    .option("--dry-run", "say what would be done, and do nothing")
    .option("--yes", "do not ask")
    .option("--no-wait", "print the operation id and return")
    .option("--timeout <duration>", "stop waiting after this time")
    .action(async (name: string, options: MoveOptions & { readonly point: string }, command: Command) => {
      const what = `A change of point stops "${name}" and starts it anew from ${options.point}; what it wrote since the failover is set aside as a branch`;
      const { api, output } = reach(command);
      const body = { move: "change-point", point: options.point } as const;
      if (!(await beforeMove({ api, output, group: name, body, what }, options))) return;
      const start = () => api.changePoint(name, { point: options.point, ...noted(options) });
      await startAndWatch(telling(start, output), api, output, { ...options, stop });
    });
  program
    .command("undo")
    .argument("<group>")
    .description("after a failover: back to the source; what was written at the other site is kept as a branch")
    .option("--note <text>", "kept with the operation")
    .option("--dry-run", "say what would be done, and do nothing")
    .option("--yes", "do not ask")
    .option("--no-wait", "print the operation id and return")
    .option("--timeout <duration>", "stop waiting after this time")
    .action(async (name: string, options: MoveOptions, command: Command) => {
      const what = `An undo stops "${name}" at the recovery site, and its source goes on without what it wrote there, which is set aside as a branch`;
      const { api, output } = reach(command);
      if (!(await beforeMove({ api, output, group: name, body: { move: "undo" }, what }, options))) return;
      await startAndWatch(
        telling(() => api.undo(name, noted(options)), output),
        api,
        output,
        { ...options, stop },
      );
    });
  program
    .command("commit")
    .argument("<group>")
    .description("after a failover: it stays; ends the right to undo and to change the point, deletes nothing")
    .option("--note <text>", "kept with the operation")
    .option("--dry-run", "say what would be done, and do nothing")
    .option("--yes", "do not ask")
    .action(async (name: string, options: MoveOptions, command: Command) => {
      const what = `A commit of "${name}" ends the right to undo its failover and to change its point`;
      const { api, output } = reach(command);
      if (!(await beforeMove({ api, output, group: name, body: { move: "commit" }, what }, options))) return;
      output.answer(await api.commit(name, noted(options)), describeGroup);
    });

  program
    .command("reprotect")
    .argument("<group>")
    .description("after a committed failover: replicate what runs here to the site that it came from")
    .option(
      "--agent <name>",
      "whose agent at the machines' site is to have their disks; left out: the one that is there",
    )
    .option("--without-old-disks", "the old disks at the other site are gone: everything crosses the WAN")
    .option("--note <text>", "kept with the operation")
    .option("--dry-run", "say what would be done, and do nothing")
    .option("--no-wait", "print the operation id and return")
    .option("--timeout <duration>", "stop waiting after this time")
    .action(
      async (
        name: string,
        options: MoveOptions & { readonly agent?: string; readonly withoutOldDisks?: boolean },
        command: Command,
      ) => {
        const { api, output } = reach(command);
        // It stops nothing and takes nothing away, so nobody is asked.
        const before = { api, output, group: name, body: { move: "reprotect" } as const, what: "" };
        if (!(await beforeMove(before, { ...options, yes: true }))) return;
        const start = () =>
          api.reprotect(name, {
            ...noted(options),
            ...(options.agent === undefined ? {} : { agent: options.agent }),
            ...(options.withoutOldDisks === undefined ? {} : { withoutOldDisks: options.withoutOldDisks }),
          });
        await startAndWatch(start, api, output, { ...options, stop });
      },
    );
  program
    .command("failback")
    .argument("<group>")
    .description("bring a reversed group home: its machines are shut down here, and nothing is lost")
    .option("--point <selector>", "an older point instead: @name, an RFC 3339 time, a point id", "latest")
    .option("--note <text>", "kept with the operation")
    .option("--dry-run", "say what would be done, and do nothing")
    .option("--yes", "do not ask")
    .option("--no-wait", "print the operation id and return")
    .option("--timeout <duration>", "stop waiting after this time")
    .action(async (name: string, options: MoveOptions & { readonly point: string }, command: Command) => {
      const { point } = options;
      const latest = point === "latest";
      const what = `A failback shuts "${name}" down here and starts it at the site that it is from${latest ? "" : `, as it was at ${point}`}`;
      const { api, output } = reach(command);
      const body = latest ? ({ move: "failback" } as const) : ({ move: "failover", point } as const);
      if (!(await beforeMove({ api, output, group: name, body, what }, options))) return;
      const start = () => api.failback(name, { point: options.point, ...noted(options) });
      await startAndWatch(start, api, output, { ...options, stop });
    });

  const test = program
    .command("test-failover")
    .description("try a failover in an isolated network; replication is not touched");
  test
    .command("start")
    .argument("<group>")
    .option("--point <selector>", "which point", "latest")
    .option("--lease <duration>", "cleaned up by itself after this time", "8h")
    .option("--dry-run", "say what would be done, and do nothing")
    .description("boot the group from a point, isolated, on a throw-away overlay")
    .option("--no-wait", "print the operation id and return")
    .option("--timeout <duration>", "stop waiting after this time")
    .action(
      async (
        name: string,
        options: WaitOptions & { readonly point: string; readonly lease: string; readonly dryRun?: boolean },
        command: Command,
      ) => {
        const api = client(globalOptions(command).state);
        const output = outputOf(command);
        const body = { move: "test-failover", point: options.point } as const;
        const what = `A test failover of "${name}" boots it in an isolated network`;
        // It touches nothing: nobody is asked.
        const dryRun = options.dryRun ?? false;
        if (!(await beforeMove({ api, output, group: name, body, what }, { dryRun, yes: true }))) return;
        const { operationId } = await api.startTestFailover(name, {
          point: options.point,
          leaseMs: parseDuration(options.lease),
        });
        if (!options.wait) return output.answer({ operationId }, (value) => value.operationId);
        const deadline =
          performance.now() +
          (options.timeout === undefined ? Number.POSITIVE_INFINITY : parseDuration(options.timeout));
        for (;;) {
          const operation = await api.operation(operationId, { waitMs: 1_000 });
          if (operation.machines !== undefined && operation.machines.length > 0)
            return output.answer(operation, describeOperation);
          if (operation.state !== "running")
            await watchOperation(api, operationId, { say: output.say, timeoutMs: 0, stop });
          if (performance.now() > deadline)
            throw new Fault("TIMED_OUT", `Test failover "${operationId}" is not up yet`, {
              hint: `Watch it with \`leeward operation watch ${operationId}\``,
            });
        }
      },
    );
  test
    .command("list")
    .argument("<group>")
    .description("test failovers of a group")
    .action(async (name: string, _: unknown, command: Command) => {
      outputOf(command).answer(
        await client(globalOptions(command).state).listTestFailovers(name),
        (list) => list.map(describeOperation).join("\n") || "None",
      );
    });
  test
    .command("cleanup")
    .argument("<group>")
    .argument("[operation]", "which one; left out: all of the group")
    .option("--force", "forget what cannot be cleaned up")
    .option("--no-wait", "print the operation id and return")
    .option("--timeout <duration>", "stop waiting after this time")
    .description("end a test failover and remove everything it made")
    .action(
      async (
        name: string,
        operation: string | undefined,
        options: WaitOptions & { readonly force?: boolean },
        command: Command,
      ) => {
        const api = client(globalOptions(command).state);
        const running = (await api.listTestFailovers(name)).filter(
          (one) => one.state === "running" && (operation === undefined || one.operationId === operation),
        );
        if (running.length === 0)
          throw new Fault(
            "NOT_FOUND",
            operation === undefined
              ? `No test failover of "${name}" is running`
              : `No running test failover "${operation}"`,
            { hint: `List them with \`leeward test-failover list ${name}\`` },
          );
        for (const one of running) {
          await startAndWatch(
            async () => {
              await api.cleanUpTestFailover(name, one.operationId, { force: options.force ?? false });
              return one;
            },
            api,
            outputOf(command),
            { ...options, stop },
          );
        }
      },
    );
}

function noted({ note }: MoveOptions): { readonly note?: string } {
  return note === undefined ? {} : { note };
}

/** "sets aside 37 min 2 s, 4.1 GiB, as branch x-…" goes to the person before the first step is heard of. */
function telling(start: () => Promise<LeaveStarted>, output: Output): () => Promise<LeaveStarted> {
  return async () => {
    const started = await start();
    output.say(`  sets aside ${setAsideText(started.setsAside)}`);
    return started;
  };
}

function describeCandidates(candidates: readonly FailoverCandidate[]): string {
  if (candidates.length === 0) return "No group is protected";
  return candidates
    .map((one) => {
      const points = one.points.map(
        (point) =>
          `  ${point.selector.padEnd(18)} ${point.cutAt}  ${duration(point.ageMs)} old  ${point.grade}  ${point.pointId}`,
      );
      const blockers = one.blockers.map((blocker) => `  blocked: ${blocker}`);
      const commands = one.commands.length === 0 ? [one.command] : one.commands;
      return [`${one.group} (${one.phase})`, ...points, ...blockers, ...commands.map((text) => `  ${text}`)].join("\n");
    })
    .join("\n\n");
}
