/**
 * Who may join: one-time tokens, and the book of everyone who was ever certified.
 *
 * Invariants:
 * - a token buys one certificate, for the identity it was made out to, before it expires; it is used up before the certificate is given out, so
 *   that two askers at once cannot both have it;
 * - only a hash of a token is kept: whoever reads the state folder cannot enrol with it;
 * - what is answered for a wrong, a used and an expired token is the same.
 */
import { createHash } from "node:crypto";
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
  /** Everyone who was certified, each once. */
  enrolled(): readonly PeerIdentity[];
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
  /** Somebody was certified who was not before. */
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

  return {
    caFingerprint: authority.fingerprint,
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
      enrolled = [...enrolled.filter((one) => !same(one, found.identity)), found.identity];
      await save();
      log.info("A role was enrolled", { identity: found.identity });
      options.onEnrolled?.();
      return { identity: found.identity, cert, ca: authority.cert };
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
  readonly enrolled: readonly PeerIdentity[];
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
    enrolled: readList(book, "enrolled", identityOf),
  };
}
