/**
 * Only the control plane of the newest term gives orders here; the store says which that is (#model/format/control-records.ts).
 *
 * Invariants:
 * - asked before each order: one LIST, so a control that was superseded a moment ago is stopped at its next order;
 * - a term that is new here is claimed in this store before its first order is obeyed; so is the very first control's;
 * - what is under way when another control claims is not interrupted. That is safe, for a group's own claims decide who writes; the control that
 *   adopts reads them;
 * - a store that cannot be asked stops orders about the store, which could not be carried out anyway. It does not stop orders about machines from a term
 *   that was the newest when last seen: a machine must be stoppable while a store is down.
 */
import { Fault, isFault } from "#model/fault.ts";
import { readTerm } from "#model/control-term.ts";
import type { ControlTerm } from "#model/format/control-records.ts";
import type { Log } from "#ports/log.ts";
import { assertNewest, claimControl, readControlClaim } from "../data-mover/control-claims.ts";
import type { StoreContext } from "../data-mover/disk-context.ts";

export interface ControlGuard {
  /** `term` as it came over the link. Throws CONTROL_SUPERSEDED, PROTOCOL_INVALID, STORE_…. */
  check(term: unknown): Promise<void>;
  /** As `check`, for orders that do not touch the store. */
  checkMachines(term: unknown): Promise<void>;
}

export function controlGuard(deps: {
  readonly site: string;
  readonly context: StoreContext;
  /** The bucket and the store's record are there when it settles. */
  readonly ensureStore: () => Promise<void>;
  readonly log: Log;
}): ControlGuard {
  const { site, context, log } = deps;
  let ensured = false;
  let holder: ControlTerm | undefined;
  let turn: Promise<void> = Promise.resolve();

  const check = async (term: ControlTerm | undefined): Promise<void> => {
    if (term !== undefined && holder !== undefined && same(term, holder)) return await assertNewest(context, term);
    if (!ensured) await deps.ensureStore();
    ensured = true;
    if (term === undefined) return await refuseNameless();
    await claimControl(context, { ...term, site });
    holder = term;
    log.info("Orders are taken from this control", { ...term });
  };

  /** A control from before there were terms. */
  const refuseNameless = async (): Promise<void> => {
    const there = await readControlClaim(context);
    if (there === undefined) return;
    throw new Fault(
      "CONTROL_SUPERSEDED",
      `This control says no term, and control "${there.controlId}" holds epoch ${there.controlEpoch}`,
      { hint: "Update this control, or stop it." },
    );
  };

  const guard: ControlGuard = {
    async check(value) {
      const term = value === undefined ? undefined : readTerm(value);
      // One after the other: two first orders of one term are one claim.
      const mine = turn.then(() => check(term));
      turn = mine.catch(() => undefined); // Its caller has the error.
      await mine;
    },
    async checkMachines(value) {
      try {
        await guard.check(value);
      } catch (error) {
        const unknown = isFault(error) && error.code.startsWith("STORE_");
        const trusted = value !== undefined && (holder === undefined || same(readTerm(value), holder));
        if (!unknown || !trusted) throw error;
        log.warn("An order about a machine is obeyed although the store cannot say who controls it", { fault: error });
      }
    },
  };
  return guard;
}

function same(a: ControlTerm, b: ControlTerm): boolean {
  return a.controlId === b.controlId && a.controlEpoch === b.controlEpoch;
}
