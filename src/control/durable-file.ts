/** Files of control's state folder: whole or absent after a crash at any instant, readable by their owner only. */
import { mkdir, open, readFile, rename } from "node:fs/promises";
import { dirname } from "node:path";
import { Fault } from "#model/fault.ts";

/** Durable when it settles: content, name and folder. Throws DISK_FULL. */
export async function writeDurable(path: string, text: string): Promise<void> {
  const draft = `${path}.draft`;
  try {
    await mkdir(dirname(path), { recursive: true, mode: 0o700 });
    const file = await open(draft, "w", 0o600);
    try {
      await file.writeFile(text);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(draft, path);
    const folder = await open(dirname(path), "r");
    try {
      await folder.sync();
    } finally {
      await folder.close();
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOSPC") throw error;
    throw new Fault("DISK_FULL", `No space left to write "${path}"`, {
      cause: error,
      hint: "Free space under control's state folder",
    });
  }
}

/** Undefined when there is no such file. */
export async function readIfThere(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}

/** Undefined when there is no such file. Throws CONFIG_INVALID: nobody but us writes it, so a person has to look. */
export async function readJsonIfThere(path: string): Promise<unknown> {
  const text = await readIfThere(path);
  if (text === undefined) return undefined;
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Fault("CONFIG_INVALID", `Expected JSON in "${path}"`, {
      cause: error,
      hint: "Restore the file from a copy",
    });
  }
}
