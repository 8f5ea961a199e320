/**
 * Looks at one container without believing anything of it: as far as a CRC, a SHA-256 and its own lengths go without a key, and down to every
 * digest with one.
 */
import { hash } from "node:crypto";
import { Fault, isFault } from "#model/fault.ts";
import type { CommitIndex } from "#model/format/commit-index.ts";
import { toHex } from "#model/format/fields.ts";
import { decodeFooter } from "#model/format/footer.ts";
import { CHAIN_BYTES, decodeHeader, type DecodedHeader, FOOTER_BYTES, HEADER_BYTES } from "#model/format/header.ts";
import { BLOCK_SIZE } from "#model/units.ts";
import { digestCount, DIGEST_BYTES } from "#model/frame-record.ts";
import { digestsHold, frameOpener, openHead, readIndex } from "./container-reader.ts";
import { storeOptions, withRetries, type StoreContext } from "./disk-context.ts";
import type { Keyring } from "./keyring.ts";

export interface ContainerLook {
  readonly key: string;
  /** As LIST says. */
  readonly size: number;
  /** Read all of it, not only its head. */
  readonly whole: boolean;
  /** Without: what needs no key is looked at. */
  readonly keyring: Pick<Keyring, "cipher" | "keyOf"> | undefined;
  /** Undefined when it is not known: then not compared. */
  readonly storeId: string | undefined;
  readonly diskId: string;
}

export interface ContainerState {
  /** Undefined when not even that can be read. */
  readonly header: DecodedHeader | undefined;
  /** SHA-256 over header and index; undefined when they are not there. */
  readonly headSha256: Uint8Array | undefined;
  readonly commitHash: string | undefined;
  readonly index: CommitIndex | undefined;
  /** Nothing in it can be reached: header, index, or the key to them. */
  readonly headFault: Fault | undefined;
  /** Frames that do not hold; empty when none was read. */
  readonly badFrames: ReadonlySet<number>;
  /** Some frame is damaged and it is not known which (no key). */
  readonly bodyFault: Fault | undefined;
  /** Only the footer is damaged, or the object has bytes behind it: nobody who reads points sees that. */
  readonly footerFault: Fault | undefined;
  readonly readBytes: number;
}

const FIRST_READ_BYTES = 64 << 10;

/** Bad bytes are read a second time before they are believed. Throws STORE_…, OBJECT_MISSING when it is gone. */
export async function lookAtContainer(context: StoreContext, look: ContainerLook): Promise<ContainerState> {
  const first = await lookOnce(context, look);
  if (isSound(first)) return first;
  const again = await lookOnce(context, look);
  return { ...again, readBytes: first.readBytes + again.readBytes };
}

function isSound({ headFault, bodyFault, footerFault, badFrames }: ContainerState): boolean {
  return headFault === undefined && bodyFault === undefined && footerFault === undefined && badFrames.size === 0;
}

async function lookOnce(context: StoreContext, look: ContainerLook): Promise<ContainerState> {
  const { key, keyring } = look;
  // What comes with the first read anyway is looked at as well.
  const whole = look.whole || look.size <= FIRST_READ_BYTES;
  const get = (length: number): Promise<Uint8Array> =>
    withRetries(context, () => context.store.get(key, { ...storeOptions(context), range: { offset: 0, length } }));
  let data = await get(whole ? Math.max(look.size, 1) : FIRST_READ_BYTES);
  let readBytes = data.length;
  const state = {
    header: undefined as DecodedHeader | undefined,
    headSha256: undefined as Uint8Array | undefined,
    commitHash: undefined as string | undefined,
    index: undefined as CommitIndex | undefined,
    headFault: undefined as Fault | undefined,
    badFrames: new Set<number>(),
    bodyFault: undefined as Fault | undefined,
    footerFault: undefined as Fault | undefined,
  };
  const done = (): ContainerState => ({ ...state, readBytes });
  try {
    const header = decodeHeader(data);
    state.header = header;
    if (look.storeId !== undefined && header.storeId !== look.storeId) throw bad("it belongs to another store");
    if (header.diskId !== look.diskId) throw bad(`it belongs to disk "${header.diskId}"`);
    const headBytes = HEADER_BYTES + header.indexBytes;
    if (data.length < headBytes && data.length < look.size) {
      data = await get(headBytes);
      readBytes += data.length;
    }
    if (data.length < headBytes) throw bad(`it ends after ${data.length} bytes, in its index`);
    state.headSha256 = hash("sha256", data.subarray(0, headBytes), "buffer");
    state.commitHash = toHex(state.headSha256.subarray(0, CHAIN_BYTES));
    if (keyring !== undefined) {
      const head = openHead(data, keyring);
      if ("needBytes" in head) throw new RangeError("The head is whole");
      state.index = readIndex(head);
    }
  } catch (error) {
    if (!isFault(error)) throw error;
    state.headFault = error;
    return done();
  }
  const { header, headSha256 } = state;
  if (look.size < header.totalBytes) state.bodyFault = bad(`it has ${look.size} bytes instead of ${header.totalBytes}`);
  else if (look.size > header.totalBytes)
    state.footerFault = bad(`it has ${look.size} bytes instead of ${header.totalBytes}`);
  if (whole) checkFooter(state, data, { header, headSha256, sealed: keyring !== undefined });
  if (keyring !== undefined && state.index !== undefined) {
    if (whole) checkFrames(state, data, { header, index: state.index, keyring });
    else if (state.bodyFault !== undefined) markCutOff(state, header, state.index, look.size);
    // Each frame has spoken for itself.
    if (state.badFrames.size === 0) state.footerFault ??= state.bodyFault;
    state.bodyFault = undefined;
  }
  return done();
}

