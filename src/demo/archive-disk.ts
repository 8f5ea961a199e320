/**
 * A disk with something on it, so that the initial sync has work to do: every block says which block it is, and half of it does not compress.
 */
import { open } from "node:fs/promises";

const BLOCK = 4096;
const CHUNK = 1 << 20;

export async function createArchiveDisk(file: string, sizeBytes: number): Promise<void> {
  const target = await open(file, "w");
  try {
    const chunk = Buffer.alloc(CHUNK);
    for (let at = 0; at < sizeBytes; at += CHUNK) {
      for (let offset = 0; offset < CHUNK; offset += BLOCK) fillBlock(chunk, offset, (at + offset) / BLOCK);
      await target.write(chunk, 0, Math.min(CHUNK, sizeBytes - at), at);
    }
  } finally {
    await target.close();
  }
}

function fillBlock(chunk: Buffer, offset: number, block: number): void {
  chunk.fill(`block ${block} `, offset, offset + BLOCK / 2);
  let state = (Math.imul(block + 1, 2654435761) >>> 0) | 1;
  for (let at = offset + BLOCK / 2; at < offset + BLOCK; at += 4) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    chunk.writeUInt32LE(state, at);
  }
}
