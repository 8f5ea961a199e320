/**
 * The installation's certificate authority: one self-signed P-256 certificate, held by `control`, that says who is who (SAN URI
 * leeward://SITE/ROLE/NAME). It signs requests; it never sees another role's key.
 *
 * P-256 and not Ed25519: every TLS library in reach takes it. Roles renew their certificates by themselves (keep-renewed.ts); revocation
 * is a matter of `control` not answering a name any more.
 */
import { webcrypto } from "node:crypto";
import "./reflect-metadata.ts";
import * as x509 from "@peculiar/x509";
import { Fault } from "#model/fault.ts";
import type { PeerIdentity } from "#ports/link.ts";
import type { Random } from "#ports/random.ts";
import { identityUri } from "../link/identity.ts";
import { examineRenewal, readRenewalRequest, signed } from "./renewal-request.ts";

const ALGORITHM = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" } as const;
const DAY_MS = 86_400_000;
const AUTHORITY_DAYS = 3650;
export const CERTIFICATE_DAYS = 397;
/** Clocks of machines differ; a certificate is valid from a little before it was made, and renewed until a little after its end. */
const CLOCK_SKEW_MS = 3_600_000;

x509.cryptoProvider.set(webcrypto);

/** PEM. The key is for `control` alone. */
export interface AuthorityFiles {
  readonly cert: string;
  readonly key: string;
}

export interface Authority {
  /** PEM. */
  readonly cert: string;
  /** SHA-256 of the certificate's DER, hex: what an enrolment may pin. */
  readonly fingerprint: string;
  readonly expiresAtMs: number;
  /** All that roles are to trust: `cert`, and another one while the CA is replaced. Signed by `cert`, base64. */
  readonly trust: { readonly ca: string; readonly caSignature: string };
  /** Whose renewal this is; throws like `examineRenewal`. */
  examine(request: unknown): { readonly identity: PeerIdentity; readonly csr: string };
  /** Throws ENROLMENT_REFUSED unless `csr` is a signed request; names in it are ignored, `identity` is what gets certified. */
  issue(csr: string, identity: PeerIdentity): Promise<string>;
}

export interface AuthorityOptions {
  readonly now: () => number;
  readonly random: Random;
  /** Of the certificates that it issues. Default: 397 days. */
  readonly lifetimeMs?: number;
  /** PEM: trusted as well, while one CA takes the place of another. */
  readonly alsoTrusted?: string;
}

export async function createAuthorityFiles(name: string, options: AuthorityOptions): Promise<AuthorityFiles> {
  const keys = await webcrypto.subtle.generateKey(ALGORITHM, true, ["sign", "verify"]);
  const cert = await x509.X509CertificateGenerator.createSelfSigned({
    serialNumber: serialNumber(options.random),
    name: [{ CN: [`Leeward CA ${name}`] }],
    notBefore: new Date(options.now() - CLOCK_SKEW_MS),
    notAfter: new Date(options.now() + AUTHORITY_DAYS * DAY_MS),
    signingAlgorithm: ALGORITHM,
    keys,
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  });
  return { cert: cert.toString("pem"), key: pem(await webcrypto.subtle.exportKey("pkcs8", keys.privateKey)) };
}

export async function openAuthority(files: AuthorityFiles, options: AuthorityOptions): Promise<Authority> {
  const certificate = new x509.X509Certificate(files.cert);
  const pkcs8 = x509.PemConverter.decodeFirst(files.key);
  const key = await webcrypto.subtle.importKey("pkcs8", pkcs8, ALGORITHM, false, ["sign"]);
  const { lifetimeMs = CERTIFICATE_DAYS * DAY_MS, alsoTrusted = "" } = options;
  const skewMs = Math.min(CLOCK_SKEW_MS, lifetimeMs / 2);
  const ca = [files.cert, alsoTrusted]
    .map((one) => one.trim())
    .filter((one) => one !== "")
    .join("\n");
  const expiresAtMs = certificate.notAfter.getTime();
  return {
    cert: files.cert,
    fingerprint: await certificateFingerprint(files.cert),
    expiresAtMs,
    trust: { ca: `${ca}\n`, caSignature: signed(`${ca}\n`, files.key) },
    examine(value) {
      const request = readRenewalRequest(value);
      return { identity: examineRenewal(request, { ca, nowMs: options.now(), skewMs }), csr: request.csr };
    },
    async issue(csr, identity) {
      const request = await verifiedRequest(csr);
      const issued = await x509.X509CertificateGenerator.create({
        serialNumber: serialNumber(options.random),
        subject: [{ CN: [`${identity.role} ${identity.name}`.slice(0, 64)] }],
        issuer: certificate.subjectName,
        notBefore: new Date(options.now() - skewMs),
        notAfter: new Date(Math.min(options.now() + lifetimeMs, expiresAtMs)),
        signingAlgorithm: ALGORITHM,
        publicKey: request.publicKey,
        signingKey: key,
        extensions: [
          new x509.BasicConstraintsExtension(false, undefined, true),
          new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
          new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth, x509.ExtendedKeyUsage.clientAuth]),
          new x509.SubjectAlternativeNameExtension([{ type: "url", value: identityUri(identity) }]),
          await x509.AuthorityKeyIdentifierExtension.create(certificate),
        ],
      });
      return issued.toString("pem");
    },
  };
}

/** A new key, made where it will be used, and a request to certify it. PEM. */
export async function createKeyAndRequest(
  identity: PeerIdentity,
): Promise<{ readonly key: string; readonly csr: string }> {
  const keys = await webcrypto.subtle.generateKey(ALGORITHM, true, ["sign", "verify"]);
  const request = await x509.Pkcs10CertificateRequestGenerator.create({
    name: [{ CN: [`${identity.role} ${identity.name}`.slice(0, 64)] }],
    keys,
    signingAlgorithm: ALGORITHM,
  });
  return { key: pem(await webcrypto.subtle.exportKey("pkcs8", keys.privateKey)), csr: request.toString("pem") };
}

/** SHA-256 of the certificate's DER, hex. */
export async function certificateFingerprint(cert: string): Promise<string> {
  const digest = await webcrypto.subtle.digest("SHA-256", x509.PemConverter.decodeFirst(cert));
  return Buffer.from(digest).toString("hex");
}

/** The signature shows that whoever asks holds the key. */
async function verifiedRequest(csr: string): Promise<x509.Pkcs10CertificateRequest> {
  let request: x509.Pkcs10CertificateRequest;
  let genuine: boolean;
  try {
    request = new x509.Pkcs10CertificateRequest(csr);
    genuine = await request.verify();
  } catch (error) {
    throw new Fault("ENROLMENT_REFUSED", "Expected a certificate request in PEM", { cause: error });
  }
  if (!genuine) throw new Fault("ENROLMENT_REFUSED", "The certificate request is not signed by its own key");
  return request;
}

/** 127 random bits, positive. */
function serialNumber(random: Random): string {
  const raw = random.bytes(16);
  raw[0]! &= 0x7f;
  raw[0]! |= 0x40; // Never shortened by leading zeroes.
  return Buffer.from(raw).toString("hex");
}

function pem(pkcs8: ArrayBuffer): string {
  return x509.PemConverter.encode(pkcs8, "PRIVATE KEY");
}
