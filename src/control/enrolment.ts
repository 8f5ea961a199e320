/**
 * Who may join: one-time tokens, and the book of everyone who was ever certified.
 *
 * Invariants:
 * - a token buys one certificate, for the identity it was made out to, before it expires; it is used up before the certificate is given out, so
 *   that two askers at once cannot both have it;
 * - only a hash of a token is kept: whoever reads the state folder cannot enrol with it;
 * - what is answered for a wrong, a used and an expired token is the same.
 */
import { createHash, X509Certificate } from "node:crypto";
import type { CertificateLife } from "#model/certificate-life.ts";
import { Fault } from "#model/fault.ts";
import { readChoice, readList, readName, readObject, readText, readWhole } from "#model/json-reader.ts";
import { formatStateFile, parseStateFile } from "#model/state-file.ts";
import type { Clock } from "#ports/clock.ts";
import type { DurableFiles } from "#ports/durable-files.ts";
import type { PeerIdentity } from "#ports/link.ts";
import type { Log } from "#ports/log.ts";
import type { Random } from "#ports/random.ts";

export const TOKEN_LIFE_MS = 3_600_000;
const ROLES = ["agent", "process-server", "master-target", "control", "worker", "cli"] as const;

/** What signs; see adapters/pki. */
export interface CertificateAuthority {
  readonly cert: string;
  readonly fingerprint: string;
  readonly expiresAtMs: number;
  readonly trust: { readonly ca: string; readonly caSignature: string };
  /** Throws PROTOCOL_INVALID, ENROLMENT_REFUSED, CREDENTIALS_REJECTED, CERTIFICATE_EXPIRED. */
  examine(request: unknown): { readonly identity: PeerIdentity; readonly csr: string };
  issue(csr: string, identity: PeerIdentity): Promise<string>;
}

export interface Enrolment {
  readonly caFingerprint: string;
  issueToken(identity: PeerIdentity): Promise<{ readonly token: string; readonly expiresAtMs: number }>;
  /** PEM. Throws ENROLMENT_REFUSED. */
  redeem(
    token: string,
    csr: string,
  ): Promise<{ readonly identity: PeerIdentity; readonly cert: string; readonly ca: string }>;
  /**
   * The next certificate for who holds a good one. `asker` is who brings the request: the role itself, or the process server of an agent's site.
   * Throws what `examine` throws, PEER_REJECTED, ENROLMENT_REFUSED for a role that is not enrolled (any more), DISK_FULL.
   */
  renew(request: unknown, asker: PeerIdentity): Promise<RenewedCertificate>;
  /** Everyone who was certified, each once. */
  enrolled(): readonly EnrolledIdentity[];
  readonly caExpiresAtMs: number;
}

/** PEM, and control's time; see adapters/pki/renewal-request.ts. */
export interface RenewedCertificate {
  readonly cert: string;
  readonly ca: string;
  readonly caSignature: string;
  readonly nowMs: number;
}

export interface EnrolledIdentity extends PeerIdentity {
  /** Life of its newest certificate; unknown of who was certified before it was noted. */
  readonly life?: CertificateLife;
}

interface Pending {
  readonly hash: string;
  readonly identity: PeerIdentity;
  readonly expiresAtMs: number;
}

