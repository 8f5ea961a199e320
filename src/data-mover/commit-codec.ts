/**
 * What the commit log must know of a commit, and nothing more: it numbers commits, chains them, and decides which of them
 * count. What is inside them is the container format's business (docs/format.md).
 */

/** Where a commit is to stand; the log decides it, and decides again when the place was taken. */
export interface CommitPlace {
  readonly branch: string;
  readonly epoch: number;
  readonly seq: number;
  /** Hash of the commit before it that counts, 32 hex digits. */
  readonly chain: string;
  /** 16 hex digits, one per opened writer; the first 8 are the life of the process server for which it writes. */
  readonly writerId: string;
}

/** One object, ready to be put as it is, as often as it takes. Sealing again, even for the same place, makes another commit. */
export interface SealedCommit {
  readonly body: Uint8Array | readonly Uint8Array[];
  /** First 16 bytes of SHA-256 over header and index, 32 hex digits. */
  readonly commitHash: string;
}

/** What a commit says of itself. */
export interface CommitHeader {
  readonly kind: "journal" | "fence";
  readonly diskId: string;
  readonly branch: string;
  readonly epoch: number;
  readonly seq: number;
  /** The source's cycle, which is also the number of its barrier; 0 for a fence. */
  readonly cycle: number;
  readonly cutAtMs: number;
  /** The cut is consistent over the group and began with nothing left to sync: a barrier may name it. */
  readonly point: boolean;
  readonly consistency: "crash" | "app";
  /** How many disks of the group have a commit of this cycle (the others were idle). Undefined: every member must have one. */
  readonly cycleDisks?: number;
  readonly chain: string;
  readonly commitHash: string;
  readonly writerId: string;
}

export interface CommitCodec {
  /** A commit without data for this place. */
  sealFence(place: CommitPlace): SealedCommit | Promise<SealedCommit>;
  /** How much of an object `inspect` wants first. */
  readonly firstReadBytes: number;
  /**
   * Header and hash of the commit that begins with `prefix`, or how many bytes from its start are needed.
   * Throws OBJECT_CORRUPT, FORMAT_UNSUPPORTED, KEY_MISSING.
   */
  inspect(prefix: Uint8Array): CommitHeader | { readonly needBytes: number };
}
