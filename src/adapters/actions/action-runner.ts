/** Actions of plans, of every kind. */
import type { ActionRunner } from "#ports/action-runner.ts";
import { callHttp } from "./http-caller.ts";
import { scriptRunner } from "./script-runner.ts";

export function createActionRunner(folder: string): ActionRunner {
  const runScript = scriptRunner(folder);
  return {
    run: async ({ id, call, context }, signal) =>
      call.do === "script"
        ? await runScript({ id, call, context }, signal)
        : await callHttp({ id, call, context }, signal),
  };
}
