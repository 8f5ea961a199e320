/**
 * One tap per image, on one machine.
 *
 * Node has no `flock`, and a lock file outlives a `kill -9`. So the lock is an *abstract* unix socket named for the file's device and
 * inode: the kernel lets one process bind it and frees it the moment that process is gone, whatever killed it. Two names of one file
 * (links, `..`) are the same lock. It does not reach into another network namespace (a container); there, QEMU's own lock on the
 * image, which we look up in /proc/locks, is what still warns.
 */
import { readFileSync } from "node:fs";
import type { BigIntStats } from "node:fs";
import { createServer } from "node:net";
import { Fault } from "#model/fault.ts";

export interface ImageLock {
  release(): Promise<void>;
}

/** Throws IMAGE_IN_USE when another process has the image: a tap of ours, or a QEMU that opened the file itself. */
export async function lockImage(path: string, stats: BigIntStats): Promise<ImageLock> {
  if (lockedByForeigner(stats)) {
    throw inUse(
      path,
      "another program, such as a running QEMU, has locked it",
      "Stop the program that has the image open, or attach its machine through the tap.",
    );
  }
  const server = createServer((socket) => socket.destroy());
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  server.once("error", reject);
  server.listen(
    { path: `\0leeward-image-${stats.dev}-${stats.isBlockDevice() ? `r${stats.rdev}` : stats.ino}` },
    resolve,
  );
  try {
    await promise;
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== "EADDRINUSE") throw cause;
    throw inUse(
      path,
      "another tap serves it",
      "Each disk has one tap: look for a second agent on this machine, or for the same disk protected under another name.",
    );
  }
  server.unref();
  return { release: () => new Promise((done) => server.close(() => done())) };
}

/** QEMU locks bytes of every image that it opens (open file description locks). */
function lockedByForeigner(stats: BigIntStats): boolean {
  let locks: string;
  try {
    locks = readFileSync("/proc/locks", "utf8");
  } catch {
    return false; // No /proc here: then there is nobody to ask.
  }
  const major = (stats.dev >> 8n) & 0xfffn;
  const minor = (stats.dev & 0xffn) | ((stats.dev >> 12n) & 0xfff00n);
  const inode = `${hex2(major)}:${hex2(minor)}:${stats.ino}`;
  return locks.split("\n").some((line) => {
    const fields = line.trim().split(/\s+/);
    return fields[1] !== "->" && fields[5] === inode;
  });
}

function hex2(value: bigint): string {
  return value.toString(16).padStart(2, "0");
}

function inUse(path: string, why: string, hint: string): Fault {
  return new Fault("IMAGE_IN_USE", `The image "${path}" is in use: ${why}`, { details: { image: path }, hint });
}
