/** vCenter's long work: submitted once, then watched until it ended, with a bound. A task outlives the session that submitted it. */
import { Fault } from "#model/fault.ts";
import type { Clock } from "#ports/clock.ts";
import { readObject, waitForObject, type Properties } from "./properties.ts";
import type { Vim, VimSession } from "./session.ts";
import { VimError } from "./soap.ts";
import type { LocalizedMethodFault, Reference } from "./vim-types.ts";

export interface TaskOptions {
  readonly session: VimSession;
  readonly clock: Clock;
  readonly timeoutMs: number;
  /** Continues "vCenter did not …". */
  readonly doing: string;
}

/**
 * The task's result. Throws: VimError, the task's own fault or the refusal to begin it; TIMED_OUT, and then it still runs, so whoever
 * repeats the request must look first.
 */
export async function runTask(submit: (vim: Vim) => Promise<Reference>, options: TaskOptions): Promise<unknown> {
  const { session, clock, timeoutMs, doing } = options;
  const task = await session.run(submit);
  const deadline = clock.monotonic() + timeoutMs;
  const ended = await session.run((vim) =>
    waitForObject(vim, task, {
      paths: ["info.state", "info.error", "info.result"],
      until: hasEnded,
      timeoutMs: Math.max(0, deadline - clock.monotonic()),
      clock,
    }),
  );
  if (ended === undefined) {
    const question = await session.run((vim) => pendingQuestion(vim, task));
    throw new Fault("TIMED_OUT", `vCenter did not ${doing} within ${timeoutMs} ms, and is still at it${question}`, {
      details: { task: task.value },
      hint:
        question === ""
          ? "Look at the task in vCenter; repeat the request when it ended"
          : "Answer the machine's question in vCenter, then repeat the request",
    });
  }
  if (ended["info.state"] === "error") {
    const { fault, localizedMessage } = (ended["info.error"] ?? {
      fault: { $type: "MethodFault" },
    }) as LocalizedMethodFault;
    throw new VimError(fault, localizedMessage ?? "");
  }
  return ended["info.result"];
}

function hasEnded(properties: Properties): boolean {
  return properties["info.state"] === "success" || properties["info.state"] === "error";
}

/** A machine that waits for an answer holds its task for ever. */
async function pendingQuestion(vim: Vim, task: Reference): Promise<string> {
  const entity = (await readObject(vim, task, ["info.entity"]))?.["info.entity"] as Reference | undefined;
  if (entity?.type !== "VirtualMachine") return "";
  const question = (await readObject(vim, entity, ["runtime.question"]))?.["runtime.question"] as
    { readonly text?: string } | undefined;
  return question?.text === undefined ? "" : `: the machine asks "${question.text}"`;
}
