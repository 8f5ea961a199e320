/**
 * Certificates that were not renewed in time, as control sees it: it has issued the newest one of every role, so it knows without asking.
 *
 * Source: docs/runbook-certificates.md.
 */
import { certificateState, type CertificateLife, type CertificateState } from "#model/certificate-life.ts";
import type { HealthReason } from "#model/health.ts";
import type { PeerIdentity } from "#ports/link.ts";
import type { StatusView } from "./contract.ts";
import type { ApiDependencies } from "./dependencies.ts";

/** A CA is replaced by hand; this is how long before its end it is said. */
const CA_NOTICE_MS = 397 * 86_400_000;

/** Roles whose certificate is overdue, in the words of health. */
export function expiringCertificates(
  { enrolment, clock, connected }: Pick<ApiDependencies, "enrolment" | "clock" | "connected">,
  concerns: (identity: PeerIdentity) => boolean,
): readonly HealthReason[] {
  const nowMs = clock.now();
  return enrolment.enrolled().flatMap(({ life, ...identity }) => {
    if (life === undefined || !concerns(identity)) return [];
    const state = certificateState(life, nowMs);
    if (state === "good") return [];
    // Agents are not connected here but at their process server.
    const isHere = connected().some(({ identity: one }) => one.name === identity.name && one.role === identity.role);
    return [reasonOf(identity, { life, state, isHere: isHere || identity.role === "agent" })];
  });
}

/** For `status`: of every role, and of the CA itself. */
export function certificateProblems(dependencies: ApiDependencies): StatusView["problems"] {
  const reasons = expiringCertificates(dependencies, () => true);
  const { caExpiresAtMs } = dependencies.enrolment;
  const problems = reasons.map(({ code, cause, remedy }) => ({ code, message: cause, hint: remedy }));
  if (caExpiresAtMs - dependencies.clock.now() > CA_NOTICE_MS) return problems;
  return [
    ...problems,
    {
      code: "CERTIFICATE_EXPIRING",
      message: `The CA of this installation expires at ${new Date(caExpiresAtMs).toISOString()}, and no certificate outlives it`,
      hint: 'Replace it while both can be trusted: docs/runbook-certificates.md, "Another CA"',
    },
  ];
}

function reasonOf(
  { site, role, name }: PeerIdentity,
  {
    life,
    state,
    isHere,
  }: { readonly life: CertificateLife; readonly state: Exclude<CertificateState, "good">; readonly isHere: boolean },
): HealthReason {
  const end = new Date(life.notAfterMs).toISOString();
  const who = `${role} "${name}" of site "${site}"`;
  const again = `\`leeward machine enroll ${name} --role ${role} --site ${site}\` gives a one-time token, \`leeward machine redeem\` where it runs takes it`;
  if (state === "expired") {
    return {
      code: "CERTIFICATE_EXPIRING",
      level: "critical",
      cause: `The certificate of ${who} expired at ${end}: connections that are open stay, new ones are refused`,
      remedy: `Enrol it again: ${again}; nothing has to be restarted`,
    };
  }
  return {
    code: "CERTIFICATE_EXPIRING",
    level: state === "late" ? "critical" : "warning",
    cause: `The certificate of ${who} ends at ${end} and was not renewed${isHere ? "" : ": it is not connected"}`,
    remedy: isHere
      ? `It tries again by itself; its log says what is in the way. Or enrol it again: ${again}`
      : `Start it, or repair the network between it and control: it then renews by itself. Or enrol it again: ${again}`,
  };
}
