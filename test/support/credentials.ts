/** A certificate authority for tests, and links certified by it. */
import { randomBytes } from "node:crypto";
import { systemClock } from "../../src/adapters/clock/system-clock.ts";
import type { Timing } from "../../src/adapters/link/connection.ts";
import { createLink } from "../../src/adapters/link/tls-link.ts";
import { silentLog } from "../../src/adapters/log/pino-log.ts";
import { createAuthorityFiles, createKeyAndRequest, openAuthority } from "../../src/adapters/pki/authority.ts";
import type { Authority } from "../../src/adapters/pki/authority.ts";
import type { Link, PeerIdentity, Role } from "#ports/link.ts";
import type { Log } from "#ports/log.ts";

export interface TestAuthority {
  readonly authority: Authority;
  credentials(identity: PeerIdentity): Promise<{ readonly cert: string; readonly key: string; readonly ca: string }>;
  link(
    site: string,
    role: Role,
    name: string,
    options?: { readonly timing?: Timing; readonly log?: Log },
  ): Promise<Link>;
}

export async function createTestAuthority(): Promise<TestAuthority> {
  const options = { now: () => Date.now(), random: { bytes: (length: number) => new Uint8Array(randomBytes(length)) } };
  const authority = await openAuthority(await createAuthorityFiles("test", options), options);

  async function credentials(identity: PeerIdentity) {
    const { key, csr } = await createKeyAndRequest(identity);
    return { cert: await authority.issue(csr, identity), key, ca: authority.cert };
  }

  return {
    authority,
    credentials,
    async link(site, role, name, { timing, log = silentLog } = {}) {
      const identity = { site, role, name };
      const files = await credentials(identity);
      return createLink({
        identity,
        credentials: () => files,
        clock: systemClock,
        log,
        ...(timing === undefined ? {} : { timing }),
      });
    },
  };
}
