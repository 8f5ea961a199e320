/** Small state files: written whole, made durable, then renamed into place. A reader sees the old or the new one, never a part. */
import { closeSync, fsyncSync, mkdirSync, openSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { Fault } from "#model/fault.ts";

export function writeJsonFile(path: string, value: unknown, mode = 0o600): void {
  writeTextFile(path, `${JSON.stringify(value, null, 2)}\n`, mode);
}

export function writeTextFile(path: string, text: string, mode = 0o600): void {
  const folder = dirname(path);
  mkdirSync(folder, { recursive: true });
  const draft = `${path}.${process.pid}.draft`;
  const descriptor = openSync(draft, "w", mode);
  try {
    writeFileSync(descriptor, text); // Unlike one writeSync, all of it or an error.
    fsyncSync(descriptor);
  } finally {
    closeSync(descriptor);
  }
  renameSync(draft, path);
}

/** The parsed file, or undefined when it is not there. Throws CONFIG_INVALID for anything that is not JSON. */
export function readJsonFile(path: string): unknown {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new Fault("CONFIG_INVALID", `"${path}" is not JSON`, {
      cause,
      hint: "Restore the file, or remove it to have it made again",
    });
  }
}
