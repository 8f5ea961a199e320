/**
 * Looks at the small JSON objects of a store. Most have no checksum of their own, so each is held against what else says the same: its name, its
 * neighbours, the commits that it names; and its bytes against what a writer makes of what they say.
 */
import { isFault, type Fault } from "#model/fault.ts";
import { canonicalJson } from "#model/format/json-record.ts";
import type { DiskNames } from "#model/format/object-names.ts";
import { decodeDiskClaim, encodeDiskClaim, type DiskClaim } from "#model/format/records.ts";
import { CANARY_ID, decodeWrappedKey, encodeWrappedKey } from "#model/format/wrapped-key.ts";
import type { Findings, ObjectKind } from "./check-findings.ts";
import { listNumbers } from "./claims.ts";
import { readIfThere, type StoreContext } from "./disk-context.ts";
import type { Keyring } from "./keyring.ts";

export interface RecordRules<Value> {
  readonly kind: ObjectKind;
  readonly more?: { readonly diskId?: string; readonly branch?: string };
  readonly decode: (data: Uint8Array) => Value;
  /** What a writer makes of it; a byte that differs is one that no writer wrote. */
  readonly encode?: (value: Value) => Uint8Array;
  /** What is wrong with it in this place, as a sentence. */
  readonly wrong?: (value: Value) => string | undefined;
}

export interface CheckRecords {
  /** `record` undefined: missing or damaged, and `finding` says so. */
  read<Value>(
    key: string,
    rules: RecordRules<Value>,
  ): Promise<{ readonly record: Value | undefined; readonly finding: number | undefined }>;
  /** Epochs that have a claim, damaged ones included. */
  diskClaims(names: DiskNames, diskId: string): Promise<ReadonlySet<number>>;
  keys(
    names: DiskNames,
    disk: { readonly diskId: string; readonly keyring: Keyring | undefined; readonly storeId: string | undefined },
  ): Promise<void>;
}

export function checkRecords(context: StoreContext, findings: Findings): CheckRecords {
  const readOnce = async <Value>(
    key: string,
    rules: RecordRules<Value>,
  ): Promise<{ record: Value } | { fault: Fault | string } | undefined> => {
    const data = await readIfThere(context, key);
    if (data === undefined) return undefined;
    try {
      const record = rules.decode(data);
      const wrong = rules.wrong?.(record);
      return wrong === undefined ? { record } : { fault: wrong };
    } catch (error) {
      if (!isFault(error)) throw error;
      return { fault: error };
    }
  };

  const records: CheckRecords = {
    async read(key, rules) {
      const { kind, more = {} } = rules;
      let found = await readOnce(key, rules);
      if (found !== undefined && "fault" in found) found = await readOnce(key, rules); // Not believed before it is read twice.
      if (found === undefined)
        return {
          record: undefined,
          finding: findings.add({ code: "OBJECT_MISSING", kind, key, message: "It is missing", ...more }),
        };
      if ("fault" in found) {
        const { fault } = found;
        const told =
          typeof fault === "string"
            ? { code: "OBJECT_CORRUPT" as const, message: fault }
            : { code: fault.code, message: fault.message };
        return { record: undefined, finding: findings.add({ ...told, kind, key, ...more }) };
      }
      if (rules.encode !== undefined) {
        const data = await readIfThere(context, key);
        if (data !== undefined && !isAsWritten(data, rules.encode(found.record))) {
          const message = "It has members or bytes that this version does not write: a newer version's, or damage";
          findings.add({ level: "notice", code: "OBJECT_CORRUPT", kind, key, message, ...more });
        }
      }
      return { record: found.record, finding: undefined };
    },

    async diskClaims(names, diskId) {
      const epochs = await listNumbers(context, names.epochs);
      let before: DiskClaim | undefined;
      let expected = 1;
      for (const epoch of epochs) {
        for (; expected < epoch; expected++) {
          const message = `The claim of epoch ${expected} is missing, and claims are never deleted`;
          findings.add({ code: "OBJECT_MISSING", kind: "disk-claim", key: names.epoch(expected), message, diskId });
        }
        expected = epoch + 1;
        const key = names.epoch(epoch);
        const { record } = await records.read(key, {
          kind: "disk-claim",
          more: { diskId },
          decode: (data) => decodeDiskClaim(data, key),
          encode: encodeDiskClaim,
          wrong: (claim) => wrongClaim(claim, epoch, before),
        });
        before = record ?? before;
      }
      return new Set(epochs);
    },

    async keys(names, { diskId, keyring, storeId }) {
      let canary = false;
      for await (const { key } of context.store.list(names.keys)) {
        const keyId = key.slice(names.keys.length);
        canary ||= keyId === CANARY_ID;
        await records.read(key, {
          kind: "key",
          more: { diskId },
          decode: (data) => decodeWrappedKey(data, key),
          encode: encodeWrappedKey,
          wrong(record) {
            if (record.keyId !== keyId || record.diskId !== diskId)
              return `It is key "${record.keyId}" of disk "${record.diskId}"`;
            if (storeId !== undefined && record.storeId !== storeId) return `It belongs to store "${record.storeId}"`;
            if (keyring !== undefined && !keyring.opens(record)) return "It does not open with the disk's key";
            return undefined;
          },
        });
      }
      if (canary) return;
      const message =
        "The canary is missing: a wrong disk key is not told from a damaged object until a data key opens";
      findings.add({ code: "OBJECT_MISSING", kind: "key", key: names.key(CANARY_ID), message, diskId });
    },
  };
  return records;
}

/** The same members with the same values, in whatever order, and no byte that says nothing. */
function isAsWritten(data: Uint8Array, written: Uint8Array): boolean {
  const value: unknown = JSON.parse(Buffer.from(data).toString());
  const plain = JSON.stringify(value) === Buffer.from(data).toString();
  return plain && canonicalJson(value) === canonicalJson(JSON.parse(Buffer.from(written).toString()));
}

function wrongClaim(claim: DiskClaim, epoch: number, before: DiskClaim | undefined): string | undefined {
  if (claim.epoch !== epoch) return `It is the claim of epoch ${claim.epoch}`;
  if (before === undefined) return undefined;
  if (claim.groupEpoch < before.groupEpoch)
    return `Its group epoch ${claim.groupEpoch} is lower than ${before.groupEpoch} before it`;
  if (claim.groupEpoch === before.groupEpoch && claim.activeSite !== before.activeSite)
    return `It names site "${claim.activeSite}", and the claim before it, of the same move, "${before.activeSite}"`;
  return undefined;
}
