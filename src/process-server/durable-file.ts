/** Small files that are replaced as a whole and are on the disk when the call returns. Throws DISK_FULL; the file is then as before. */
import { closeSync, fsyncSync, mkdirSync, openSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { Fault } from "#model/fault.ts";

export function writeDurably(file: string, text: string): void {
  mkdirSync(dirname(file), { recursive: true, mode: 0o700 });
  const part = `${file}.part`;
  try {
    const descriptor = openSync(part, "w", 0o600);
    try {
      writeFileSync(descriptor, text); // Unlike one writeSync, all of it or an error.
      fsyncSync(descriptor);
    } finally {
      closeSync(descriptor);
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOSPC") throw error;
    throw new Fault("DISK_FULL", `No space left to write "${file}"`, {
      cause: error,
      hint: "Free space under the process server's state folder; it goes on by itself, the taps track meanwhile",
    });
  }
  renameSync(part, file);
  const folder = openSync(dirname(file), "r");
  try {
    fsyncSync(folder);
  } finally {
    closeSync(folder);
  }
}

/** The file's text; undefined when there is none. */
export function readIfThere(file: string): string | undefined {
  try {
    return readFileSync(file, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}
