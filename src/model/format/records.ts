/**
 * The small JSON objects of a replica store: what they say, and codecs that believe nothing.
 *
 * Every record is one JSON object in UTF-8 with `"format": 1`. A reader ignores members that it does not know and refuses a higher
 * `format`. Numbers are safe integers; hashes are hex. A record is created once and never changed.
 *
 * Source: docs/format.md, "Records".
 */
import { Fault } from "../fault.ts";
import { isName, isUuid } from "./fields.ts";
import { MAX_BRANCH_ID_LENGTH, MAX_DISK_ID_LENGTH } from "./header.ts";
import { damagedRecord, decodeRecord, encodeRecord, memberObject, recordFields } from "./json-record.ts";
import { decodeMacRecord, encodeMacRecord, type Mac } from "./mac-record.ts";
import type { JsonObject } from "../json.ts";

/** `store.json`: this prefix is a replica store. */
export interface StoreRecord {
  readonly storeId: string;
  /** Names of features without which the store must not be read; version 1 knows none. */
  readonly features: readonly string[];
  readonly createdAtMs: number;
}

/** `disks/{disk}/epochs/{epoch}`: who may write the disk from this epoch on. */
export interface DiskClaim {
  readonly epoch: number;
  readonly activeSite: string;
  readonly branch: string;
  /** The disk is being taken for `activeSite`, and nobody may write it until a later claim ends that. */
  readonly moving?: boolean;
  /** The group's term under which it was taken. */
  readonly groupEpoch: number;
  /** Operation id: the same operation, repeated, recognises its own claim. */
  readonly operation: string;
  /** Writer id of the process, for people to read. */
  readonly holder: string;
  readonly claimedAtMs: number;
}

/** `groups/{group}/epochs/{epoch}`: where the group is active from this term on. Disk claims carry its number. */
export interface GroupClaim {
  readonly groupEpoch: number;
  readonly activeSite: string;
  readonly branch: string;
  readonly disks: readonly string[];
  readonly operation: string;
  readonly holder: string;
  readonly claimedAtMs: number;
}

export type BranchReason = "root" | "failover" | "changed-point" | "reprotect" | "side";

/** `branches/{b}/origin.json`: what the branch starts from. `parent` is missing for `root` only. */
export interface BranchOrigin {
  readonly branch: string;
  readonly reason: BranchReason;
  /** State of the parent that the branch begins with: its commits up to `seq`, whose hash is `commitHash` (32 hex digits). */
  readonly parent?: { readonly branch: string; readonly seq: number; readonly commitHash: string };
  readonly operation: string;
  readonly createdAtMs: number;
}

/** A disk's state at a barrier. `seq` 0: the disk has no commit on that branch, and begins as its parent (or all zeroes). */
export interface BarrierMember {
  readonly diskId: string;
  readonly branch: string;
  readonly epoch: number;
  readonly seq: number;
  /** 32 hex digits. */
  readonly commitHash: string;
}

/** `groups/{group}/barriers/{barrier}`: one cut over all disks of a group. */
export interface BarrierRecord {
  readonly barrier: number;
  readonly groupId: string;
  readonly groupEpoch: number;
  readonly cutAtMs: number;
  readonly consistency: "crash" | "app";
  readonly members: readonly BarrierMember[];
}

/** `groups/{group}/points/{id}`: a point that is kept, with all that is needed to restore it. */
export interface PointRecord {
  readonly barrier: BarrierRecord;
  readonly kind: "bookmark" | "retention";
  readonly name: string;
  readonly reasonKept: string;
  readonly operation: string;
  readonly createdAtMs: number;
}

export const encodeStoreRecord = (record: StoreRecord): Uint8Array => encodeRecord(record);
export const encodeDiskClaim = (record: DiskClaim): Uint8Array => encodeRecord(record);
export const encodeGroupClaim = (record: GroupClaim): Uint8Array => encodeRecord(record);
export const encodeBranchOrigin = (record: BranchOrigin): Uint8Array => encodeRecord(record);
export const encodeBarrier = (record: BarrierRecord): Uint8Array => encodeRecord(record);

/** All decoders throw OBJECT_CORRUPT for what no writer made, FORMAT_UNSUPPORTED for a newer format. `key` goes into the message. */
export function decodeStoreRecord(data: Uint8Array, key: string): StoreRecord {
  const read = recordFields(decodeRecord(data, key), key);
  const features = read.list("features", (value) => (typeof value === "string" ? value : undefined));
  if (features.length > 0) {
    throw new Fault(
      "FORMAT_UNSUPPORTED",
      `The store needs features that this program does not know: "${features.join('", "')}"`,
      {
        details: { key },
        hint: "Read it with the version of Leeward that wrote it, or a newer one.",
      },
    );
  }
  return { storeId: read.text("storeId", isUuid), features, createdAtMs: read.number("createdAtMs") };
}

