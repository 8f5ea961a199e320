/** What control makes for itself once, at its first start, in its state folder (0700, files 0600). */
import { createPrivateKey, createPublicKey, generateKeyPairSync, sign } from "node:crypto";
import { join } from "node:path";
import { Fault } from "#model/fault.ts";
import type { DurableFiles } from "#ports/durable-files.ts";
import type { Random } from "#ports/random.ts";
import { parseBook } from "./enrolment.ts";
import type { ControlSecrets } from "./recovery-key.ts";

/** Where they are below the state folder. */
export const SECRET_FILES = {
  caCert: join("ca", "cert.pem"),
  caKey: join("ca", "key.pem"),
  orderKey: "order-key.pem",
  enrolment: "enrolment.json",
} as const satisfies Record<keyof ControlSecrets, string>;

/** Certificates that roles are to trust beside the CA's own, while one CA takes the place of another: docs/runbook-certificates.md. */
export const ALSO_TRUSTED_FILE = join("ca", "also-trusted.pem");

export interface OrderKey {
  /** PEM, for those who check. */
  readonly publicKey: string;
  /** Ed25519, base64. */
  sign(bytes: Uint8Array): string;
}

/** The bearer token of the API. */
export async function ensureApiToken(
  stateDir: string,
  { files, random }: { readonly files: DurableFiles; readonly random: Random },
): Promise<string> {
  const path = join(stateDir, "api-token");
  const kept = await files.read(path);
  if (kept !== undefined && kept.trim() !== "") return kept.trim();
  const token = Buffer.from(random.bytes(32)).toString("base64url");
  await files.write(path, `${token}\n`);
  return token;
}

export async function ensureOrderKey(stateDir: string, files: DurableFiles): Promise<OrderKey> {
  const path = join(stateDir, SECRET_FILES.orderKey);
  let pem = await files.read(path);
  if (pem === undefined) {
    pem = generateKeyPairSync("ed25519").privateKey.export({ type: "pkcs8", format: "pem" }).toString();
    await files.write(path, pem);
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
  {
    files,
    create,
  }: {
    readonly files: DurableFiles;
    readonly create: () => Promise<{ readonly cert: string; readonly key: string }>;
  },
): Promise<{ readonly cert: string; readonly key: string }> {
  const certPath = join(stateDir, SECRET_FILES.caCert);
  const keyPath = join(stateDir, SECRET_FILES.caKey);
  const [cert, key] = await Promise.all([files.read(certPath), files.read(keyPath)]);
  if (cert !== undefined && key !== undefined) return { cert, key };
  if (cert !== undefined) {
    throw new Fault("CONFIG_INVALID", `The key of the CA is missing: "${keyPath}"`, {
      hint: "Restore it from your copy; a new CA would mean to enrol every role again",
    });
  }
  // A key without its certificate is a first start that was interrupted: nobody has seen it.
  const made = await create();
  await files.write(keyPath, made.key);
  await files.write(certPath, made.cert);
  return made;
}

/** As the files have them, all made by now; of the enrolment book without the tokens, which are of no use to another control. */
export async function readControlSecrets(stateDir: string, files: DurableFiles): Promise<ControlSecrets> {
  const read = async (name: keyof ControlSecrets): Promise<string> =>
    (await files.read(join(stateDir, SECRET_FILES[name]))) ?? "";
  const [caCert, caKey, orderKey, book] = await Promise.all([
    read("caCert"),
    read("caKey"),
    read("orderKey"),
    read("enrolment"),
  ]);
  const { enrolled } = parseBook(book === "" ? undefined : JSON.parse(book));
  return { caCert, caKey, orderKey, enrolment: JSON.stringify({ pending: [], enrolled }) };
}

/** Those of another control take the place of what is here. The CA's certificate last: where it is, the others are. */
export async function writeControlSecrets(
  stateDir: string,
  secrets: ControlSecrets,
  { files }: { readonly files: DurableFiles },
): Promise<void> {
  for (const name of ["caKey", "orderKey", "enrolment", "caCert"] as const)
    await files.write(join(stateDir, SECRET_FILES[name]), secrets[name]);
}

/** Somebody holds a certificate of this CA. */
export function hasEnrolled({ enrolment }: ControlSecrets): boolean {
  return parseBook(JSON.parse(enrolment)).enrolled.length > 0;
}
