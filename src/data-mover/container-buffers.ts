/**
 * Recycled buffers for containers. 16 MiB each, but only the pages that were written to are real memory, so a small commit in a
 * fresh one costs little. Last in, first out: the same few stay warm, and few are kept idle.
 */
import { CONTAINER_BUFFER_BYTES } from "./container-writer.ts";

const IDLE_MAX = 4;

export interface ContainerBuffers {
  take(): Uint8Array;
  /** Nothing may look into the buffer any more. */
  give(buffer: Uint8Array): void;
}

export function containerBuffers(bytes = CONTAINER_BUFFER_BYTES): ContainerBuffers {
  const idle: Uint8Array[] = [];
  return {
    take: () => idle.pop() ?? new Uint8Array(new ArrayBuffer(bytes)),
    give(buffer) {
      if (idle.length < IDLE_MAX) idle.push(buffer);
    },
  };
}
