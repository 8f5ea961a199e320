/** Who a certificate speaks for: the one URI among its subject alternative names, leeward://SITE/ROLE/NAME. */
import { Fault } from "#model/fault.ts";
import type { PeerIdentity, Role } from "#ports/link.ts";

export const ROLES = [
  "agent",
  "process-server",
  "master-target",
  "control",
  "worker",
  "cli",
] as const satisfies readonly Role[];

const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/;

/** Site and names: letters, digits, dot, dash, underscore; at most 63; begins with a letter or digit. */
export function isIdentityName(value: string): boolean {
  return NAME.test(value);
}

export function identityUri(identity: PeerIdentity): string {
  return `leeward://${identity.site}/${identity.role}/${identity.name}`;
}

/** Inverse of `identityUri`; undefined for anything else. */
export function parseIdentityUri(uri: string): PeerIdentity | undefined {
  const match = /^leeward:\/\/([^/]+)\/([^/]+)\/([^/]+)$/.exec(uri);
  const [, site = "", role = "", name = ""] = match ?? [];
  const known = ROLES.find((candidate) => candidate === role);
  if (known === undefined || !isIdentityName(site) || !isIdentityName(name)) return undefined;
  return { site, role: known, name };
}

/**
 * From Node's text form of the alternative names ("URI:leeward://…, DNS:…"). Node quotes a name that could be mistaken for another;
 * such names never parse, so quoting cannot smuggle in an identity. Throws CREDENTIALS_REJECTED unless there is exactly one.
 */
export function identityFromAltNames(altNames: string | undefined): PeerIdentity {
  const uris = (altNames ?? "").split(", ").filter((name) => name.startsWith("URI:leeward:"));
  const identity = uris.length === 1 ? parseIdentityUri(uris[0]!.slice("URI:".length)) : undefined;
  if (identity === undefined) {
    throw new Fault(
      "CREDENTIALS_REJECTED",
      `Expected a certificate with one name leeward://SITE/ROLE/NAME, got "${altNames ?? ""}"`,
    );
  }
  return identity;
}
