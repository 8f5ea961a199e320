/**
 * A role's certificate, key and CA as they are on its disk, for all processes and threads of the role: each looks whether they are other ones when it
 * next needs them, so that whoever renews them need not tell anybody.
 *
 * Invariant: certificate and key change in one rename. A certificate file may hold its key as well, and that one counts; what an enrolment of an earlier
 * version wrote has it in `keyFile` only. `keyFile` is kept for other programs, and may lag behind by a crash.
 */
import { createPrivateKey, X509Certificate } from "node:crypto";
import { readFileSync, statSync } from "node:fs";
import { Fault, isFault } from "#model/fault.ts";
import type { CertificateLife } from "#model/certificate-life.ts";
import type { Log } from "#ports/log.ts";

export interface IdentityFiles {
  readonly certFile: string;
  readonly keyFile: string;
  readonly caFile: string;
}

/** PEM; `ca` may be several. */
export interface LinkCredentials {
  readonly cert: string;
  readonly key: string;
  readonly ca: string;
}

/** What to prove oneself with now. Another object means other credentials. */
export type CredentialSource = () => LinkCredentials;

const ENROL_HINT = "Enrol this role again: `leeward machine enroll`, and `leeward machine redeem` where it runs";

/** Throws CONFIG_INVALID when a file is missing or holds something else, CREDENTIALS_REJECTED when they do not belong together. */
export function readIdentity({ certFile, keyFile, caFile }: IdentityFiles): LinkCredentials {
  const certText = readPem(certFile);
  const cert = blocks(certText, /CERTIFICATE/);
  const key = blocks(certText, /PRIVATE KEY/) || readPem(keyFile);
  const ca = readPem(caFile);
  let belongs: boolean;
  try {
    belongs = new X509Certificate(cert).checkPrivateKey(createPrivateKey(key));
  } catch (cause) {
    throw new Fault("CONFIG_INVALID", `Expected a certificate in "${certFile}" and its key in "${keyFile}"`, {
      cause,
      hint: ENROL_HINT,
    });
  }
  if (!belongs) {
    throw new Fault("CREDENTIALS_REJECTED", `The key in "${keyFile}" is not that of the certificate in "${certFile}"`, {
      hint: ENROL_HINT,
    });
  }
  return { cert, key, ca };
}

/** The first answer throws like `readIdentity`; later ones are the last that were whole. */
export function fileCredentials(files: IdentityFiles, log: Log): CredentialSource {
  let stamp = stampOf(files);
  let held = readIdentity(files);
  return () => {
    const now = stampOf(files);
    if (now === stamp) return held;
    stamp = now;
    try {
      held = readIdentity(files);
    } catch (error) {
      if (!isFault(error)) throw error;
      log.warn("The identity on the disk cannot be used; going on with the one before", { fault: error });
    }
    return held;
  };
}

/** What the certificate's file holds: it and its key, in one. */
export function formatIdentity({ cert, key }: Pick<LinkCredentials, "cert" | "key">): string {
  return `${cert.trim()}\n${key.trim()}\n`;
}

export function lifeOf(cert: string): CertificateLife {
  const { validFromDate, validToDate } = new X509Certificate(cert);
  return { notBeforeMs: validFromDate.getTime(), notAfterMs: validToDate.getTime() };
}

/** Each certificate of a PEM file. */
export function certificatesOf(pem: string): readonly X509Certificate[] {
  return (pem.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? []).map(
    (one) => new X509Certificate(one),
  );
}

function blocks(pem: string, kind: RegExp): string {
  const all = pem.match(/-----BEGIN ([A-Z0-9 ]+)-----[^-]+-----END \1-----/g) ?? [];
  return all.filter((one) => kind.test(one.slice(0, one.indexOf("\n")))).join("\n");
}

function readPem(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch (cause) {
    throw new Fault("CONFIG_INVALID", `Cannot read "${file}": ${(cause as NodeJS.ErrnoException).code ?? "unknown"}`, {
      cause,
      hint: ENROL_HINT,
    });
  }
}

function stampOf({ certFile, caFile }: IdentityFiles): string {
  return [certFile, caFile]
    .map((file) => {
      const { ino, mtimeMs, size } = statSync(file, { throwIfNoEntry: false }) ?? { ino: 0, mtimeMs: 0, size: 0 };
      return `${ino}/${mtimeMs}/${size}`;
    })
    .join(" ");
}
