/**
 * The spool: delta frames between the agents and the WAN, in order, bounded.
 *
 * ```
 *  append ──► memory (a small share) ──► file, encrypted ──► read ──► sent ──► committed: dropped
 * ```
 *
 * - It is a cache: losing it loses nothing, since the agents keep every cut's block set until it is committed. So its key is made at start and
 *   lives in memory only, and what a former life left is deleted.
 * - Bounded over all groups. When it is full, `append` waits as long as someone drains it, and is SPOOL_FULL otherwise: the cycle is then given up, and
 *   the taps go on counting in their bitmaps.
 * - A cycle bigger than the spool passes through: what was sent is dropped under pressure, and the cycle cannot be sent a second time.
 */
import { createCipheriv, createDecipheriv, randomBytes } from "node:crypto";
import { mkdirSync, rmSync } from "node:fs";
import { open, type FileHandle } from "node:fs/promises";
import { join } from "node:path";
import { Fault } from "#model/fault.ts";

export interface Spool {
  readonly usedBytes: number;
  readonly bytesMax: number;
  /** Room was made; someone may be waiting for it outside of `append`. */
  onRoom(listener: () => void): void;
  open(groupId: string, cycle: number, drained: () => boolean): SpoolCycle;
  /** Whoever waits for room looks again at whether anyone drains. */
  recheck(): void;
  close(): Promise<void>;
}

export interface SpoolCycle {
  readonly usedBytes: number;
  /** Everything appended is still here. */
  readonly resendable: boolean;
  /** Takes a copy of `payload`. Throws SPOOL_FULL, and INTERRUPTED once dropped. */
  append(diskId: string, payload: Uint8Array): Promise<void>;
  /** Nothing more comes. */
  complete(): void;
  /** From the beginning, following `append` until `complete`. Throws INTERRUPTED once dropped. Under pressure, what was yielded is dropped. */
  read(): AsyncGenerator<{ readonly diskId: string; readonly payload: Uint8Array }>;
  drop(): void;
}

interface Chunk {
  readonly diskId: string;
  readonly bytes: number;
  memory: Buffer | undefined;
  /** Where the sealed chunk begins in the cycle's file. */
  offset: number;
}

/** Share of the bound that may lie in memory, and its own bound. */
const MEMORY_SHARE = 0.25;
const MEMORY_BYTES_MAX = 24 << 20;
const PRESSURE = 0.75;
const TAG_BYTES = 16;

