/**
 * zstd for indexes and frames. Every call is synchronous and reuses one context per thread; inputs here are at most a frame
 * (256 KiB) or an index.
 */
import binding from "zstd-napi/binding.js";
import { corrupt } from "#model/format/fields.ts";

const compressor = new binding.CCtx();
const decompressor = new binding.DCtx();

/** Level of indexes: small, and written once a cycle. */
const INDEX_LEVEL = 3;

export function compress(plain: Uint8Array): Uint8Array {
  const target = new Uint8Array(binding.compressBound(plain.length));
  return target.subarray(0, compressor.compress(target, plain, INDEX_LEVEL));
}

/** Throws OBJECT_CORRUPT when `stored` is not one zstd frame that says its size, or holds more than `limit` bytes. */
export function decompress(stored: Uint8Array, limit: number, subject: string): Uint8Array {
  const size = contentSize(stored, subject);
  if (size > limit) throw corrupt(subject, `it would unpack to ${size} bytes`);
  const target = new Uint8Array(size);
  if (decompressInto(target, stored, subject) !== size) throw corrupt(subject, "it unpacks to another length");
  return target;
}

/** Unpacks into `target` and returns the length. Throws OBJECT_CORRUPT, also when it would not fit. */
export function decompressInto(target: Uint8Array, stored: Uint8Array, subject: string): number {
  try {
    return decompressor.decompress(target, stored);
  } catch (cause) {
    throw withCause(subject, cause);
  }
}

function contentSize(stored: Uint8Array, subject: string): number {
  let size: number | null;
  try {
    size = binding.getFrameContentSize(stored);
  } catch (cause) {
    throw withCause(subject, cause);
  }
  if (size === null) throw corrupt(subject, "it does not say its length");
  return size;
}

function withCause(subject: string, cause: unknown): Error {
  const fault = corrupt(subject, `zstd says "${cause instanceof Error ? cause.message : String(cause)}"`);
  fault.cause = cause;
  return fault;
}
