/**
 * Renews a role's certificate for as long as the role runs: made anew with a new key at two thirds of its life, asked for over a connection that the role
 * has anyway, put in the place of the old one in one rename. Connections that are open stay; the next ones are made with the new certificate.
 *
 * Invariants:
 * - a failure changes nothing: the certificate is good for another third of its life, and the next attempt comes by itself;
 * - what comes back is checked before it replaces what is good;
 * - files that somebody else has replaced (an enrolment) count at once: they are read before each decision.
 *
 * Its own clock may be wrong. It decides when to ask; whether a certificate has expired is for control to say, and the answer brings control's time,
 * from which everything is counted until the role starts anew.
 */
import { Fault, isFault } from "#model/fault.ts";
import { renewalDueMs, renewalRetryMs } from "#model/certificate-life.ts";
import type { JsonObject, JsonValue } from "#model/json.ts";
import type { Clock } from "#ports/clock.ts";
import type { DurableFiles } from "#ports/durable-files.ts";
import type { PeerIdentity } from "#ports/link.ts";
import type { Log } from "#ports/log.ts";
import type { Random } from "#ports/random.ts";
import { createKeyAndRequest } from "./authority.ts";
import { formatIdentity, lifeOf, readIdentity, type IdentityFiles, type LinkCredentials } from "./identity-files.ts";
import { checkIssued, checkTrust, readRenewalAnswer, signRenewal } from "./renewal-request.ts";

/** Where credentials are kept. */
export interface IdentityHolder {
  read(): LinkCredentials;
  /** Certificate and key at once. */
  replace(next: LinkCredentials): Promise<void>;
}

export interface KeepRenewedOptions {
  readonly identity: PeerIdentity;
  readonly holder: IdentityHolder;
  /** Carries the request to control. Throws PEER_UNREACHABLE when there is no way now. */
  readonly ask: (request: JsonObject) => Promise<JsonValue>;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
}

/** However long a certificate lives: a machine may sleep, and its clock be set. */
const LOOK_MS_MAX = 3_600_000;
const SKEW_TOLD_MS = 60_000;

export function keepRenewed(options: KeepRenewedOptions): { close(): Promise<void> } {
  const { identity, holder, ask, clock, random, log } = options;
  const stop = new AbortController();
  let aheadMs = 0; // Of our clock, control's time.
  let chance = draw(random);
  let told = "";
  const running = run();
  return {
    async close() {
      stop.abort();
      await running;
    },
  };

  async function run(): Promise<void> {
    while (!stop.signal.aborted) {
      let waitMs = LOOK_MS_MAX;
      try {
        const held = holder.read();
        const life = lifeOf(held.cert);
        const leftMs = renewalDueMs(life, chance) - (clock.now() + aheadMs);
        if (leftMs > 0) waitMs = Math.min(waitMs, leftMs);
        else {
          waitMs = renewalRetryMs(life);
          await renew(held);
        }
      } catch (error) {
        if (!isFault(error)) throw error;
        report(error);
      }
      await pause(waitMs);
    }
  }

  async function renew(held: LinkCredentials): Promise<void> {
    const { key, csr } = await createKeyAndRequest(identity);
    const answer = readRenewalAnswer(await ask({ ...signRenewal(held, csr) }));
    checkTrust(answer, held.ca);
    checkIssued(answer, { identity, key });
    await holder.replace({ cert: answer.cert, key, ca: answer.ca });
    aheadMs = answer.nowMs - clock.now();
    chance = draw(random);
    told = "";
    log.info("The certificate was renewed", {
      identity,
      until: new Date(lifeOf(answer.cert).notAfterMs).toISOString(),
    });
    if (Math.abs(aheadMs) > SKEW_TOLD_MS)
      log.warn("The clock of this machine is not control's; certificates are renewed by control's", { aheadMs });
  }

  /** Once for each reason: it is tried again many times. */
  function report(fault: Fault): void {
    if (fault.code === told) return;
    told = fault.code;
    log.warn("The certificate could not be renewed; trying again", { identity, fault });
  }

  async function pause(ms: number): Promise<void> {
    try {
      await clock.sleep(ms, stop.signal);
    } catch (error) {
      if (!stop.signal.aborted) throw error;
    }
  }
}

/** In files. A CA first: with the old certificate the new ones do no harm. */
export function identityInFiles(paths: IdentityFiles, files: DurableFiles): IdentityHolder {
  return {
    read: () => readIdentity(paths),
    async replace(next) {
      if ((await files.read(paths.caFile)) !== next.ca) await files.write(paths.caFile, next.ca);
      await files.write(paths.certFile, formatIdentity(next));
      await files.write(paths.keyFile, next.key);
    },
  };
}

function draw(random: Random): number {
  return random.bytes(1)[0]! / 255;
}
