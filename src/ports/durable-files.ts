/**
 * Small files of a state folder: read whole, replaced whole, and on the disk when the call returns.
 *
 * Invariants (test/contract/durable-files.contract.ts):
 * - after a crash at any instant a file is as before or as written, never a part of it, and as written once the call had returned;
 * - a write that fails leaves the file as before;
 * - only the owner can read what was written, and the folders that were made for it.
 *
 * Writes of the same file come one after the other: that is the caller's to see to. The `…Sync` pair is for those who may not give way between deciding
 * and keeping.
 */
export interface DurableFiles {
  /** Undefined when there is no such file. Throws CONFIG_INVALID when it is there and cannot be read. */
  read(path: string): Promise<string | undefined>;
  /** Makes the folders above it. Throws DISK_FULL; CONFIG_INVALID when it may not be written there. */
  write(path: string, text: string): Promise<void>;
  /** With those above it. Throws like `write`. */
  makeFolder(path: string): Promise<void>;
  readSync(path: string): string | undefined;
  writeSync(path: string, text: string): void;
}
