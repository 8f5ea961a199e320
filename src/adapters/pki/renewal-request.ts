/**
 * A renewal proves itself: the request for the next certificate is signed with the key of the one before. So it does not matter who carries it (an
 * agent's goes through its process server), and whoever keeps a copy of it has nothing.
 *
 * The answer proves itself too: the certificates to trust from now on are signed by a CA that is trusted already.
 */
import { createPrivateKey, createPublicKey, sign, verify, X509Certificate } from "node:crypto";
import { Fault } from "#model/fault.ts";
import { readNumber, readObject, readText } from "#model/json-reader.ts";
import type { JsonValue } from "#model/json.ts";
import type { PeerIdentity } from "#ports/link.ts";
import { identityFromAltNames, identityUri } from "../link/identity.ts";
import { certificatesOf, type LinkCredentials } from "./identity-files.ts";

/** PEM, and the signature in base64. */
export interface RenewalRequest {
  readonly cert: string;
  readonly csr: string;
  readonly signature: string;
}

export interface RenewalAnswer {
  readonly cert: string;
  /** All to trust from now on. */
  readonly ca: string;
  /** Over `ca`, by the CA that signs now. */
  readonly caSignature: string;
  /** Control's time. */
  readonly nowMs: number;
}

const PURPOSE = "leeward/1/renewal\n";

export function signRenewal(held: Pick<LinkCredentials, "cert" | "key">, csr: string): RenewalRequest {
  return { cert: held.cert, csr, signature: signed(PURPOSE + csr, held.key) };
}

export function signed(text: string, key: string): string {
  return sign("sha256", Buffer.from(text), createPrivateKey(key)).toString("base64");
}

/**
 * Whose certificate it is that asks. Throws ENROLMENT_REFUSED for what is no request, CREDENTIALS_REJECTED when it is not of one of `cas` or not signed
 * with its key, CERTIFICATE_EXPIRED.
 */
export function examineRenewal(
  { cert, csr, signature }: RenewalRequest,
  { ca, nowMs, skewMs }: { readonly ca: string; readonly nowMs: number; readonly skewMs: number },
): PeerIdentity {
  let former: X509Certificate;
  try {
    former = new X509Certificate(cert);
  } catch (cause) {
    throw new Fault("ENROLMENT_REFUSED", "Expected a certificate in a request for its renewal", { cause });
  }
  const hint = "Enrol it again with a new one-time token: `leeward machine enroll`";
  if (!certificatesOf(ca).some((one) => former.verify(one.publicKey)))
    throw new Fault("CREDENTIALS_REJECTED", "The certificate to be renewed is not of this installation's CA", { hint });
  const identity = identityFromAltNames(former.subjectAltName);
  if (!verify("sha256", Buffer.from(PURPOSE + csr), former.publicKey, Buffer.from(signature, "base64"))) {
    throw new Fault(
      "CREDENTIALS_REJECTED",
      `A renewal for "${identityUri(identity)}" is not signed with the key of its certificate`,
      { hint },
    );
  }
  if (nowMs > former.validToDate.getTime() + skewMs) {
    throw new Fault(
      "CERTIFICATE_EXPIRED",
      `The certificate of "${identityUri(identity)}" expired at ${former.validToDate.toISOString()}, too long ago to be renewed`,
      { hint },
    );
  }
  return identity;
}

/** Throws PROTOCOL_INVALID. */
export function readRenewalRequest(value: unknown): RenewalRequest {
  const fields = readObject(value, "request");
  return { cert: readText(fields, "cert"), csr: readText(fields, "csr"), signature: readText(fields, "signature") };
}

/** Throws PROTOCOL_INVALID. */
export function readRenewalAnswer(value: JsonValue): RenewalAnswer {
  const fields = readObject(value, "answer");
  const ca = fields["ca"]; // Longer than `readText` allows while two are trusted.
  return {
    cert: readText(fields, "cert"),
    ca: typeof ca === "string" ? ca : "",
    caSignature: readText(fields, "caSignature"),
    nowMs: readNumber(fields, "nowMs"),
  };
}

/**
 * Throws ENROLMENT_REFUSED unless `cert` is of one of `ca`, for this key and this identity. `ca` itself is taken on trust: see `checkTrust`.
 */
export function checkIssued(
  { cert, ca }: { readonly cert: string; readonly ca: string },
  expected: { readonly identity: PeerIdentity; readonly key: string },
): void {
  const certificate = new X509Certificate(cert);
  if (
    !certificatesOf(ca).some((one) => certificate.verify(one.publicKey)) ||
    !certificate.publicKey.equals(createPublicKey(expected.key))
  ) {
    throw new Fault("ENROLMENT_REFUSED", "The certificate that came back is not for our key, or not of that CA");
  }
  const certified = identityFromAltNames(certificate.subjectAltName);
  if (identityUri(certified) !== identityUri(expected.identity)) {
    throw new Fault(
      "ENROLMENT_REFUSED",
      `The certificate is for "${identityUri(certified)}", not for "${identityUri(expected.identity)}"`,
      { hint: "Ask for a token with this site, role and name; this one is used up" },
    );
  }
}

/** Throws CREDENTIALS_REJECTED when nobody who is trusted (`known`) says that `ca` is to be. */
export function checkTrust({ ca, caSignature }: RenewalAnswer, known: string): void {
  if (ca === known) return;
  const said = Buffer.from(caSignature, "base64");
  if (certificatesOf(known).some((one) => verify("sha256", Buffer.from(ca), one.publicKey, said))) return;
  throw new Fault(
    "CREDENTIALS_REJECTED",
    "The CA that came with a renewed certificate is not vouched for by a known one",
    {
      hint: "If the CA was replaced on purpose, enrol this role again with a new one-time token",
    },
  );
}
