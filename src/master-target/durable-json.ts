/** State that must be whole or absent after a crash, at any instant: JSON files, replaced atomically. */
import { open, readFile, rename } from "node:fs/promises";
import { dirname } from "node:path";
import { Fault } from "#model/fault.ts";

/** Durable when it settles: file, name, and folder. Throws DISK_FULL. */
export async function writeDurableJson(
  path: string,
  value: unknown,
  options: { readonly mode?: number } = {},
): Promise<void> {
  const temporary = `${path}.new`;
  try {
    const file = await open(temporary, "w", options.mode ?? 0o600);
    try {
      await file.writeFile(`${JSON.stringify(value, null, 2)}\n`);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
    await syncFolder(dirname(path));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOSPC") throw error;
    throw new Fault("DISK_FULL", `No space left to write "${path}"`, {
      hint: "Free space under the master target's state folder.",
      cause: error,
    });
  }
}

/** Undefined when there is no such file. Throws CONFIG_INVALID when it is not JSON: nobody but us writes it, so a person has to look. */
export async function readDurableJson(path: string): Promise<unknown> {
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new Fault("CONFIG_INVALID", `The state file "${path}" is not JSON`, {
      hint: "Restore it from a copy, or move it away: groups are prepared again from the store.",
      cause,
    });
  }
}

export async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, "r");
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}
