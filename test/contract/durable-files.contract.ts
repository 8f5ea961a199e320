/** What durable files must hold, whichever way they are written: `durableFilesContract("without waiting", open)`. */
import assert from "node:assert/strict";
import { mkdtemp, mkdir, readFile, rm, stat, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import type { DurableFiles } from "#ports/durable-files.ts";
import { isFault, type FaultCode } from "#model/fault.ts";

export interface WaysOfDurableFiles {
  readonly files: DurableFiles;
  readonly read: (path: string) => Promise<string | undefined>;
  readonly write: (path: string, text: string) => Promise<void>;
  /** What is written first, beside the file. */
  readonly draftOf: (path: string) => string;
}

export function durableFilesContract(name: string, { files, read, write, draftOf }: WaysOfDurableFiles): void {
  const holds = (what: string, check: (folder: string) => Promise<void>): void => {
    test(what, async () => {
      const folder = await mkdtemp(join(tmpdir(), "leeward-files-"));
      try {
        await check(folder);
      } finally {
        await rm(folder, { recursive: true, force: true });
      }
    });
  };
  const rejects = (work: Promise<unknown>, code: FaultCode): Promise<void> =>
    assert.rejects(work, (error) => isFault(error, code) && error.hint !== undefined);

  describe(`DurableFiles contract: ${name}`, () => {
    holds("what was written is read back, through folders that are made for it", async (folder) => {
      const path = join(folder, "a", "b", "state.json");
      assert.equal(await read(path), undefined);
      await write(path, "first — of several bytes");
      assert.equal(await read(path), "first — of several bytes");
      await write(path, "");
      assert.equal(await read(path), "");
      const long = "0123456789abcdef".repeat(1 << 16);
      await write(path, long);
      assert.equal(await read(path), long);
      await write(path, "short");
      assert.equal(await read(path), "short");
    });

    holds("only the owner can read a file, and enter the folders above it", async (folder) => {
      const path = join(folder, "a", "b", "secret");
      await write(path, "secret");
      const modes = await Promise.all([path, join(folder, "a", "b"), join(folder, "a")].map((one) => stat(one)));
      assert.deepEqual(
        modes.map(({ mode }) => mode & 0o777),
        [0o600, 0o700, 0o700],
      );
      await files.makeFolder(join(folder, "c", "d"));
      await files.makeFolder(join(folder, "c", "d"));
      assert.equal((await stat(join(folder, "c", "d"))).mode & 0o777, 0o700);
    });

    holds("a full disk is DISK_FULL, the file is as before, and the next write that fits succeeds", async (folder) => {
      const path = join(folder, "state");
      await write(path, "before");
      await symlink("/dev/full", draftOf(path)); // Writing to it ends in a real ENOSPC.
      await rejects(write(path, "after"), "DISK_FULL");
      assert.equal(await read(path), "before");
      await rm(draftOf(path));
      await write(path, "after");
      assert.equal(await read(path), "after");
    });

    holds("what a crash left of a draft is never read, and in nobody's way", async (folder) => {
      const path = join(folder, "state");
      await writeFile(draftOf(path), "half of a much longer te");
      assert.equal(await read(path), undefined);
      await write(path, "whole");
      assert.equal(await read(path), "whole");
      await assert.rejects(readFile(draftOf(path)), { code: "ENOENT" });
    });

    holds("a path that cannot be written, or read, is CONFIG_INVALID", async (folder) => {
      await writeFile(join(folder, "file"), "not a folder");
      await rejects(write(join(folder, "file", "state"), "text"), "CONFIG_INVALID");
      await mkdir(join(folder, "folder"));
      await rejects(read(join(folder, "folder")), "CONFIG_INVALID");
    });
  });
}
