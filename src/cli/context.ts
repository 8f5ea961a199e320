/** What every command is given by the composition root, and the options that every command takes. */
import type { Command } from "commander";
import { durationOfText } from "#model/duration-text.ts";
import { Fault } from "#model/fault.ts";
import type { AdoptionView, ApiClient } from "../api/contract.ts";
import { createOutput, type Output } from "./output.ts";
import type { RescueCommands, RestoredDiskView, StoreChoice, TransferProgress } from "./rescue-contract.ts";

export interface CliDependencies {
  readonly version: string;
  /** The API of the installation in this state folder. Throws NOT_FOUND when none runs. */
  readonly client: (state: string) => ApiClient;
  readonly embedded: EmbeddedCommands;
  readonly rescue: RescueCommands;
  /** Copy a read-only export of this machine into raw images. */
  readonly copyExport: (
    request: {
      readonly pointId: string;
      readonly disks: readonly { readonly diskId: string; readonly url: string }[];
      readonly to: string;
      readonly yes: boolean;
    },
    onProgress: (progress: TransferProgress) => void,
  ) => Promise<RestoredDiskView[]>;
  readonly control: ControlCommands;
  /** Take a one-time token on this machine: key and certificate into a folder. */
  readonly enrol: (
    request: EnrolRequest,
  ) => Promise<{ readonly site: string; readonly role: string; readonly name: string; readonly dir: string }>;
  /** Run one role until it is stopped. */
  readonly role: (name: string, configFile: string) => Promise<void>;
  readonly stop: AbortSignal;
}

export interface EnrolRequest {
  readonly apiUrl: string;
  readonly token: string;
  readonly caFingerprint?: string;
  readonly site: string;
  readonly role: string;
  readonly name: string;
  readonly dir: string;
}

/** What runs on this machine only; see src/embedded and src/demo. */
export interface EmbeddedCommands {
  up(
    state: string,
    options: { readonly detach: boolean; readonly say: (line: string) => void },
  ): Promise<{ readonly urls: Readonly<Record<string, string>>; readonly state: string; readonly pid: number }>;
  down(state: string): Promise<boolean>;
  loseSite(state: string, site: string): Promise<number>;
  startSite(state: string, site: string): Promise<void>;
  doctor(): Promise<{ readonly ok: boolean; readonly lines: readonly string[]; readonly report: unknown }>;
  demo(
    state: string,
    options: { readonly keep: boolean; readonly say: (line: string) => void },
  ): Promise<{ readonly ok: boolean; readonly text: string; readonly report: unknown }>;
}

/** What is done without a control that runs. */
export interface ControlCommands {
  adopt(options: AdoptOptions): Promise<AdoptAnswer>;
  /** What a store says of its groups. */
  survey(store: StoreChoice): Promise<StoreAnswer>;
  /** The same of the recovery site's store of an embedded installation; undefined when there is none that answers. */
  surveyOwn(state: string): Promise<StoreAnswer | undefined>;
}

export interface AdoptOptions {
  readonly store: StoreChoice;
  readonly state: string;
  /** Of a control that is not part of the embedded installation. */
  readonly configFile?: string;
  readonly recoveryKeyFile?: string;
  readonly newCa: boolean;
  readonly dryRun: boolean;
  readonly wait: boolean;
  readonly timeoutMs?: number;
  readonly say: (line: string) => void;
}

export interface AdoptAnswer {
  readonly storeId: string;
  readonly dryRun: boolean;
  readonly controlEpoch: number;
  readonly former?: { readonly controlId: string; readonly controlEpoch: number; readonly site: string };
  readonly keys: "kept" | "unsealed" | "new";
  readonly already: boolean;
  readonly groups: readonly SurveyedGroup[];
  /** What came back; left out when no control runs here yet. */
  readonly adoption?: AdoptionView;
}

export interface StoreAnswer {
  readonly storeId: string;
  readonly control?: { readonly controlId: string; readonly controlEpoch: number; readonly site: string };
  readonly groups: readonly SurveyedGroup[];
}

export interface SurveyedGroup {
  readonly group: string;
  readonly phase: string;
  readonly activeSite: string | undefined;
  readonly standing: string;
  readonly problem?: string;
  readonly newestPoint?: { readonly barrier: number; readonly cutAt: string; readonly ageMs: number };
  readonly damaged: readonly { readonly key: string; readonly message: string }[];
}

export interface GlobalOptions {
  readonly json: boolean;
  readonly quiet: boolean;
  readonly state: string;
}

export interface WaitOptions {
  readonly wait: boolean;
  readonly timeout?: string;
}

export function globalOptions(command: Command): GlobalOptions {
  const options = command.optsWithGlobals<{ json?: boolean; quiet?: boolean; state?: string }>();
  return { json: options.json ?? false, quiet: options.quiet ?? false, state: options.state ?? ".leeward" };
}

export function outputOf(command: Command): Output {
  return createOutput(globalOptions(command));
}

/** "90", "90s", "15m", "2h", "500ms" → milliseconds. Throws USAGE. */
export function parseDuration(text: string): number {
  const durationMs = durationOfText(text, "s");
  if (durationMs === undefined)
    throw new Fault("USAGE", `Expected a duration such as "90s", "15m" or "2h", got "${text}"`);
  return durationMs;
}