export function openSpool(options: { readonly folder: string; readonly bytesMax: number }): Spool {
  const { folder, bytesMax } = options;
  const memoryMax = Math.min(MEMORY_BYTES_MAX, Math.floor(bytesMax * MEMORY_SHARE));
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  const key = randomBytes(32);
  const cycles = new Set<SpoolCycle>();
  const waiting = new Set<() => void>();
  const listeners = new Set<() => void>();
  let usedBytes = 0;
  let memoryBytes = 0;
  let files = 0;

  return {
    get usedBytes() {
      return usedBytes;
    },
    bytesMax,
    onRoom: (listener) => void listeners.add(listener),
    open: openCycle,
    recheck,
    async close() {
      for (const cycle of [...cycles]) cycle.drop();
      rmSync(folder, { recursive: true, force: true });
    },
  };

  function recheck(): void {
    for (const look of [...waiting]) look();
  }

  function give(bytes: number, inMemory: boolean): void {
    usedBytes -= bytes;
    if (inMemory) memoryBytes -= bytes;
    recheck();
    for (const listener of listeners) listener();
  }

  function openCycle(groupId: string, cycle: number, drained: () => boolean): SpoolCycle {
    const chunks: (Chunk | undefined)[] = [];
    const fileNumber = (files += 1);
    const path = join(folder, `${groupId}-${cycle}-${fileNumber}`);
    const changed = new Set<() => void>();
    let file: Promise<FileHandle> | undefined;
    let fileEnd = 0;
    let cycleBytes = 0;
    let finished = false;
    let dropped = false;
    let resendable = true;

    const self: SpoolCycle = {
      get usedBytes() {
        return cycleBytes;
      },
      get resendable() {
        return resendable;
      },
      async append(diskId, payload) {
        await room(payload.length);
        const chunk: Chunk = { diskId, bytes: payload.length, memory: undefined, offset: 0 };
        usedBytes += chunk.bytes;
        cycleBytes += chunk.bytes;
        if (memoryBytes + chunk.bytes <= memoryMax) {
          memoryBytes += chunk.bytes;
          chunk.memory = Buffer.from(payload);
        } else {
          await store(chunk, payload);
        }
        if (dropped) return free(chunk); // Given up while it was being written.
        chunks.push(chunk);
        tell();
      },
      complete() {
        finished = true;
        tell();
      },
      async *read() {
        for (let index = 0; ; index += 1) {
          while (!dropped && index >= chunks.length && !finished)
            await new Promise<void>((resolve) => changed.add(resolve));
          if (dropped) throw gone();
          if (index >= chunks.length) return;
          const chunk = chunks[index];
          if (chunk === undefined) throw new RangeError("This part of the cycle was dropped after it was sent");
          yield { diskId: chunk.diskId, payload: chunk.memory ?? (await load(chunk, index)) };
          if (usedBytes > bytesMax * PRESSURE && !dropped) {
            chunks[index] = undefined;
            resendable = false;
            free(chunk);
          }
        }
      },
      drop() {
        if (dropped) return;
        dropped = true;
        cycles.delete(self);
        for (const chunk of chunks) if (chunk !== undefined) free(chunk);
        chunks.length = 0;
        void remove();
        tell();
        recheck();
      },
    };
    cycles.add(self);
    return self;

    function tell(): void {
      for (const look of [...changed]) look();
      changed.clear();
    }

    function free(chunk: Chunk): void {
      cycleBytes -= chunk.bytes;
      give(chunk.bytes, chunk.memory !== undefined);
    }

    async function room(bytes: number): Promise<void> {
      // An empty spool takes anything: a payload longer than the bound would else wait for ever.
      while (usedBytes > 0 && usedBytes + bytes > bytesMax && !dropped) {
        if (!drained()) {
          throw new Fault("SPOOL_FULL", `The spool holds ${usedBytes} of ${bytesMax} bytes and the target takes none`, {
            details: { usedBytes, bytesMax },
            hint: "Points are made again by themselves once the target answers; nothing is lost meanwhile",
          });
        }
        await new Promise<void>((resolve) => {
          const look = (): void => {
            waiting.delete(look);
            resolve();
          };
          waiting.add(look);
        });
      }
      if (dropped) throw gone();
    }

    /** Sealed under its offset, which is used once in the life of this file's name. */
    async function store(chunk: Chunk, payload: Uint8Array): Promise<void> {
      chunk.offset = fileEnd;
      fileEnd += payload.length + TAG_BYTES;
      const cipher = createCipheriv("aes-256-gcm", key, nonce(chunk.offset));
      const sealed = Buffer.concat([cipher.update(payload), cipher.final(), cipher.getAuthTag()]);
      file ??= open(path, "wx+", 0o600);
      try {
        const handle = await file;
        for (let at = 0; at < sealed.length;)
          at += (await handle.write(sealed, at, sealed.length - at, chunk.offset + at)).bytesWritten;
      } catch (cause) {
        free(chunk);
        if ((cause as NodeJS.ErrnoException).code !== "ENOSPC") throw cause;
        throw new Fault("SPOOL_FULL", `There is no space left for the spool in "${folder}"`, {
          cause,
          hint: "Free space on that disk, or set a smaller spoolBytesMax",
        });
      }
    }

    async function load(chunk: Chunk, index: number): Promise<Buffer> {
      const sealed = Buffer.allocUnsafe(chunk.bytes + TAG_BYTES);
      const handle = await file!; // A chunk that is not in memory was stored.
      try {
        for (let at = 0; at < sealed.length;) {
          const { bytesRead } = await handle.read(sealed, at, sealed.length - at, chunk.offset + at);
          if (bytesRead === 0) throw new RangeError(`Chunk ${index} of the spool is cut off`);
          at += bytesRead;
        }
      } catch (error) {
        throw dropped ? gone() : error; // Dropping closes the file under us.
      }
      const decipher = createDecipheriv("aes-256-gcm", key, nonce(chunk.offset));
      decipher.setAuthTag(sealed.subarray(chunk.bytes));
      return Buffer.concat([decipher.update(sealed.subarray(0, chunk.bytes)), decipher.final()]);
    }

    /** 12 bytes: the number of the file in this life, and the offset in it. */
    function nonce(offset: number): Buffer {
      const bytes = Buffer.alloc(12);
      bytes.writeUInt32LE(fileNumber, 0);
      bytes.writeUIntLE(offset, 4, 6);
      return bytes;
    }

    async function remove(): Promise<void> {
      if (file === undefined) return;
      try {
        await (await file).close();
      } finally {
        rmSync(path, { force: true });
      }
    }
  }

  function gone(): Fault {
    return new Fault("INTERRUPTED", "The cycle was given up");
  }
}
