import assert from "node:assert/strict";
import { test } from "node:test";
import type { CertificateLife } from "#model/certificate-life.ts";
import type { PeerIdentity } from "#ports/link.ts";
import { certificateProblems, expiringCertificates } from "../../src/api/certificates.ts";
import type { ApiDependencies } from "../../src/api/dependencies.ts";

const DAY_MS = 86_400_000;
const NOW = Date.UTC(2027, 0, 1);
const lifeLeft = (part: number): CertificateLife => ({
  notBeforeMs: NOW - 300 * DAY_MS * (1 - part),
  notAfterMs: NOW + 300 * DAY_MS * part,
});
const role = (name: string, kind: PeerIdentity["role"], part?: number) => ({
  site: "primary",
  role: kind,
  name,
  ...(part === undefined ? {} : { life: lifeLeft(part) }),
});

function dependencies(caLeftMs: number): ApiDependencies {
  return {
    clock: { now: () => NOW },
    connected: () => [{ identity: role("busy", "master-target"), connectedAtMs: 0 }],
    enrolment: {
      caExpiresAtMs: NOW + caLeftMs,
      enrolled: () => [
        role("fresh", "process-server", 0.9),
        role("due", "process-server", 0.33),
        role("busy", "master-target", 0.25),
        role("away", "process-server", 0.1),
        role("web-1", "agent", -0.1),
        role("unknown", "worker"),
      ],
    },
  } as unknown as ApiDependencies;
}

test("who is overdue is a warning, with little time left or none critical, and each says what is in the way and what to type", () => {
  const reasons = expiringCertificates(dependencies(3_000 * DAY_MS), () => true);
  assert.deepEqual(
    reasons.map(({ level, cause }) => [level, /"(\w[\w-]*)" of site/.exec(cause)?.[1]]),
    [
      ["warning", "busy"],
      ["critical", "away"],
      ["critical", "web-1"],
    ],
  );
  const [busy, away, agent] = reasons;
  assert.doesNotMatch(busy!.cause, /not connected/);
  assert.match(busy!.remedy, /its log/);
  assert.match(away!.cause, /it is not connected/);
  assert.match(away!.remedy, /Start it/);
  assert.match(agent!.cause, /expired at 2026-12-02/);
  assert.match(agent!.remedy, /leeward machine enroll web-1 --role agent --site primary/);
  assert.deepEqual(
    expiringCertificates(dependencies(0), ({ name }) => name === "fresh"),
    [],
  );
});

test("a CA that will not outlive the certificates that it issues is named a lifetime before", () => {
  const problems = (days: number) => certificateProblems(dependencies(days * DAY_MS)).map(({ message }) => message);
  assert.equal(problems(398).length, 3);
  assert.match(problems(396).at(-1)!, /^The CA of this installation expires at/);
});
