/** What the API is built on, given by the composition root. */
import type { Fault } from "#model/fault.ts";
import type { CertificateLife } from "#model/certificate-life.ts";
import type { Clock } from "#ports/clock.ts";
import type { Hypervisor } from "#ports/hypervisor.ts";
import type { PeerIdentity } from "#ports/link.ts";
import type { Log } from "#ports/log.ts";
import type { MasterTarget } from "#ports/master-target.ts";
import type { ProcessServer } from "#ports/process-server.ts";
import type { ReplicationOrder } from "#ports/replication.ts";
import type { Random } from "#ports/random.ts";
import type { AdoptionView } from "./contract.ts";
import type { GroupWorkflows } from "./group-workflows.ts";
import type { DrillSchedules } from "./plan/drill-schedules.ts";
import type { PlanRuns } from "./plan/plan-runs.ts";

/** The interfaces of one site, over whatever is connected when they are called: PEER_UNREACHABLE when nothing is. */
export interface SiteAccess {
  readonly masterTarget: MasterTarget;
  readonly processServer: ProcessServer;
  readonly hypervisor: Hypervisor;
}

export interface Enrolment {
  readonly caFingerprint: string;
  issueToken(identity: PeerIdentity): Promise<{ readonly token: string; readonly expiresAtMs: number }>;
  redeem(
    token: string,
    csr: string,
  ): Promise<{ readonly identity: PeerIdentity; readonly cert: string; readonly ca: string }>;
  /** With the life of the newest certificate, where it is known. */
  enrolled(): readonly (PeerIdentity & { readonly life?: CertificateLife })[];
  readonly caExpiresAtMs: number;
}

export interface ControlIdentity {
  readonly controlId: string;
  readonly controlEpoch: number;
  readonly adoption?: () => AdoptionView;
}

export interface ApiDependencies {
  readonly version: string;
  /** Where control runs: the recovery site. */
  readonly controlSite: string;
  readonly sites: ReadonlyMap<string, SiteAccess>;
  readonly connected: () => readonly { readonly identity: PeerIdentity; readonly connectedAtMs: number }[];
  readonly enrolment: Enrolment;
  /** PEM, handed out with a certificate. */
  readonly orderPublicKey: string;
  readonly workflows: GroupWorkflows;
  readonly planRuns: PlanRuns;
  readonly drills: DrillSchedules;
  /** The last order of each group that ever had one, known without Temporal. */
  readonly orders: () => readonly ReplicationOrder[];
  /** Which control this is, and the groups that it goes on with after another. */
  readonly control?: ControlIdentity;
  /** Why a site's master target obeys another control. */
  readonly supersededAt?: (site: string) => Fault | undefined;
  readonly temporalUiUrl?: string;
  readonly redisReachable: () => Promise<boolean>;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
}
