/** How a control says in a call which one it is: the term stands beside the parameters, and is taken off before the method is called. */
import type { ControlTerm } from "./format/control-records.ts";
import { isUuid } from "./format/fields.ts";
import { readObject, readText, readWhole } from "./json-reader.ts";
import { Fault } from "./fault.ts";

export const TERM_FIELD = "controlTerm";

/** Throws PROTOCOL_INVALID. */
export function readTerm(value: unknown): ControlTerm {
  const fields = readObject(value, TERM_FIELD);
  const term = { controlId: readText(fields, "controlId"), controlEpoch: readWhole(fields, "controlEpoch") };
  if (isUuid(term.controlId) && term.controlEpoch >= 1) return term;
  throw new Fault("PROTOCOL_INVALID", `Expected "${TERM_FIELD}" to be a UUID and a number from 1`);
}
