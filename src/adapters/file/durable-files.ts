/**
 * Durable files on a POSIX file system.
 *
 * ```
 *  make the folder ─► write the draft, fsync ─► rename over the file ─► fsync the folder
 *        │ new folders: fsync each one's parent
 * ```
 * A rename is atomic for who reads, also after a crash; it does not wait for the data, so the draft is synced first, and it is not durable by
 * itself, so the folder is synced after it. What a replacement consists of is data: the same steps are performed with and without waiting,
 * and test/adapters/file/durable-files.test.ts performs them on a disk that crashes.
 *
 * A draft that a crash or a failure left behind is overwritten by the next write. An fsync that failed is not repeated on the same file (the kernel may
 * have dropped the pages, and reports success then): the next write begins a new one.
 */
import { closeSync, fsyncSync, mkdirSync, openSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { mkdir, open, readFile, rename } from "node:fs/promises";
import { dirname } from "node:path";
import { Fault } from "#model/fault.ts";
import type { DurableFiles } from "#ports/durable-files.ts";

export type DiskStep =
  | { readonly do: "make-folder"; readonly path: string }
  /** `synced`: its data is on the disk before the next step. */
  | { readonly do: "write"; readonly path: string; readonly text: string; readonly synced: boolean }
  | { readonly do: "rename"; readonly from: string; readonly to: string }
  | { readonly do: "sync-folder"; readonly path: string };

export const draftOf = (path: string): string => `${path}.draft`;

export function replacementSteps(path: string, text: string): readonly DiskStep[] {
  const draft = draftOf(path);
  return [
    { do: "make-folder", path: dirname(path) },
    { do: "write", path: draft, text, synced: true },
    { do: "rename", from: draft, to: path },
    { do: "sync-folder", path: dirname(path) },
  ];
}

/** `fullHint`: what to do when there is no space left, as a sentence without its full stop. */
export function createDurableFiles({ fullHint }: { readonly fullHint: string }): DurableFiles {
  return {
    async read(path) {
      try {
        return await readFile(path, "utf8");
      } catch (error) {
        return unread(path, error);
      }
    },
    async write(path, text) {
      try {
        for (const step of replacementSteps(path, text)) await perform(step);
      } catch (error) {
        throw writeFault(path, error, fullHint);
      }
    },
    async makeFolder(path) {
      try {
        await perform({ do: "make-folder", path });
      } catch (error) {
        throw writeFault(path, error, fullHint);
      }
    },
    readSync(path) {
      try {
        return readFileSync(path, "utf8");
      } catch (error) {
        return unread(path, error);
      }
    },
    writeSync(path, text) {
      try {
        for (const step of replacementSteps(path, text)) performSync(step);
      } catch (error) {
        throw writeFault(path, error, fullHint);
      }
    },
  };
}

async function perform(step: DiskStep): Promise<void> {
  switch (step.do) {
    case "make-folder": {
      const made = await mkdir(step.path, { recursive: true, mode: 0o700 });
      for (const parent of parentsOfMade(made, step.path)) await perform({ do: "sync-folder", path: parent });
      return;
    }
    case "write": {
      const file = await open(step.path, "w", 0o600);
      try {
        await file.writeFile(step.text);
        if (step.synced) await file.sync();
      } finally {
        await file.close();
      }
      return;
    }
    case "rename":
      return rename(step.from, step.to);
    case "sync-folder": {
      const folder = await open(step.path, "r");
      try {
        await folder.sync();
      } finally {
        await folder.close();
      }
    }
  }
}

function performSync(step: DiskStep): void {
  switch (step.do) {
    case "make-folder": {
      const made = mkdirSync(step.path, { recursive: true, mode: 0o700 });
      for (const parent of parentsOfMade(made, step.path)) performSync({ do: "sync-folder", path: parent });
      return;
    }
    case "write": {
      const file = openSync(step.path, "w", 0o600);
      try {
        writeFileSync(file, step.text); // Unlike one writeSync, all of it or an error.
        if (step.synced) fsyncSync(file);
      } finally {
        closeSync(file);
      }
      return;
    }
    case "rename":
      return renameSync(step.from, step.to);
    case "sync-folder": {
      const folder = openSync(step.path, "r");
      try {
        fsyncSync(folder);
      } finally {
        closeSync(folder);
      }
    }
  }
}

/** Folders that got a new entry: from the parent of the first one that was made down to the parent of the last. */
function parentsOfMade(made: string | undefined, folder: string): readonly string[] {
  if (made === undefined) return [];
  const parents: string[] = [];
  for (let at = folder; at.length >= made.length; at = dirname(at)) parents.unshift(dirname(at));
  return parents;
}

/** Undefined when there is no such file. */
function unread(path: string, error: unknown): undefined {
  const { code } = error as NodeJS.ErrnoException; // All that reading throws has one.
  if (code === "ENOENT") return undefined;
  throw new Fault("CONFIG_INVALID", `Cannot read "${path}": ${code ?? String(error)}`, {
    cause: error,
    hint: "Check who owns the file, and the disk it is on",
  });
}

/** A disk that fails otherwise stays what it is, an error that ends the process: what it holds is not known any more. */
function writeFault(path: string, error: unknown, fullHint: string): unknown {
  const { code } = error as NodeJS.ErrnoException;
  if (code === "ENOSPC" || code === "EDQUOT")
    return new Fault("DISK_FULL", `No space left to write "${path}"`, { cause: error, hint: fullHint });
  if (code === "EACCES" || code === "EPERM" || code === "EROFS" || code === "ENOTDIR" || code === "EEXIST")
    return new Fault("CONFIG_INVALID", `Cannot write "${path}": ${code}`, {
      cause: error,
      hint: "Check who owns the folder, and whether its file system is writable",
    });
  return error;
}