export async function openEnrolment(options: {
  readonly file: string;
  readonly files: DurableFiles;
  readonly authority: CertificateAuthority;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  /** Somebody was certified, or certified anew. */
  readonly onEnrolled?: () => void;
}): Promise<Enrolment> {
  const { file, files, authority, clock, random, log } = options;
  const stored = parseBook(
    parseStateFile({ path: file, text: await files.read(file), hint: "Restore the file from a copy" }),
  );
  let pending = stored.pending;
  let enrolled = stored.enrolled;
  let writing: Promise<unknown> = Promise.resolve();

  /** One write at a time, each with the newest state. */
  async function save(): Promise<void> {
    const mine = writing.then(() => files.write(file, formatStateFile({ pending, enrolled })));
    writing = mine.catch(() => undefined); // The next write does not depend on it; this one's caller hears of it.
    await mine;
  }

  /** Durable before it is given out. */
  async function note(identity: PeerIdentity, cert: string): Promise<void> {
    const { validFromDate, validToDate } = new X509Certificate(cert);
    const life = { notBeforeMs: validFromDate.getTime(), notAfterMs: validToDate.getTime() };
    const { site, role, name } = identity;
    const former = enrolled.filter((one) => same(one, identity));
    const others = (): readonly EnrolledIdentity[] => enrolled.filter((one) => !same(one, identity));
    enrolled = [...others(), { site, role, name, life }];
    try {
      await save();
    } catch (error) {
      enrolled = [...others(), ...former]; // Nobody gets that certificate.
      throw error;
    }
    options.onEnrolled?.();
  }

  return {
    caFingerprint: authority.fingerprint,
    caExpiresAtMs: authority.expiresAtMs,
    enrolled: () => enrolled,

    async issueToken(identity) {
      const token = Buffer.from(random.bytes(24)).toString("base64url");
      const expiresAtMs = clock.now() + TOKEN_LIFE_MS;
      pending = [
        ...pending.filter((one) => one.expiresAtMs > clock.now()),
        { hash: hashOf(token), identity, expiresAtMs },
      ];
      await save();
      return { token, expiresAtMs };
    },

    async redeem(token, csr) {
      const hash = hashOf(token);
      const found = pending.find((one) => one.hash === hash && one.expiresAtMs > clock.now());
      if (found === undefined) {
        throw new Fault("ENROLMENT_REFUSED", "The enrolment token is unknown, used up or expired", {
          hint: "Ask for a new one: leeward machine enroll NAME",
        });
      }
      // A request that cannot be certified does not use up the token.
      const cert = await authority.issue(csr, found.identity);
      if (!pending.includes(found))
        throw new Fault("ENROLMENT_REFUSED", "The enrolment token was used by somebody else just now");
      pending = pending.filter((one) => one !== found);
      await note(found.identity, cert);
      log.info("A role was enrolled", { identity: found.identity });
      return { identity: found.identity, cert, ca: authority.trust.ca };
    },

    async renew(request, asker) {
      const { identity, csr } = authority.examine(request);
      const carries = asker.role === "process-server" && identity.role === "agent" && asker.site === identity.site;
      if (!same(asker, identity) && !carries) {
        throw new Fault(
          "PEER_REJECTED",
          `${asker.role} "${asker.name}" of site "${asker.site}" asks for a certificate of ${identity.role} "${identity.name}" of site "${identity.site}"`,
        );
      }
      if (!enrolled.some((one) => same(one, identity))) {
        throw new Fault("ENROLMENT_REFUSED", `${identity.role} "${identity.name}" is not enrolled here (any more)`, {
          hint: "Enrol it with a new one-time token, if it belongs here: `leeward machine enroll`",
        });
      }
      const cert = await authority.issue(csr, identity);
      await note(identity, cert);
      log.info("A certificate was renewed", { identity });
      return { cert, ...authority.trust, nowMs: clock.now() };
    },
  };
}

function hashOf(token: string): string {
  return createHash("sha256").update(token).digest("hex");
}

function same(one: PeerIdentity, other: PeerIdentity): boolean {
  return one.site === other.site && one.role === other.role && one.name === other.name;
}

/** Throws PROTOCOL_INVALID. */
export function parseBook(json: unknown): {
  readonly pending: readonly Pending[];
  readonly enrolled: readonly EnrolledIdentity[];
} {
  if (json === undefined) return { pending: [], enrolled: [] };
  const book = readObject(json, "enrolment");
  const identityOf = (fields: Readonly<Record<string, unknown>>): PeerIdentity => ({
    site: readName(fields, "site"),
    role: readChoice(fields, "role", ROLES),
    name: readName(fields, "name"),
  });
  return {
    pending: readList(book, "pending", (one) => ({
      hash: readText(one, "hash"),
      identity: identityOf(readObject(one["identity"], "identity")),
      expiresAtMs: readWhole(one, "expiresAtMs"),
    })),
    enrolled: readList(book, "enrolled", (one) => ({ ...identityOf(one), ...lifeOf(one["life"]) })),
  };
}

function lifeOf(value: unknown): Pick<EnrolledIdentity, "life"> {
  if (value === undefined) return {};
  const fields = readObject(value, "life");
  return { life: { notBeforeMs: readWhole(fields, "notBeforeMs"), notAfterMs: readWhole(fields, "notAfterMs") } };
}
