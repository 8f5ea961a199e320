/**
 * The recovery key, and what it seals: CA, order key and the book of who is enrolled, so that a lost control costs nobody an enrolment.
 *
 * The key is made at control's first start and kept in one file, for a person to copy to a place of its own. With it and the bucket another control
 * takes over; without it every role is enrolled again, and nothing else is lost. A master target keeps the sealed copy and cannot open it: it has the
 * bucket, and never this key.
 *
 * Source: docs/format.md, "The control plane"; docs/decisions/0017-control-terms.md.
 */
import { createCipheriv, createDecipheriv, createHmac, hkdfSync } from "node:crypto";
import { Fault } from "#model/fault.ts";
import {
  sealedKeysBinding,
  type ControlTerm,
  type SealedKeysHead,
  type SealedKeysRecord,
} from "#model/format/control-records.ts";
import { readObject, readText } from "#model/json-reader.ts";
import type { DurableFiles } from "#ports/durable-files.ts";
import type { Random } from "#ports/random.ts";

/** So that a person who finds one knows what it is. */
const PREFIX = "leeward-recovery-";
const KEY_BYTES = 32;
const TAG_BYTES = 16;

/** What control cannot make again. PEM, and the enrolment book's JSON as it is. */
export interface ControlSecrets {
  readonly caCert: string;
  readonly caKey: string;
  readonly orderKey: string;
  readonly enrolment: string;
}

/** Made when there is none. `made`: nobody has a copy of it yet. Throws KEY_REJECTED when the file holds something else. */
export async function ensureRecoveryKey(
  file: string,
  { files, random }: { readonly files: DurableFiles; readonly random: Random },
): Promise<{ readonly key: Uint8Array; readonly made: boolean }> {
  const kept = await files.read(file);
  if (kept !== undefined) return { key: parseRecoveryKey(kept, file), made: false };
  const key = random.bytes(KEY_BYTES);
  await files.write(file, `${formatRecoveryKey(key)}\n`);
  return { key, made: true };
}

export function formatRecoveryKey(key: Uint8Array): string {
  return PREFIX + Buffer.from(key).toString("base64url");
}

/** Throws KEY_REJECTED for what is no recovery key; the text is not repeated. */
export function parseRecoveryKey(text: string, where: string): Uint8Array {
  const trimmed = text.trim();
  const key = trimmed.startsWith(PREFIX) ? Buffer.from(trimmed.slice(PREFIX.length), "base64url") : undefined;
  if (key?.length === KEY_BYTES) return new Uint8Array(key);
  throw new Fault("KEY_REJECTED", `"${where}" holds no recovery key, expected "${PREFIX}" and 43 characters`, {
    hint: "Give the file that control made at its first start, or your copy of it.",
  });
}

export function sealControlKeys(
  secrets: ControlSecrets,
  options: ControlTerm & { readonly recoveryKey: Uint8Array; readonly createdAtMs: number; readonly random: Random },
): SealedKeysRecord {
  const { recoveryKey, controlId, controlEpoch, createdAtMs, random } = options;
  const { caCert, caKey, orderKey, enrolment } = secrets;
  const plain = Buffer.from(JSON.stringify({ caCert, caKey, orderKey, enrolment }));
  const salt = random.bytes(32);
  const nonce = random.bytes(12);
  const head: SealedKeysHead = {
    controlId,
    controlEpoch,
    createdAtMs,
    mark: createHmac("sha256", derive(recoveryKey, new Uint8Array(), "mark"))
      .update(plain)
      .digest("hex"),
    cipher: "aes-256-gcm",
    salt: Buffer.from(salt).toString("hex"),
    nonce: Buffer.from(nonce).toString("hex"),
  };
  const cipher = createCipheriv("aes-256-gcm", derive(recoveryKey, salt, "seal"), nonce);
  cipher.setAAD(sealedKeysBinding(head));
  const sealed = Buffer.concat([cipher.update(plain), cipher.final(), cipher.getAuthTag()]);
  return { ...head, sealed: sealed.toString("hex") };
}

/** Throws KEY_REJECTED when `recoveryKey` is another one, or the copy was changed. */
export function openControlKeys(record: SealedKeysRecord, recoveryKey: Uint8Array): ControlSecrets {
  const sealed = Buffer.from(record.sealed, "hex");
  const key = derive(recoveryKey, Buffer.from(record.salt, "hex"), "seal");
  const decipher = createDecipheriv("aes-256-gcm", key, Buffer.from(record.nonce, "hex"), { authTagLength: TAG_BYTES });
  decipher.setAAD(sealedKeysBinding(record));
  decipher.setAuthTag(sealed.subarray(-TAG_BYTES));
  const plain = decipher.update(sealed.subarray(0, -TAG_BYTES));
  try {
    decipher.final();
  } catch (cause) {
    throw new Fault("KEY_REJECTED", "The recovery key does not open the sealed copy of control's keys", {
      cause,
      hint: "Look for the copy of the recovery key of this installation; without it, adopt with --new-ca and enrol every role again.",
    });
  }
  const fields = readObject(JSON.parse(plain.toString("utf8")), "keys");
  return {
    caCert: readText(fields, "caCert"),
    caKey: readText(fields, "caKey"),
    orderKey: readText(fields, "orderKey"),
    enrolment: String(fields["enrolment"]), // Longer than `readText` allows; the enrolment book checks it.
  };
}

function derive(key: Uint8Array, salt: Uint8Array, purpose: "seal" | "mark"): Uint8Array {
  return new Uint8Array(hkdfSync("sha256", key, salt, `leeward/1/control-keys/${purpose}`, KEY_BYTES));
}
