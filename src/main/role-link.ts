/**
 * A role's link, with the identity that is on its disk, and the renewal of that identity. Threads and child processes of a role open links of their own:
 * they find what the role renewed in the same files. Few imports, for threads start often.
 */
import type { JsonObject, JsonValue } from "#model/json.ts";
import type { DurableFiles } from "#ports/durable-files.ts";
import type { Link, Role } from "#ports/link.ts";
import type { Log } from "#ports/log.ts";
import { systemClock } from "../adapters/clock/system-clock.ts";
import { createLink } from "../adapters/link/tls-link.ts";
import { fileCredentials, type IdentityFiles } from "../adapters/pki/identity-files.ts";
import { systemRandom } from "../adapters/random/system-random.ts";

export interface RoleIdentity {
  readonly site: string;
  readonly role: Role;
  readonly name: string;
  readonly files: IdentityFiles;
}

export function openRoleLink({ site, role, name, files }: RoleIdentity, log: Log): Link {
  return createLink({
    identity: { site, role, name },
    credentials: fileCredentials(files, log),
    clock: systemClock,
    log,
  });
}

/** Until it is closed. One process of a role does this, the others read. */
export async function keepRoleRenewed(
  { site, role, name, files: paths }: RoleIdentity,
  options: {
    readonly ask: (request: JsonObject) => Promise<JsonValue>;
    readonly files: DurableFiles;
    readonly log: Log;
  },
): Promise<{ close(): Promise<void> }> {
  const { identityInFiles, keepRenewed } = await import("../adapters/pki/keep-renewed.ts");
  return keepRenewed({
    identity: { site, role, name },
    holder: identityInFiles(paths, options.files),
    ask: options.ask,
    clock: systemClock,
    random: systemRandom,
    log: options.log,
  });
}

/** To `credentials.renew` of whoever is at the other end of a link that may be down: PEER_UNREACHABLE then. */
export const RENEW = "credentials.renew";
