/**
 * Who is connected. Links come and go; for a site and role the newest link is asked, for an old one may be dead without anyone having noticed.
 */
import { TERM_FIELD } from "#model/control-term.ts";
import { Fault, isFault } from "#model/fault.ts";
import type { ControlTerm } from "#model/format/control-records.ts";
import type { JsonObject, JsonValue } from "#model/json.ts";
import type { Clock } from "#ports/clock.ts";
import type { Peer, PeerIdentity, Role } from "#ports/link.ts";
import type { Log } from "#ports/log.ts";

export interface ConnectedRole {
  readonly identity: PeerIdentity;
  readonly connectedAtMs: number;
}

/** Best effort: a copy for others to look at, lost without harm. */
export interface DirectoryMirror {
  connected(role: ConnectedRole): void;
  disconnected(identity: PeerIdentity): void;
}

export interface Directory {
  /** Lists the peer until its link ends. */
  add(peer: Peer): void;
  connected(): readonly ConnectedRole[];
  /** Why a site's master target obeys another control, as it said last. */
  supersededAt(site: string): Fault | undefined;
  /** Newest first. */
  find(site: string, role: Role): readonly Peer[];
  /** Asks that role of that site. Throws PEER_UNREACHABLE when none is connected; otherwise like `Peer.call`. */
  call(
    target: { readonly site: string; readonly role: Role },
    method: string,
    params: JsonObject,
    timeoutMs: number,
  ): Promise<JsonValue>;
}

export function createDirectory({
  clock,
  log,
  mirror,
  term,
}: {
  readonly clock: Clock;
  readonly log: Log;
  readonly mirror: DirectoryMirror;
  /** Stands in every call to a master target. */
  readonly term: ControlTerm;
}): Directory {
  const superseded = new Map<string, Fault>();
  let links: readonly { readonly peer: Peer; readonly connectedAtMs: number }[] = [];

  const directory: Directory = {
    add(peer) {
      const link = { peer, connectedAtMs: clock.now() };
      links = [link, ...links];
      mirror.connected({ identity: peer.identity, connectedAtMs: link.connectedAtMs });
      log.info("A role connected", { peer: peer.identity });
      void peer.closed.then((fault) => {
        links = links.filter((one) => one !== link);
        if (!links.some((one) => nameOf(one.peer.identity) === nameOf(peer.identity)))
          mirror.disconnected(peer.identity);
        log.info("A role disconnected", { peer: peer.identity, ...(fault === undefined ? {} : { fault }) });
      });
    },
    connected() {
      const newest = new Map<string, ConnectedRole>();
      for (const { peer, connectedAtMs } of links) {
        if (!newest.has(nameOf(peer.identity)))
          newest.set(nameOf(peer.identity), { identity: peer.identity, connectedAtMs });
      }
      return [...newest.values()];
    },
    supersededAt: (site) => superseded.get(site),
    find: (site, role) =>
      links.map(({ peer }) => peer).filter(({ identity }) => identity.site === site && identity.role === role),
    async call({ site, role }, method, params, timeoutMs) {
      const [peer] = directory.find(site, role);
      if (peer === undefined) {
        throw new Fault("PEER_UNREACHABLE", `No ${role} of site "${site}" is connected`, {
          details: { site, role },
          hint: `Start the ${role} of "${site}", or repair the network between it and control`,
        });
      }
      if (role !== "master-target") return await peer.call(method, params, { timeoutMs });
      try {
        // Only who gives orders says its term; what reads is answered to everyone who was certified.
        return await peer.call(method, { ...params, [TERM_FIELD]: { ...term } }, { timeoutMs });
      } catch (error) {
        if (isFault(error, "CONTROL_SUPERSEDED")) noteSuperseded(site, error);
        throw error;
      }
    },
  };
  return directory;

  /** Of this site only: a master target that was captured must not keep this control from all the others. */
  function noteSuperseded(site: string, fault: Fault): void {
    if (superseded.get(site)?.message !== fault.message)
      log.error("Another control gives the orders at a site now; this one gives none about it", { site, fault });
    superseded.set(site, fault);
  }
}

function nameOf({ site, role, name }: PeerIdentity): string {
  return `${site}/${role}/${name}`;
}
