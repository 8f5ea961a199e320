/**
 * Operation ids: `GROUP.KIND.RANDOM`, so that whoever has one knows where to look, and a person can read it. They become parts of workflow ids,
 * keys and paths: letters, digits, dots and dashes only.
 */
import { Fault } from "#model/fault.ts";
import type { Random } from "#ports/random.ts";

export type OperationKind =
  | "protect"
  | "pause"
  | "resume"
  | "unprotect"
  | "bookmark"
  | "failover"
  | "change-point"
  | "commit"
  | "undo"
  | "reprotect"
  | "failback"
  | "retry"
  | "skip"
  | "test"
  | "cleanup"
  | "export"
  | "run"
  | "drill"
  | "decide";

const OPERATION_ID = /^[a-z0-9][a-zA-Z0-9.-]{0,99}$/;
const GROUP_NAME = /^[a-z0-9][a-z0-9-]{0,40}$/;
const DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"; // Crockford's: no letter that is read as another or as a digit.

export function newOperationId(group: string, kind: OperationKind, random: Random): string {
  return `${group}.${kind}.${randomText(8, random)}`;
}

/** The group that an id made by `newOperationId` belongs to; undefined for ids that others made. */
export function groupOfOperation(operationId: string): string | undefined {
  const [group = "", kind, rest] = operationId.split(".");
  return kind !== undefined && rest !== undefined && GROUP_NAME.test(group) ? group : undefined;
}

/** Throws USAGE. */
export function checkOperationId(operationId: string): string {
  if (OPERATION_ID.test(operationId)) return operationId;
  throw new Fault("USAGE", `Expected an operation id of letters, digits, dots and dashes, got "${operationId}"`);
}

/** Throws USAGE. A group's name is also its id: at most 41 characters, so that paths and socket names stay short. */
export function checkGroupName(name: string): string {
  if (GROUP_NAME.test(name)) return name;
  throw new Fault(
    "USAGE",
    `Expected a group name of lower-case letters, digits and dashes (at most 41), got "${name}"`,
    {
      hint: 'Choose a name such as "web-tier"',
    },
  );
}

/** `length` digits of 5 random bits each. */
export function randomText(length: number, random: Random): string {
  return Array.from(random.bytes(length), (byte) => DIGITS[byte & 31]).join("");
}
