/** State files of the installation: a reader sees the old or the new one, never a part. */
import { formatStateFile, parseStateFile } from "#model/state-file.ts";
import { createDurableFiles } from "../adapters/file/durable-files.ts";

const files = createDurableFiles({ fullHint: "Free space under the state folder, and repeat the command" });

export function writeJsonFile(path: string, value: unknown): void {
  files.writeSync(path, formatStateFile(value));
}

export const writeTextFile = files.writeSync;

/** The parsed file, or undefined when it is not there. Throws CONFIG_INVALID for anything that is not JSON. */
export function readJsonFile(path: string): unknown {
  const hint = "Restore the file, or remove it to have it made again";
  return parseStateFile({ path, text: files.readSync(path), hint });
}
