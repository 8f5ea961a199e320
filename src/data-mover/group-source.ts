/** The site that a group is replicated from: who may offer it, and what its process server is told. */
import { Fault } from "#model/fault.ts";
import type { Peer } from "#ports/link.ts";

export interface GroupSource {
  readonly groupId: string;
  readonly sourceSite: string;
  /** Whose process server replicated it before. */
  readonly formerSite?: string;
}

/** Throws FENCED for the site it was moved away from, PEER_REJECTED for any other; `offered` is the source that the request names. */
export function assertItsSource(spec: GroupSource, peer: Peer, offered: string): void {
  if (peer.identity.site === spec.sourceSite && offered === spec.sourceSite) return;
  if (peer.identity.site === spec.formerSite)
    throw new Fault("FENCED", `Group "${spec.groupId}" is replicated from site "${spec.sourceSite}" now`, {
      details: { reason: "moved", activeSite: spec.sourceSite },
      hint: "The group was moved: run `leeward group show` to see where it is active.",
    });
  throw new Fault(
    "PEER_REJECTED",
    `Group "${spec.groupId}" is replicated from site "${spec.sourceSite}", and "${peer.identity.site}" offers it`,
  );
}

/** A writer of the same site that came later is no reason for the source to stop: it finds the newer mover by dialling again. */
export function asSeenBySource(fault: Fault): Fault {
  if (fault.code !== "FENCED" || fault.details["reason"] !== "superseded") return fault;
  return new Fault("PEER_UNREACHABLE", "Another mover of this site has taken over the group", {
    details: fault.details,
    cause: fault,
  });
}
