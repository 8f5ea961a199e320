/**
 * `leeward control adopt STORE`: this machine's control goes on with the groups of a store, after the one that had them is lost.
 *
 * ```
 *  read the store ─► choose the keys ─► claim the next control epoch ─► write the state folder ─► control starts: groups come back
 * ```
 *
 * Invariants:
 * - nothing is changed before the keys are known to be good, and of two who adopt at once one has the claim;
 * - interrupted anywhere, it is simply run again: a claim that was not used costs a number;
 * - keys of an installation that is alive are never replaced.
 *
 * Source: docs/runbook-control.md; docs/decisions/0017-control-terms.md.
 */
import { randomUUID } from "node:crypto";
import { join } from "node:path";
import { Fault } from "#model/fault.ts";
import type { SealedKeysRecord } from "#model/format/control-records.ts";
import { createDurableFiles } from "../adapters/file/durable-files.ts";
import {
  CONTROL_STATE_FILE,
  readControlState,
  writeControlState,
  type ControlState,
} from "../control/control-state.ts";
import { openControlKeys, parseRecoveryKey, type ControlSecrets } from "../control/recovery-key.ts";
import { hasEnrolled, readControlSecrets, writeControlSecrets } from "../control/secrets.ts";
import { claimControl } from "../data-mover/control-claims.ts";
import type { StoreContext } from "../data-mover/disk-context.ts";
import { surveyStore, type StoreSurvey, type SurveyedGroup } from "./store-survey.ts";

const files = createDurableFiles({ fullHint: "Free space under control's state folder" });

export interface AdoptRequest {
  readonly context: StoreContext;
  /** The key of the store's site, where it is at hand: then it is checked who wrote the catalog. Control checks it in any case. */
  readonly tenantKey?: Uint8Array;
  /** Where this control is, for people who read the claim. */
  readonly site: string;
  /** Its state folder; need not be there. */
  readonly stateDir: string;
  /** The recovery key; left out or not there, only keys that the folder has already will do. */
  readonly recoveryKeyFile: string | undefined;
  /** Go on without the old keys: every role is enrolled again. */
  readonly newCa: boolean;
  readonly dryRun: boolean;
}

export interface AdoptReport {
  readonly storeId: string;
  readonly dryRun: boolean;
  /** The term that this control has, or in a dry run would claim. */
  readonly controlEpoch: number;
  readonly controlId?: string;
  /** Whose the control plane was. */
  readonly former?: { readonly controlId: string; readonly controlEpoch: number; readonly site: string };
  /** `kept`: the folder has them; `unsealed`: from the store; `new`: every role must be enrolled again. */
  readonly keys: "kept" | "unsealed" | "new";
  /** It had the claim before: only groups without a workflow come back. */
  readonly already: boolean;
  readonly groups: readonly SurveyedGroup[];
}

/** Throws NOT_FOUND (no store), KEY_MISSING, KEY_REJECTED, REFUSED, CONTROL_SUPERSEDED (another adopted it meanwhile), STORE_…. */
export async function adoptStore(request: AdoptRequest): Promise<AdoptReport> {
  const { context, stateDir, site, dryRun } = request;
  const survey = await surveyStore(context, request.tenantKey);
  const { storeId, claim, groups } = survey;
  const stateFile = join(stateDir, CONTROL_STATE_FILE);
  const state = await readControlState(stateFile, files);
  const { from, secrets } = await chooseKeys(request, survey);
  const already = claim !== undefined && state?.controlId === claim.controlId;
  const term = already
    ? { controlId: claim.controlId, controlEpoch: claim.controlEpoch }
    : { controlId: randomUUID(), controlEpoch: Math.max(claim?.controlEpoch ?? 0, state?.controlEpoch ?? 0) + 1 };
  const report: AdoptReport = {
    storeId,
    dryRun,
    controlEpoch: term.controlEpoch,
    ...(dryRun ? {} : { controlId: term.controlId }),
    ...(claim === undefined || already
      ? {}
      : { former: { controlId: claim.controlId, controlEpoch: claim.controlEpoch, site: claim.site } }),
    keys: from,
    already,
    groups,
  };
  if (dryRun) return report;
  if (!already) await claimControl(context, { ...term, site });
  if (secrets !== undefined) await writeControlSecrets(stateDir, secrets, { files });
  const next: ControlState = { ...term, adoption: { storeId, atMs: context.clock.now(), rebuilt: [] } };
  await writeControlState(stateFile, next, { files }); // Last: a control that finds it finds everything.
  return report;
}

/** `secrets`: to be written into the folder. */
async function chooseKeys(
  { stateDir, recoveryKeyFile, newCa }: AdoptRequest,
  { keys, storeId }: StoreSurvey,
): Promise<{ readonly from: AdoptReport["keys"]; readonly secrets?: ControlSecrets }> {
  const own = await readControlSecrets(stateDir, files);
  const inUse = own.caKey !== "" && hasEnrolled(own);
  const unsealed = await unseal(keys, recoveryKeyFile);
  if (inUse) {
    if (unsealed === undefined || unsealed.caCert === own.caCert) return { from: "kept" };
    throw new Fault("REFUSED", `"${stateDir}" has the CA of another installation, with roles that are enrolled there`, {
      hint: "Adopt into a state folder of its own: every role that is enrolled here would be shut out.",
    });
  }
  if (unsealed !== undefined) return { from: "unsealed", secrets: unsealed };
  if (newCa) return { from: "new" };
  throw new Fault(
    "KEY_MISSING",
    keys === undefined
      ? `Store "${storeId}" has no sealed copy of control's keys, and this folder has no keys of its own`
      : `The sealed copy of control's keys in store "${storeId}" needs the recovery key`,
    {
      hint: "Name your copy of it with --recovery-key FILE; without one, --new-ca goes on and every role must be enrolled again.",
    },
  );
}

async function unseal(
  keys: SealedKeysRecord | undefined,
  recoveryKeyFile: string | undefined,
): Promise<ControlSecrets | undefined> {
  if (keys === undefined || recoveryKeyFile === undefined) return undefined;
  const text = await files.read(recoveryKeyFile);
  return text === undefined ? undefined : openControlKeys(keys, parseRecoveryKey(text, recoveryKeyFile));
}