export function decodeDiskClaim(data: Uint8Array, key: string): DiskClaim {
  const json = decodeRecord(data, key);
  const read = recordFields(json, key);
  return {
    epoch: read.number("epoch", 1),
    activeSite: read.text("activeSite"),
    branch: read.text("branch", isBranchId),
    ...(json["moving"] === true && { moving: true }),
    groupEpoch: read.number("groupEpoch"),
    operation: read.text("operation"),
    holder: read.text("holder"),
    claimedAtMs: read.number("claimedAtMs"),
  };
}

export function decodeGroupClaim(data: Uint8Array, key: string): GroupClaim {
  const read = recordFields(decodeRecord(data, key), key);
  return {
    groupEpoch: read.number("groupEpoch", 1),
    activeSite: read.text("activeSite"),
    branch: read.text("branch", isBranchId),
    disks: read.list("disks", (value) => (typeof value === "string" && isDiskId(value) ? value : undefined)),
    operation: read.text("operation"),
    holder: read.text("holder"),
    claimedAtMs: read.number("claimedAtMs"),
  };
}

const REASONS: readonly string[] = ["root", "failover", "changed-point", "reprotect", "side"] satisfies BranchReason[];

export function decodeBranchOrigin(data: Uint8Array, key: string): BranchOrigin {
  const json = decodeRecord(data, key);
  const read = recordFields(json, key);
  const origin = {
    branch: read.text("branch", isBranchId),
    // The check has just compared it with the list of all reasons.
    reason: read.text("reason", (text) => REASONS.includes(text)) as BranchReason,
    operation: read.text("operation"),
    createdAtMs: read.number("createdAtMs"),
  };
  if (json["parent"] === undefined) {
    if (origin.reason !== "root") throw damagedRecord(key, "a branch other than root has no parent");
    return origin;
  }
  const parent = recordFields(memberObject(json["parent"], key, "parent"), key);
  return {
    ...origin,
    parent: {
      branch: parent.text("branch", isBranchId),
      seq: parent.number("seq"),
      commitHash: parent.text("commitHash", isCommitHash),
    },
  };
}

export function decodeBarrier(data: Uint8Array, key: string): BarrierRecord {
  return barrierFrom(decodeRecord(data, key), key);
}

export const encodePoint = (record: PointRecord, mac: Mac): Uint8Array => encodeMacRecord(record, mac);

/** Throws also OBJECT_CORRUPT when the MAC does not hold: someone without the key changed or made it. */
export function decodePoint(data: Uint8Array, key: string, mac: Mac): PointRecord {
  const json = decodeMacRecord(data, key, mac);
  const read = recordFields(json, key);
  return {
    barrier: barrierFrom(memberObject(json["barrier"], key, "barrier"), key),
    // The check has just compared it with the list of all kinds.
    kind: read.text("kind", (text) => text === "bookmark" || text === "retention") as PointRecord["kind"],
    name: read.text("name", () => true),
    reasonKept: read.text("reasonKept", () => true),
    operation: read.text("operation"),
    createdAtMs: read.number("createdAtMs"),
  };
}

function barrierFrom(json: JsonObject, key: string): BarrierRecord {
  const read = recordFields(json, key);
  return {
    barrier: read.number("barrier", 1),
    groupId: read.text("groupId"),
    groupEpoch: read.number("groupEpoch"),
    cutAtMs: read.number("cutAtMs"),
    // The check has just compared it with both.
    consistency: read.text("consistency", (text) => text === "crash" || text === "app") as BarrierRecord["consistency"],
    members: read.list("members", (value) => {
      const member = recordFields(memberObject(value, key, "member"), key);
      return {
        diskId: member.text("diskId", isDiskId),
        branch: member.text("branch", isBranchId),
        epoch: member.number("epoch"),
        seq: member.number("seq"),
        commitHash: member.text("commitHash", isCommitHash),
      };
    }),
  };
}

export const isDiskId = (text: string): boolean => isName(text, MAX_DISK_ID_LENGTH);
export const isBranchId = (text: string): boolean => isName(text, MAX_BRANCH_ID_LENGTH);
export const isCommitHash = (text: string): boolean => /^[0-9a-f]{32}$/.test(text);
