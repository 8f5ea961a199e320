/**
 * Who runs the control plane: create-only claims, of which the highest number is the law (`control/epochs/`).
 *
 * A control carries its term (id and number) in every order that it gives. It has the number of its adoption in every store, claimed there when it first
 * gives an order; so a control that was superseded in one store may learn it from another one only later, and two that were adopted from different
 * stores at once each hold one, and are both stopped at the other's: visible, and mended by adopting once more.
 *
 * Source: docs/decisions/0017-control-terms.md.
 */
import { Fault } from "#model/fault.ts";
import {
  decodeControlClaim,
  encodeControlClaim,
  type ControlClaim,
  type ControlTerm,
} from "#model/format/control-records.ts";
import { storeNames } from "#model/format/object-names.ts";
import { listNumbers } from "./claims.ts";
import { createOnce } from "./create-once.ts";
import { readIfThere, type StoreContext } from "./disk-context.ts";

/** The claim that counts; undefined while there is none. Throws OBJECT_CORRUPT for one that cannot be read: then a person has to look. */
export async function readControlClaim(context: StoreContext): Promise<ControlClaim | undefined> {
  const names = storeNames(context.root);
  const highest = (await listNumbers(context, names.controlEpochs)).at(-1);
  return highest === undefined ? undefined : await readClaim(context, highest);
}

/** This term holds the store's control plane when it settles. Throws CONTROL_SUPERSEDED when another one does. Repeatable. */
export async function claimControl(
  context: StoreContext,
  term: ControlTerm & { readonly site: string },
): Promise<void> {
  const names = storeNames(context.root);
  const { controlId, controlEpoch, site } = term;
  const there = await readControlClaim(context);
  if (there === undefined || there.controlEpoch < controlEpoch) {
    const claim: ControlClaim = { controlId, controlEpoch, site, claimedAtMs: context.clock.now() };
    const key = names.controlEpoch(controlEpoch);
    const taken = await createOnce<ControlClaim>(context, {
      key,
      body: encodeControlClaim(claim),
      look: () => readClaim(context, controlEpoch),
      isMine: (found) => found.controlId === controlId,
    });
    if (taken !== undefined) throw superseded(term, taken);
    return assertNewest(context, term);
  }
  if (there.controlEpoch > controlEpoch || there.controlId !== controlId) throw superseded(term, there);
}

/** For a term that has claimed: one LIST. */
export async function assertNewest(context: StoreContext, term: ControlTerm): Promise<void> {
  const names = storeNames(context.root);
  const newer = (await listNumbers(context, names.controlEpochs, names.controlEpoch(term.controlEpoch))).at(-1);
  if (newer === undefined) return;
  throw superseded(
    term,
    (await readClaim(context, newer)) ?? { ...term, controlEpoch: newer, site: "", claimedAtMs: 0 },
  );
}

async function readClaim(context: StoreContext, epoch: number): Promise<ControlClaim | undefined> {
  const key = storeNames(context.root).controlEpoch(epoch);
  const data = await readIfThere(context, key);
  return data && decodeControlClaim(data, key);
}

function superseded(term: ControlTerm, by: ControlClaim): Fault {
  const where = by.site === "" ? "" : ` at site "${by.site}"`;
  return new Fault(
    "CONTROL_SUPERSEDED",
    `The control plane was taken over by control "${by.controlId}"${where} with epoch ${by.controlEpoch}; this one has epoch ${term.controlEpoch}`,
    {
      details: { controlEpoch: term.controlEpoch, newerEpoch: by.controlEpoch, controlId: by.controlId, site: by.site },
      hint: "Stop this control and use the other one; if this one is to go on, run `leeward control adopt STORE` here.",
    },
  );
}
