/**
 * A raw image that is being restored: `NAME.partial` until it is whole, verified and durable, and only then NAME.
 *
 * Beside it `NAME.partial.json` says how far it is: windows of the disk that are in the file, and jobs of the one after them. It is replaced
 * only after what it says is durable, so whoever finds both, after whatever end of whatever process, may go on from there.
 *
 * Invariant: a file that somebody else wrote is replaced only when the caller says so.
 */
import type { Stats } from "node:fs";
import { link, mkdir, open, readFile, rename, rm, stat, statfs, unlink } from "node:fs/promises";
import { dirname } from "node:path";
import { Fault, isFault } from "#model/fault.ts";

export interface RestoredFile {
  /** It has its name already: an earlier process got that far, and was ended before its whole restore was. */
  readonly complete: boolean;
  readonly fd: number;
  /** Windows that an earlier process has done: the first one to do. */
  readonly window: number;
  /** Begin a window with its jobs. `plan` is the same only for the same jobs: then those that are done stay so. */
  beginWindow(window: number, plan: string, jobs: number): void;
  isDone(job: number): boolean;
  /** What the job wrote was handed to the operating system. */
  done(job: number): void;
  /** Make it durable, and say so in the file beside it, so that a later process need not do it again. */
  checkpoint(): Promise<void>;
  /** All windows are done: durable, under its own name. */
  finish(): Promise<void>;
  /** The restore to which it belongs has ended: what was kept for another attempt goes. */
  forget(): Promise<void>;
  /** Keep what is there for a later attempt. */
  close(): Promise<void>;
}

interface Stored {
  readonly format: 1;
  readonly content: string;
  readonly window: number;
  readonly plan: string;
  /** Bit i of byte i / 8: job i is in the file. Base64. */
  readonly done: string;
  readonly complete: boolean;
}

/**
 * `content` says what goes into it, in words that are the same only for the same bytes. `neededBytes`: what will be written at most, to see
 * beforehand whether there is room. With `overwrite` a file of that name, or a part of another restore, may be replaced.
 * Throws REFUSED (something else is there), DISK_FULL.
 */
export async function openRestoredFile(request: {
  readonly path: string;
  readonly sizeBytes: number;
  readonly content: string;
  readonly neededBytes: number;
  readonly overwrite: boolean;
}): Promise<RestoredFile> {
  const { path, sizeBytes, content, overwrite } = request;
  const partialPath = `${path}.partial`;
  const statePath = `${partialPath}.json`;
  const forget = (): Promise<void> => rm(statePath, { force: true });
  await mkdir(dirname(path), { recursive: true });
  const found = await readState(statePath);
  const known = found?.content === content ? found : undefined;
  if (known?.complete && (await hasName(path, partialPath, sizeBytes))) return completeFile(known.window, forget);
  if (!overwrite && (await statIfThere(path)) !== undefined) throw exists(path);
  const partial = await statIfThere(partialPath);
  if (partial !== undefined && known === undefined && !overwrite) {
    throw new Fault("REFUSED", `"${partialPath}" is a part of another restore`, {
      details: { path: partialPath },
      hint: "Restore that point again to complete it, or give --yes to begin anew.",
    });
  }
  const before = partial === undefined ? undefined : known;
  if (before === undefined) await forget();
  const file = await open(partialPath, before === undefined ? "w" : "r+", 0o600);
  try {
    await checkRoom(dirname(path), request.neededBytes - (before === undefined ? 0 : partial!.blocks * 512));
    await file.truncate(sizeBytes);
    // From now on the part is ours, whatever happens before the first checkpoint.
    if (before === undefined)
      await writeState(statePath, { format: 1, content, window: 0, plan: "", done: "", complete: false });
  } catch (error) {
    await file.close();
    throw asDiskFull(error, path);
  }

  let window = before?.window ?? 0;
  let plan = before?.plan ?? "";
  let bits: Uint8Array = Buffer.from(before?.done ?? "", "base64");
  let complete = false;
  let isOpen = true;
  let saving: Promise<void> = Promise.resolve();
  const save = async (): Promise<void> => {
    // Before the sync: what comes during it may not be durable.
    const stored: Stored = { format: 1, content, window, plan, done: Buffer.from(bits).toString("base64"), complete };
    await file.datasync();
    await writeState(statePath, stored);
  };
  const checkpoint = (): Promise<void> => {
    saving = saving.then(save).catch((error: unknown) => {
      throw asDiskFull(error, path);
    });
    return saving;
  };
  const close = async (): Promise<void> => {
    if (!isOpen) return;
    isOpen = false;
    await saving.catch(() => undefined); // Whoever asked for it has the error.
    await file.close();
  };
  return {
    complete: false,
    fd: file.fd,
    window,
    beginWindow(next, nextPlan, jobs) {
      const bytes = Math.ceil(jobs / 8);
      const same = next === window && nextPlan === plan && bits.length === bytes;
      if (!same) bits = new Uint8Array(bytes);
      window = next;
      plan = nextPlan;
    },
    isDone: (job) => (bits[job >> 3]! & (1 << (job & 7))) !== 0,
    done(job) {
      bits[job >> 3]! |= 1 << (job & 7);
    },
    checkpoint,
    async finish() {
      complete = true;
      await checkpoint();
      try {
        await file.sync();
        await close();
        await giveName(partialPath, path, overwrite);
        await syncFolder(dirname(path));
      } catch (error) {
        throw asDiskFull(error, path);
      }
    },
    forget,
    close,
  };
}