interface OpenState {
  headFault: Fault | undefined;
  bodyFault: Fault | undefined;
  footerFault: Fault | undefined;
  readonly badFrames: Set<number>;
}

function checkFooter(
  state: OpenState,
  data: Uint8Array,
  {
    header,
    headSha256,
    sealed,
  }: { readonly header: DecodedHeader; readonly headSha256: Uint8Array; readonly sealed: boolean },
): void {
  const end = header.totalBytes;
  if (data.length < end) return; // Said already.
  const body = data.subarray(HEADER_BYTES + header.indexBytes, end - FOOTER_BYTES);
  try {
    const footer = decodeFooter(data.subarray(end - FOOTER_BYTES, end));
    if (footer.totalBytes !== end) throw bad(`its footer says ${footer.totalBytes} bytes`);
    if (Buffer.compare(footer.headSha256, headSha256) !== 0) {
      // With a key its seal has said already that the head is sound.
      if (sealed) throw bad("its footer names another head");
      state.headFault = bad("header and index are not what its footer says");
    }
    if (hash("sha256", body, "buffer").compare(footer.bodySha256) !== 0)
      state.bodyFault ??= bad("its frames are not what its footer says");
  } catch (error) {
    if (!isFault(error)) throw error;
    state.footerFault ??= error;
  }
}

/** Frames that lie behind the end of an object that was cut off. */
function markCutOff(state: OpenState, header: DecodedHeader, index: CommitIndex, size: number): void {
  forEachFrame(header, index, ({ frame, offset, length }) => {
    if (offset + length > size) state.badFrames.add(frame);
  });
}

function checkFrames(
  state: OpenState,
  data: Uint8Array,
  container: {
    readonly header: DecodedHeader;
    readonly index: CommitIndex;
    readonly keyring: Pick<Keyring, "cipher" | "keyOf">;
  },
): void {
  const { header, index, keyring } = container;
  const dataKey = keyring.cipher === "none" ? undefined : keyring.keyOf(header.dataKeyId);
  const opener = frameOpener({ ...header, cipher: keyring.cipher, dataKey });
  const [own] = index.directories;
  const plain = new Uint8Array(64 * BLOCK_SIZE);
  let piece = 0;
  forEachFrame(header, index, ({ frame, offset, length }) => {
    const blocks = own!.blocks[frame]!;
    const digests = index.digests.subarray(piece * DIGEST_BYTES, (piece + digestCount(blocks)) * DIGEST_BYTES);
    piece += digestCount(blocks);
    const target = plain.subarray(0, blocks * BLOCK_SIZE);
    try {
      const place = { frame, block: own!.block[frame]!, blocks, codec: own!.codec[frame]! };
      opener.openInto(target, data.subarray(offset, offset + length), place);
      if (!digestsHold(target, digests)) state.badFrames.add(frame);
    } catch (error) {
      if (!isFault(error, "OBJECT_CORRUPT")) throw error;
      state.badFrames.add(frame);
    }
  });
}

function forEachFrame(
  header: DecodedHeader,
  index: CommitIndex,
  visit: (frame: { readonly frame: number; readonly offset: number; readonly length: number }) => void,
): void {
  const directory = index.directories[0]!;
  const tagBytes = header.cipher === "none" ? 0 : 16;
  let offset = HEADER_BYTES + header.indexBytes;
  for (let frame = 0; frame < directory.count; frame++) {
    const length = directory.storedBytes[frame]! + tagBytes;
    visit({ frame, offset, length });
    offset += length;
  }
}

function bad(what: string): Fault {
  return new Fault("OBJECT_CORRUPT", `The object is damaged: ${what}`);
}
