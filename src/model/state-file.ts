/** JSON that only we write: what is not JSON was damaged by somebody else, and a person has to look. */
import { Fault } from "./fault.ts";

export interface StateFile {
  readonly path: string;
  readonly text: string | undefined;
  /** What to do about a damaged one. */
  readonly hint: string;
}

/** Undefined when there is no such file. Throws CONFIG_INVALID; the text is not repeated, it may hold a secret. */
export function parseStateFile({ path, text, hint }: StateFile): unknown {
  if (text === undefined) return undefined;
  try {
    return JSON.parse(text);
  } catch {
    const what = text.trim() === "" ? "it is empty" : `its ${text.length} characters are none`;
    throw new Fault("CONFIG_INVALID", `Expected JSON in "${path}", and ${what}`, { hint });
  }
}

/** As people can read it. */
export function formatStateFile(value: unknown): string {
  return `${JSON.stringify(value, undefined, 2)}\n`;
}