/** ENOSPC as the fault that it is; everything else as it came. */
export function asDiskFull(error: unknown, path: string): unknown {
  const { code } = error as NodeJS.ErrnoException;
  if (isFault(error) || (code !== "ENOSPC" && code !== "EDQUOT")) return error;
  return new Fault("DISK_FULL", `No space left to restore "${path}"`, {
    details: { path },
    hint: "Free space, then repeat the command: it goes on where it stopped.",
    cause: error,
  });
}

function completeFile(window: number, forget: () => Promise<void>): RestoredFile {
  const nothing = (): Promise<void> => Promise.resolve();
  return {
    complete: true,
    fd: -1,
    window,
    beginWindow: () => undefined,
    isDone: () => true,
    done: () => undefined,
    checkpoint: nothing,
    finish: nothing,
    forget,
    close: nothing,
  };
}

/** A hard link fails where a name is taken; a rename would replace it. Some file systems have no links: there a look must do. */
async function giveName(from: string, to: string, overwrite: boolean): Promise<void> {
  if (overwrite) return rename(from, to);
  try {
    await link(from, to);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? "";
    if (code === "EEXIST") throw exists(to);
    if (!["EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS"].includes(code)) throw error;
    if ((await statIfThere(to)) !== undefined) throw exists(to);
    return rename(from, to);
  }
  await unlink(from);
}

/** Whether a whole file has its name, and the name that it had before is gone. */
async function hasName(path: string, partialPath: string, sizeBytes: number): Promise<boolean> {
  const [named, partial] = await Promise.all([path, partialPath].map(statIfThere));
  if (named?.size !== sizeBytes) return false;
  if (partial === undefined) return true;
  if (partial.ino !== named.ino) return false;
  await unlink(partialPath); // A process ended between the two steps of `giveName`.
  return true;
}

function exists(path: string): Fault {
  return new Fault("REFUSED", `"${path}" exists`, {
    details: { path },
    hint: "Restore into an empty folder, or give --yes to replace it.",
  });
}

async function readState(path: string): Promise<Stored | undefined> {
  try {
    const value = JSON.parse(await readFile(path, "utf8")) as Partial<Stored>;
    if (value.format === 1 && typeof value.content === "string" && typeof value.done === "string")
      return value as Stored;
  } catch (error) {
    if (!(error instanceof SyntaxError) && (error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
  }
  return undefined; // None, or one that says nothing: then the image is begun anew.
}

async function writeState(path: string, stored: Stored): Promise<void> {
  const file = await open(`${path}.new`, "w", 0o600);
  try {
    await file.writeFile(JSON.stringify(stored));
    await file.datasync();
  } finally {
    await file.close();
  }
  await rename(`${path}.new`, path);
}

async function checkRoom(folder: string, needed: number): Promise<void> {
  const { bavail, bsize } = await statfs(folder);
  const free = bavail * bsize;
  if (free >= needed) return;
  throw new Fault("DISK_FULL", `"${folder}" has ${free} bytes free, and ${needed} are needed`, {
    details: { path: folder, freeBytes: free, neededBytes: needed },
    hint: "Free space, or restore into another folder with --to.",
  });
}

async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, "r");
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

async function statIfThere(path: string): Promise<Stats | undefined> {
  try {
    return await stat(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}
