/**
 * A role's enrolment, on its own machine: the key is made here and never leaves; the one-time token buys a certificate for exactly the site, role
 * and name that it was made out to.
 */
import { createPublicKey } from "node:crypto";
import { join } from "node:path";
import { Fault, faultFromJson } from "#model/fault.ts";
import type { PeerIdentity, Role } from "#ports/link.ts";
import { isIdentityName, ROLES } from "../link/identity.ts";
import { createDurableFiles } from "../file/durable-files.ts";
import { certificateFingerprint, createKeyAndRequest } from "./authority.ts";
import { formatIdentity } from "./identity-files.ts";
import { checkIssued } from "./renewal-request.ts";

const ENROL_MS = 30_000;
const files = createDurableFiles({
  fullHint: "Free space for the identity, and enrol again with a new one-time token",
});

export interface EnrolOptions {
  /** http(s)://HOST:PORT of control's API. */
  readonly apiUrl: string;
  readonly token: string;
  /** SHA-256 of the CA's certificate, hex, as shown beside the token. Left out, whoever answers at `apiUrl` is trusted this once. */
  readonly caFingerprint?: string;
  readonly site: string;
  readonly role: string;
  readonly name: string;
  /** Gets cert.pem, key.pem, ca.pem and order-key.pem, all 0600; cert.pem last, and with the key in it, so that where it is the others are. */
  readonly dir: string;
}

/** Throws USAGE for a name that is none, ENROLMENT_REFUSED (token, names or CA do not fit), PEER_UNREACHABLE. */
export async function enrol(options: EnrolOptions): Promise<PeerIdentity> {
  const identity = checkedIdentity(options);
  const { key, csr } = await createKeyAndRequest(identity);
  const answer = await post(options.apiUrl, { token: options.token, csr });
  await verify(answer, { identity, key, caFingerprint: options.caFingerprint });
  await files.write(join(options.dir, "key.pem"), key);
  await files.write(join(options.dir, "ca.pem"), answer.ca);
  await files.write(join(options.dir, "order-key.pem"), answer.orderKey);
  await files.write(join(options.dir, "cert.pem"), formatIdentity({ cert: answer.cert, key }));
  return identity;
}

interface Enrolment {
  readonly cert: string;
  readonly ca: string;
  readonly orderKey: string;
}

function checkedIdentity({ site, role, name }: EnrolOptions): PeerIdentity {
  const known = ROLES.find((candidate) => candidate === role) as Role | undefined; // ROLES holds nothing else.
  if (known === undefined) throw new Fault("USAGE", `Expected a role of ${ROLES.join(", ")}, got "${role}"`);
  for (const value of [site, name]) {
    if (!isIdentityName(value)) {
      throw new Fault("USAGE", `Expected a name of letters, digits, dots and dashes, got "${value}"`);
    }
  }
  return { site, role: known, name };
}

async function post(apiUrl: string, body: Readonly<Record<string, string>>): Promise<Enrolment> {
  let response: Response;
  let json: unknown;
  try {
    response = await fetch(new URL("/v1/enroll", apiUrl), {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
      signal: AbortSignal.timeout(ENROL_MS),
    });
    json = await response.json();
  } catch (error) {
    throw new Fault("PEER_UNREACHABLE", `Could not enrol at "${apiUrl}"`, {
      cause: error,
      hint: "Check the address, and that control runs; the token is still good if it was not answered",
    });
  }
  if (!response.ok) throw faultFromJson(json);
  const { cert, ca, orderKey } = json as Record<string, unknown>; // Checked in the next lines.
  if (typeof cert !== "string" || typeof ca !== "string" || typeof orderKey !== "string") {
    throw new Fault("ENROLMENT_REFUSED", `Expected a certificate from "${apiUrl}", got something else`);
  }
  return { cert, ca, orderKey };
}

async function verify(
  { cert, ca, orderKey }: Enrolment,
  expected: { readonly identity: PeerIdentity; readonly key: string; readonly caFingerprint: string | undefined },
): Promise<void> {
  const fingerprint = await certificateFingerprint(ca);
  if (
    expected.caFingerprint !== undefined &&
    fingerprint !== expected.caFingerprint.toLowerCase().replaceAll(":", "")
  ) {
    throw new Fault(
      "ENROLMENT_REFUSED",
      `Expected a CA with fingerprint "${expected.caFingerprint}", got "${fingerprint}"`,
      {
        hint: "Somebody else may have answered; compare the fingerprint with the one shown beside the token",
      },
    );
  }
  checkIssued({ cert, ca }, expected);
  createPublicKey(orderKey); // Throws unless it is a key.
}
