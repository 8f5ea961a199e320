/** Composition root of the commands that need no control: `control adopt`, and what a store says when there is nobody else to ask. */
import { resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Fault, isFault } from "#model/fault.ts";
import { createApiClient } from "../api/client.ts";
import type { AdoptionView } from "../api/contract.ts";
import type { AdoptAnswer, AdoptOptions, ControlCommands } from "../cli/context.ts";
import type { StoreChoice } from "../cli/rescue-contract.ts";
import type { StoreContext } from "../data-mover/disk-context.ts";
import { controlHome, ownStoreFile, type ControlHome } from "../embedded/control-home.ts";
import { apiAccess, isRunning } from "../embedded/installation.ts";
import { adoptStore } from "./adopt.ts";
import { openStoreContext, readHeldKeys, readStoreAccess } from "./store-access.ts";
import { surveyStore } from "./store-survey.ts";
import { readControlConfig } from "./control.ts";

const POLL_MS = 300;
const WAIT_MS = 180_000;

export function createControlCommands({ stop }: { readonly stop: AbortSignal }): ControlCommands {
  const survey: ControlCommands["survey"] = async (choice) =>
    await withStore(choice, stop, async ({ context, tenantKey }) => {
      const { storeId, claim, groups } = await surveyStore(context, tenantKey);
      return { storeId, ...(claim === undefined ? {} : { control: claim }), groups };
    });
  return {
    survey,
    async surveyOwn(state) {
      const store = ownStoreFile(resolve(state));
      if (store === undefined) return undefined;
      try {
        return await survey({ store });
      } catch (error) {
        if (!isFault(error)) throw error; // The caller says why control cannot be asked; that is what matters.
        return undefined;
      }
    },
    async adopt(options) {
      const home = homeOf(options);
      const report = await withStore(options.store, stop, async (opened) =>
        adoptStore({
          ...opened,
          site: home.site,
          stateDir: home.stateDir,
          recoveryKeyFile: options.recoveryKeyFile ?? home.recoveryKeyFile,
          newCa: options.newCa,
          dryRun: options.dryRun,
        }),
      );
      if (options.dryRun) return report;
      home.restart();
      // With new keys no role can come before it is enrolled again.
      if (!options.wait || options.configFile !== undefined || report.keys === "new") return report;
      const adoption = await groupsAreBack(options, report, stop);
      return adoption === undefined ? report : { ...report, adoption };
    },
  };
}

/** With a configuration of its own, control is started by whoever runs it; in the embedded installation its leader does that. */
function homeOf({
  state,
  configFile,
}: AdoptOptions): Omit<ControlHome, "recoveryKeyFile"> & { recoveryKeyFile?: string } {
  if (configFile === undefined) return controlHome(resolve(state));
  const { site, stateDir, recoveryKeyFile } = readControlConfig(configFile);
  return {
    site,
    stateDir,
    restart: () => undefined,
    ...(recoveryKeyFile === undefined ? {} : { recoveryKeyFile }),
  };
}

async function withStore<Result>(
  choice: StoreChoice,
  stop: AbortSignal,
  work: (opened: { readonly context: StoreContext; readonly tenantKey?: Uint8Array }) => Promise<Result>,
): Promise<Result> {
  const access = readStoreAccess(choice);
  const keys = await readHeldKeys(access);
  const context = openStoreContext(access, stop);
  try {
    return await work({ context, ...(keys === undefined ? {} : { tenantKey: keys.tenantKey }) });
  } finally {
    await context.store.close();
  }
}

/** Undefined when no control runs here yet: it goes on by itself once it is started. Throws TIMED_OUT. */
async function groupsAreBack(
  { state, timeoutMs = WAIT_MS, say }: AdoptOptions,
  { storeId, controlEpoch }: Pick<AdoptAnswer, "storeId" | "controlEpoch">,
  stop: AbortSignal,
): Promise<AdoptionView | undefined> {
  if (!isRunning(resolve(state))) return undefined;
  const deadline = performance.now() + timeoutMs;
  let told = "";
  for (;;) {
    let waitsFor = "control to answer";
    try {
      const { control } = await createApiClient(apiAccess(resolve(state))).status();
      const adoption =
        control?.epoch === controlEpoch && control.adoption?.storeId === storeId ? control.adoption : undefined;
      if (adoption?.state === "done") return adoption;
      waitsFor = adoption?.waitsFor ?? waitsFor;
    } catch (error) {
      if (!isFault(error)) throw error; // Control is being started: its token, its port, or both are not there yet.
    }
    if (waitsFor !== told) say(`waits for ${waitsFor}`);
    told = waitsFor;
    if (stop.aborted) throw new Fault("INTERRUPTED", "Stopped while waiting; control goes on by itself");
    if (performance.now() > deadline) {
      throw new Fault("TIMED_OUT", `The groups are not back within ${timeoutMs / 1_000} s: waits for ${waitsFor}`, {
        hint: "Control goes on by itself: look with `leeward status`. The claim is made; the same command again does nothing twice.",
      });
    }
    await sleep(POLL_MS);
  }
}
