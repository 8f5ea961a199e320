/**
 * Which control this is, kept in its state folder: its term, and what it was adopted from.
 *
 * A folder without one gets a new id and epoch 1. `leeward control adopt` writes one with the epoch that it has claimed in the store; the control
 * that finds it then goes on with the groups of that store (`rebuilt` says which stores are done).
 */
import { randomUUID } from "node:crypto";
import { isUuid } from "#model/format/fields.ts";
import type { ControlTerm } from "#model/format/control-records.ts";
import { Fault } from "#model/fault.ts";
import { readObject, readText, readTexts, readWhole } from "#model/json-reader.ts";
import { formatStateFile, parseStateFile } from "#model/state-file.ts";
import type { DurableFiles } from "#ports/durable-files.ts";

/** In the state folder. */
export const CONTROL_STATE_FILE = "control.json";

export interface Adoption {
  /** The store that it was adopted from: its groups come back first. */
  readonly storeId: string;
  readonly atMs: number;
  /** Stores whose groups are back. */
  readonly rebuilt: readonly string[];
}

export interface ControlState extends ControlTerm {
  readonly adoption?: Adoption;
}

export async function ensureControlState(file: string, files: DurableFiles): Promise<ControlState> {
  const kept = await readControlState(file, files);
  if (kept !== undefined) return kept;
  const made = { controlId: randomUUID(), controlEpoch: 1 };
  await writeControlState(file, made, { files });
  return made;
}

/** Throws CONFIG_INVALID, PROTOCOL_INVALID. */
export async function readControlState(file: string, files: DurableFiles): Promise<ControlState | undefined> {
  const json = parseStateFile({ path: file, text: await files.read(file), hint: "Restore the file from a copy" });
  if (json === undefined) return undefined;
  const fields = readObject(json, "control");
  const controlId = readText(fields, "controlId");
  if (!isUuid(controlId)) throw new Fault("CONFIG_INVALID", `Expected a UUID in "${file}", got "${controlId}"`);
  const adoption = fields["adoption"] === undefined ? undefined : readObject(fields["adoption"], "adoption");
  return {
    controlId,
    controlEpoch: readWhole(fields, "controlEpoch"),
    ...(adoption === undefined
      ? {}
      : {
          adoption: {
            storeId: readText(adoption, "storeId"),
            atMs: readWhole(adoption, "atMs"),
            rebuilt: readTexts(adoption, "rebuilt"),
          },
        }),
  };
}

export async function writeControlState(
  file: string,
  state: ControlState,
  { files }: { readonly files: DurableFiles },
): Promise<void> {
  await files.write(file, formatStateFile(state));
}
