/** The agent's link, also made by each sweeping thread for itself: a socket cannot be handed to another thread. Few imports, for threads start often. */
import { readFileSync } from "node:fs";
import type { Link } from "#ports/link.ts";
import type { Log } from "#ports/log.ts";
import { systemClock } from "../adapters/clock/system-clock.ts";
import { createLink } from "../adapters/link/tls-link.ts";

export interface AgentIdentity {
  readonly site: string;
  readonly name: string;
  readonly identity: { readonly certFile: string; readonly keyFile: string; readonly caFile: string };
}

export function openAgentLink({ site, name, identity }: AgentIdentity, log: Log): Link {
  return createLink({
    identity: { site, role: "agent", name },
    cert: readFileSync(identity.certFile, "utf8"),
    key: readFileSync(identity.keyFile, "utf8"),
    ca: readFileSync(identity.caFile, "utf8"),
    clock: systemClock,
    log,
  });
}
