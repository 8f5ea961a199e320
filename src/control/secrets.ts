/** What control makes for itself once, at its first start, in its state folder (0700, files 0600). */
import { createPrivateKey, createPublicKey, generateKeyPairSync, sign } from "node:crypto";
import { join } from "node:path";
import { Fault } from "#model/fault.ts";
import type { Random } from "#ports/random.ts";
import { readIfThere, writeDurable } from "./durable-file.ts";

export interface OrderKey {
  /** PEM, for those who check. */
  readonly publicKey: string;
  /** Ed25519, base64. */
  sign(bytes: Uint8Array): string;
}

/** The bearer token of the API. */
export async function ensureApiToken(stateDir: string, random: Random): Promise<string> {
  const path = join(stateDir, "api-token");
  const kept = await readIfThere(path);
  if (kept !== undefined && kept.trim() !== "") return kept.trim();
  const token = Buffer.from(random.bytes(32)).toString("base64url");
  await writeDurable(path, `${token}\n`);
  return token;
}

export async function ensureOrderKey(stateDir: string): Promise<OrderKey> {
  const path = join(stateDir, "order-key.pem");
  let pem = await readIfThere(path);
  if (pem === undefined) {
    pem = generateKeyPairSync("ed25519").privateKey.export({ type: "pkcs8", format: "pem" }).toString();
    await writeDurable(path, pem);
  }
  const key = createPrivateKey(pem);
  return {
    publicKey: createPublicKey(key).export({ type: "spki", format: "pem" }).toString(),
    sign: (bytes) => sign(null, bytes, key).toString("base64"),
  };
}

/** The CA's files, made by `create` at the first start. Throws CONFIG_INVALID when only the certificate is left: it must not be replaced silently. */
export async function ensureAuthorityFiles(
  stateDir: string,
  create: () => Promise<{ readonly cert: string; readonly key: string }>,
): Promise<{ readonly cert: string; readonly key: string }> {
  const certPath = join(stateDir, "ca", "cert.pem");
  const keyPath = join(stateDir, "ca", "key.pem");
  const [cert, key] = await Promise.all([readIfThere(certPath), readIfThere(keyPath)]);
  if (cert !== undefined && key !== undefined) return { cert, key };
  if (cert !== undefined) {
    throw new Fault("CONFIG_INVALID", `The key of the CA is missing: "${keyPath}"`, {
      hint: "Restore it from your copy; a new CA would mean to enrol every role again",
    });
  }
  // A key without its certificate is a first start that was interrupted: nobody has seen it.
  const made = await create();
  await writeDurable(keyPath, made.key);
  await writeDurable(certPath, made.cert);
  return made;
}
