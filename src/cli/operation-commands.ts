/** What is running and what it waits for, and what a person may say to it. */
import type { Command } from "commander";
import { Fault } from "#model/fault.ts";
import { planOfRun } from "#model/plan/run-id.ts";
import type { ApiClient, DecideBody } from "../api/contract.ts";
import { globalOptions, outputOf, parseDuration, type CliDependencies, type WaitOptions } from "./context.ts";
import { duration, table, type Output } from "./output.ts";
import { describeOperation, startAndWatch, watchOperation } from "./watch-operation.ts";

interface RetryOptions extends WaitOptions {
  readonly point?: string;
}

export function addOperationCommands(program: Command, { client, stop }: CliDependencies): void {
  const reach = (command: Command): { readonly api: ApiClient; readonly output: Output } => ({
    api: client(globalOptions(command).state),
    output: outputOf(command),
  });

  const operation = program.command("operation").description("what is running, what it waits for");
  operation
    .command("list")
    .description("operations, newest first")
    .action(async (_: unknown, command: Command) => {
      outputOf(command).answer(await client(globalOptions(command).state).operations(), (list) =>
        table([
          ["OPERATION", "KIND", "GROUP", "STATE", "STARTED", "TOOK", "WAITS FOR"],
          ...list.map((one) => [
            one.operationId,
            one.kind,
            one.plan === undefined ? one.groupId : `plan ${one.plan.name}`,
            one.state,
            new Date(one.startedAtMs).toISOString(),
            one.endedAtMs === undefined ? "–" : duration(one.endedAtMs - one.startedAtMs),
            one.waitsFor ?? "",
          ]),
        ]),
      );
    });
  operation
    .command("show")
    .argument("<id>")
    .description("one operation with its steps")
    .action(async (id: string, _: unknown, command: Command) => {
      outputOf(command).answer(await client(globalOptions(command).state).operation(id), describeOperation);
    });
  operation
    .command("watch")
    .argument("<id>")
    .description("follow an operation to its end")
    .option("--timeout <duration>", "stop watching after this time")
    .action(async (id: string, options: { readonly timeout?: string }, command: Command) => {
      const output = outputOf(command);
      const timeoutMs = options.timeout === undefined ? Number.POSITIVE_INFINITY : parseDuration(options.timeout);
      output.answer(
        await watchOperation(client(globalOptions(command).state), id, { say: output.say, timeoutMs, stop }),
        describeOperation,
      );
    });
  operation
    .command("retry")
    .argument("<id>", "a failover, a change of point, or the run of a plan")
    .argument("[machine]", "which one; left out: all that did not start. Of a run: the step")
    .option("--point <point>", "from another point than the others: latest, @name, a time, an id; not of a run")
    .option("--note <text>", "of a run: kept with the decision")
    .description("start the machines that did not start; the others run on. Of a run: begin a failed step again")
    .option("--no-wait", "print the operation id and return")
    .option("--timeout <duration>", "stop waiting after this time")
    .action(async (id: string, machine: string | undefined, options: RetryOptions, command: Command) => {
      const { api, output } = reach(command);
      const { point } = options;
      if (planOfRun(id) !== undefined) {
        if (point !== undefined)
          throw new Fault("USAGE", `"${id}" is the run of a plan, expected no --point "${point}"`, {
            hint: "Name the failover whose machine is to go on from that point: leeward operation list",
          });
        return await decide(command, { id, step: machine, decision: "retry" });
      }
      const start = () =>
        api.retryOperation(id, {
          ...(machine === undefined ? {} : { machine }),
          ...(point === undefined ? {} : { point }),
        });
      await startAndWatch(start, api, output, { ...options, stop });
    });
  operation
    .command("skip")
    .argument("<id>", "a failover, a change of point, or the run of a plan")
    .argument("[step]", "of a run; left out: the only one that asks")
    .option("--note <text>", "of a run: kept with the decision")
    .description("go on without the machines that did not start. Of a run: without a failed step")
    .action(async (id: string, step: string | undefined, _: unknown, command: Command) => {
      const { api, output } = reach(command);
      if (planOfRun(id) !== undefined) return await decide(command, { id, step, decision: "skip" });
      output.answer(await api.skipOperation(id), describeOperation);
    });
  for (const decision of ["approve", "reject"] as const) {
    operation
      .command(decision)
      .argument("<id>", "the run of a plan")
      .argument("[step]", "left out: the only one that asks")
      .option("--note <text>", "kept with the decision")
      .description(
        decision === "approve"
          ? "say yes to an approval; let a step that is over its budget go on"
          : "say no to an approval, which ends the run; stop a step that is over its budget",
      )
      .action(
        async (id: string, step: string | undefined, _: unknown, command: Command) =>
          await decide(command, { id, step, decision }),
      );
  }
  async function decide(
    command: Command,
    {
      id,
      step,
      decision,
    }: { readonly id: string; readonly step: string | undefined; readonly decision: DecideBody["decision"] },
  ): Promise<void> {
    const { api, output } = reach(command);
    const { note } = command.opts<{ readonly note?: string }>();
    const body = { decision, ...(step === undefined ? {} : { step }), ...(note === undefined ? {} : { note }) };
    output.answer(await api.decide(id, body), describeOperation);
  }
  operation
    .command("cancel")
    .argument("<id>")
    .description("cancel; what it did is undone")
    .action(async (id: string, _: unknown, command: Command) => {
      outputOf(command).answer(await client(globalOptions(command).state).cancelOperation(id), describeOperation);
    });
}
