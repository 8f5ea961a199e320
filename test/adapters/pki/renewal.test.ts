import assert from "node:assert/strict";
import { createPrivateKey, X509Certificate } from "node:crypto";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { Fault, isFault } from "#model/fault.ts";
import type { JsonObject, JsonValue } from "#model/json.ts";
import type { Clock } from "#ports/clock.ts";
import type { PeerIdentity } from "#ports/link.ts";
import { systemClock } from "../../../src/adapters/clock/system-clock.ts";
import { createLink } from "../../../src/adapters/link/tls-link.ts";
import { silentLog } from "../../../src/adapters/log/pino-log.ts";
import {
  createAuthorityFiles,
  createKeyAndRequest,
  openAuthority,
  type Authority,
} from "../../../src/adapters/pki/authority.ts";
import {
  fileCredentials,
  formatIdentity,
  lifeOf,
  readIdentity,
  type LinkCredentials,
} from "../../../src/adapters/pki/identity-files.ts";
import { identityInFiles, keepRenewed, type IdentityHolder } from "../../../src/adapters/pki/keep-renewed.ts";
import { signRenewal } from "../../../src/adapters/pki/renewal-request.ts";
import { systemRandom } from "../../../src/adapters/random/system-random.ts";
import { openEnrolment } from "../../../src/control/enrolment.ts";
import { rejection } from "../../contract/link.contract.ts";
import { testFiles } from "../../support/test-files.ts";

const AGENT: PeerIdentity = { site: "primary", role: "agent", name: "web-1" };
const SERVER: PeerIdentity = { site: "primary", role: "process-server", name: "ps-1" };
const DAY_MS = 86_400_000;

/** Time that only moves when somebody sleeps, or the test says so. */
function stoppedClock(startMs: number): Clock & { passed(ms: number): void; readonly sleeps: number[] } {
  let nowMs = startMs;
  const sleeps: number[] = [];
  return {
    sleeps,
    now: () => nowMs,
    monotonic: () => nowMs,
    passed: (ms) => void (nowMs += ms),
    async sleep(ms, signal) {
      await new Promise((resolve) => setImmediate(resolve));
      signal?.throwIfAborted();
      sleeps.push(ms);
      nowMs += ms;
    },
  };
}

async function authorityOf(now: () => number, lifetimeMs: number, alsoTrusted?: string): Promise<Authority> {
  const options = { now, random: systemRandom, lifetimeMs, ...(alsoTrusted === undefined ? {} : { alsoTrusted }) };
  return openAuthority(await createAuthorityFiles("test", options), options);
}

async function certified(authority: Authority, identity: PeerIdentity): Promise<LinkCredentials> {
  const { key, csr } = await createKeyAndRequest(identity);
  return { cert: await authority.issue(csr, identity), key, ca: authority.trust.ca };
}

function inMemory(first: LinkCredentials): IdentityHolder & { readonly held: LinkCredentials[] } {
  const held = [first];
  return { held, read: () => held.at(-1)!, replace: async (next) => void held.push(next) };
}

/** As control answers it. */
const answers =
  (authority: Authority, now: () => number) =>
  async (request: JsonObject): Promise<JsonValue> => {
    const { identity, csr } = authority.examine(request);
    return { cert: await authority.issue(csr, identity), ...authority.trust, nowMs: now() };
  };

async function until(holds: () => boolean): Promise<void> {
  for (let turn = 0; !holds(); turn++) {
    assert.ok(turn < 200_000, "it never came to that");
    await new Promise((resolve) => setImmediate(resolve));
  }
}

async function folderOf(t: TestContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "leeward-renewal-"));
  t.after(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

test("for years a certificate is renewed at two thirds of its life, each time with a new key", async () => {
  const clock = stoppedClock(Date.UTC(2026, 0, 1));
  const authority = await authorityOf(clock.now, 397 * DAY_MS);
  const holder = inMemory(await certified(authority, AGENT));
  const askedAt: number[] = [];
  const renewal = keepRenewed({
    identity: AGENT,
    holder,
    clock,
    random: systemRandom,
    log: silentLog,
    ask: (request) => {
      askedAt.push(clock.now());
      return answers(authority, clock.now)(request);
    },
  });
  try {
    await until(() => holder.held.length > 5);
  } finally {
    await renewal.close();
  }
  const lives = holder.held.map(({ cert }) => lifeOf(cert));
  askedAt.slice(0, 5).forEach((atMs, index) => {
    const { notBeforeMs, notAfterMs } = lives[index]!;
    const part = (atMs - notBeforeMs) / (notAfterMs - notBeforeMs);
    assert.ok(part > 0.56 && part < 0.668, `asked after ${part} of its life`);
  });
  assert.equal(new Set(holder.held.map(({ key }) => key)).size, holder.held.length);
  assert.ok(Math.max(...clock.sleeps) <= 3_600_000, "it looks at the clock at least once an hour");
});

test("a failed renewal changes nothing and is tried again until it succeeds; the reason is told once", async () => {
  const clock = stoppedClock(Date.UTC(2026, 0, 1));
  const authority = await authorityOf(clock.now, 30 * DAY_MS);
  const stranger = await authorityOf(clock.now, 30 * DAY_MS);
  const holder = inMemory(await certified(authority, AGENT));
  const told: string[] = [];
  const log = {
    ...silentLog,
    warn: (_: string, fields?: object) => void told.push((fields as { fault: Fault }).fault.code),
  };
  let asked = 0;
  const renewal = keepRenewed({
    identity: AGENT,
    holder,
    clock,
    random: systemRandom,
    log,
    ask: async (request) => {
      asked++;
      if (asked <= 20) throw new Fault("PEER_UNREACHABLE", "Control is away");
      // Somebody who answers in control's place: another CA, another's name, no answer at all.
      if (asked === 21) return { ...(await certified(stranger, AGENT)), ...stranger.trust, nowMs: clock.now() };
      if (asked === 22) return { ...(await certified(authority, SERVER)), ...authority.trust, nowMs: clock.now() };
      if (asked === 23) return "certainly";
      return answers(authority, clock.now)(request);
    },
  });
  try {
    await until(() => holder.held.length > 1 || asked > 40);
  } finally {
    await renewal.close();
  }
  assert.equal(asked, 24);
  assert.equal(holder.held.length, 2);
  assert.deepEqual(told, ["PEER_UNREACHABLE", "CREDENTIALS_REJECTED", "ENROLMENT_REFUSED", "PROTOCOL_INVALID"]);
});

test("a clock that is wrong by years asks at the wrong time once, and then goes by control's", async () => {
  const control = stoppedClock(Date.UTC(2026, 0, 1));
  const authority = await authorityOf(control.now, 397 * DAY_MS);
  const holder = inMemory(await certified(authority, AGENT));
  const aheadMs = 3 * 365 * DAY_MS;
  const clock = { ...control, now: () => control.now() + aheadMs };
  const renewal = keepRenewed({
    identity: AGENT,
    holder,
    clock,
    random: systemRandom,
    log: silentLog,
    ask: answers(authority, control.now),
  });
  try {
    await until(() => holder.held.length > 3);
  } finally {
    await renewal.close();
  }
  const began = holder.held.map(({ cert }) => lifeOf(cert).notBeforeMs);
  assert.ok(began[1]! - began[0]! < DAY_MS, "by its own clock it had expired: it asked at once");
  for (const [index, beganMs] of began.slice(2).entries())
    assert.ok(beganMs - began[index + 1]! > 200 * DAY_MS, "and then at two thirds of each life");
});

test("control renews for who holds a good certificate and is enrolled, whoever carries the request within its site", async (t) => {
  const folder = await folderOf(t);
  const clock = stoppedClock(Date.UTC(2026, 0, 1));
  const authority = await authorityOf(clock.now, 30 * DAY_MS);
  const desk = await openEnrolment({
    file: join(folder, "enrolment.json"),
    files: testFiles,
    authority,
    clock,
    random: systemRandom,
    log: silentLog,
  });
  const { token } = await desk.issueToken(AGENT);
  const { key, csr } = await createKeyAndRequest(AGENT);
  const held = { cert: (await desk.redeem(token, csr)).cert, key };
  const next = await createKeyAndRequest(AGENT);
  const request = signRenewal(held, next.csr);

  clock.passed(20 * DAY_MS);
  for (const asker of [AGENT, SERVER]) {
    const renewed = await desk.renew(request, asker);
    assert.equal(lifeOf(renewed.cert).notAfterMs, clock.now() + 30 * DAY_MS);
    assert.ok(new X509Certificate(renewed.cert).checkPrivateKey(createPrivateKey(next.key)));
    assert.equal(renewed.nowMs, clock.now());
  }
  assert.equal(desk.enrolled().length, 1);
  assert.equal(desk.enrolled()[0]?.life?.notAfterMs, clock.now() + 30 * DAY_MS);

  await rejection(desk.renew(request, { ...SERVER, site: "secondary" }), "PEER_REJECTED");
  await rejection(desk.renew(request, { ...AGENT, name: "web-2" }), "PEER_REJECTED");
  await rejection(desk.renew(request, { ...SERVER, role: "master-target" }), "PEER_REJECTED");
  const thief = await createKeyAndRequest(AGENT);
  await rejection(
    desk.renew(signRenewal({ cert: held.cert, key: thief.key }, thief.csr), AGENT),
    "CREDENTIALS_REJECTED",
  );
  await rejection(desk.renew({ ...request, csr: thief.csr }, AGENT), "CREDENTIALS_REJECTED");
  const elsewhere = await certified(await authorityOf(clock.now, 30 * DAY_MS), AGENT);
  await rejection(desk.renew(signRenewal(elsewhere, next.csr), AGENT), "CREDENTIALS_REJECTED");
  await rejection(desk.renew({ ...request, cert: "none" }, AGENT), "ENROLMENT_REFUSED");
  await rejection(desk.renew({ cert: 1 }, AGENT), "PROTOCOL_INVALID");
  const stranger = await certified(authority, SERVER);
  await rejection(desk.renew(signRenewal(stranger, next.csr), SERVER), "ENROLMENT_REFUSED");

  // A little after its end it is still renewed: clocks differ, and whoever was on the way must not be shut out.
  clock.passed(10 * DAY_MS + 1_800_000);
  assert.ok((await desk.renew(request, AGENT)).cert);
  clock.passed(3_600_000);
  const late = await rejection(desk.renew(request, AGENT), "CERTIFICATE_EXPIRED");
  assert.match(late.message, /2026-01-31T00:00:00/);
  assert.match(late.hint ?? "", /leeward machine enroll/);
});

test("files: certificate and key change in one rename, and what is half there is not taken", async (t) => {
  const folder = await folderOf(t);
  const authority = await authorityOf(Date.now, DAY_MS);
  const paths = {
    certFile: join(folder, "cert.pem"),
    keyFile: join(folder, "key.pem"),
    caFile: join(folder, "ca.pem"),
  };
  assert.throws(
    () => readIdentity(paths),
    (error) => isFault(error, "CONFIG_INVALID") && error.hint !== undefined,
  );
  // As an enrolment of an earlier version wrote it: the key in its own file only.
  const first = await certified(authority, AGENT);
  for (const [file, text] of [
    [paths.keyFile, first.key],
    [paths.caFile, first.ca],
    [paths.certFile, first.cert],
  ] as const)
    await writeFile(file, text);
  const source = fileCredentials(paths, silentLog);
  assert.ok(new X509Certificate(source().cert).fingerprint256 === new X509Certificate(first.cert).fingerprint256);
  assert.equal(source(), source(), "nothing changed, so it is the same");

  const second = await certified(authority, AGENT);
  await identityInFiles(paths, testFiles).replace(second);
  assert.equal(new X509Certificate(source().cert).fingerprint256, new X509Certificate(second.cert).fingerprint256);
  assert.deepEqual(readIdentity(paths), source());
  // Killed between the two: the key file is that of the certificate before.
  const third = await certified(authority, AGENT);
  await testFiles.write(paths.certFile, formatIdentity(third));
  assert.equal(source().key.trim(), third.key.trim());
  assert.notEqual((await readFile(paths.keyFile, "utf8")).trim(), third.key.trim());
  // A certificate whose key is nowhere: what was good stays.
  await testFiles.write(paths.certFile, first.cert);
  assert.equal(source().key.trim(), third.key.trim());
  assert.throws(
    () => readIdentity(paths),
    (error) => isFault(error, "CREDENTIALS_REJECTED"),
  );
  await testFiles.write(paths.certFile, "torn");
  assert.equal(source().key.trim(), third.key.trim());
});

test(
  "a link lives over several renewals at both ends, new ones are made with what was renewed, and what has expired is told",
  { timeout: 60_000 },
  async () => {
    const LIFE_MS = 6_000; // Validity counts in whole seconds.
    const authority = await authorityOf(Date.now, LIFE_MS);
    const control: PeerIdentity = { site: "secondary", role: "control", name: "control" };
    const ends = await Promise.all(
      [control, SERVER].map(async (identity) => {
        const holder = inMemory(await certified(authority, identity));
        const link = createLink({ identity, credentials: () => holder.read(), clock: systemClock, log: silentLog });
        const ask = answers(authority, Date.now);
        const renewal = keepRenewed({
          identity,
          holder,
          ask,
          clock: systemClock,
          random: systemRandom,
          log: silentLog,
        });
        return { holder, link, renewal };
      }),
    );
    const [far, near] = ends as [(typeof ends)[number], (typeof ends)[number]];
    const listening = await far.link.listen({ host: "127.0.0.1", port: 0 }, () => ({ echo: async (params) => params }));
    const old = near.holder.held[0]!;
    try {
      const peer = await near.link.dial(listening.address, { expect: "control", handlers: {} });
      let ended = false;
      void peer.closed.then(() => (ended = true));
      let number = 0;
      for (
        ;
        near.holder.held.length < 4 || far.holder.held.length < 4 || Date.now() < lifeOf(old.cert).notAfterMs + 500;
        number++
      ) {
        assert.deepEqual(await peer.call("echo", { number }), { number });
        if (number % 20 === 0) {
          const fresh = await near.link.dial(listening.address, { expect: "control", handlers: {} });
          assert.deepEqual(await fresh.call("echo", { fresh: number }), { fresh: number });
          fresh.close();
        }
        await systemClock.sleep(50);
      }
      assert.equal(ended, false, "the first link is still there");
      assert.ok(Date.now() > lifeOf(old.cert).notAfterMs, "and both certificates that it was made with have ended");
      peer.close();

      // Who was not renewed is told why, whichever side looks.
      const stale = createLink({ identity: SERVER, credentials: () => old, clock: systemClock, log: silentLog });
      const refused = await rejection(
        stale.dial(listening.address, { expect: "control", handlers: {} }),
        "CERTIFICATE_EXPIRED",
      );
      assert.match(refused.message, /primary\/process-server\/ps-1/);
      assert.match(refused.hint ?? "", /machine redeem/);
      const asleep = createLink({
        identity: control,
        credentials: () => far.holder.held[0]!,
        clock: systemClock,
        log: silentLog,
      });
      const elsewhere = await asleep.listen({ host: "127.0.0.1", port: 0 }, () => ({}));
      try {
        await rejection(near.link.dial(elsewhere.address, { expect: "control", handlers: {} }), "CERTIFICATE_EXPIRED");
      } finally {
        await elsewhere.close();
      }
    } finally {
      await Promise.all(ends.map(({ renewal }) => renewal.close()));
      await listening.close();
    }
  },
);

test("one CA takes the place of another: trusted first, then signing, and nobody is enrolled again", async (t) => {
  const folder = await folderOf(t);
  const options = { now: Date.now, random: systemRandom, lifetimeMs: DAY_MS };
  const [oldFiles, newFiles] = await Promise.all([
    createAuthorityFiles("old", options),
    createAuthorityFiles("new", options),
  ]);
  const paths = {
    certFile: join(folder, "cert.pem"),
    keyFile: join(folder, "key.pem"),
    caFile: join(folder, "ca.pem"),
  };
  const holder = identityInFiles(paths, testFiles);
  const before = await openAuthority(oldFiles, options);
  await holder.replace(await certified(before, AGENT));
  const steps = [
    await openAuthority(oldFiles, { ...options, alsoTrusted: newFiles.cert }),
    await openAuthority(newFiles, { ...options, alsoTrusted: oldFiles.cert }),
    await openAuthority(newFiles, options),
  ];
  const fingerprints: string[] = [];
  for (const authority of steps) {
    const count = fingerprints.length;
    const clock = { ...systemClock, now: () => Date.now() + (DAY_MS * 3) / 4 };
    const renewal = keepRenewed({
      identity: AGENT,
      holder,
      clock,
      random: systemRandom,
      log: silentLog,
      ask: async (request) => {
        const answer = await answers(authority, Date.now)(request);
        fingerprints.push(new X509Certificate((answer as { cert: string }).cert).issuer);
        return answer;
      },
    });
    const authorityCa = authority.trust.ca;
    for (let turn = 0; holder.read().ca !== authorityCa || fingerprints.length === count; turn++) {
      assert.ok(turn < 500, "the step was taken");
      await systemClock.sleep(10);
    }
    await renewal.close();
  }
  assert.deepEqual(
    fingerprints.map((issuer) => issuer.replace(/.*Leeward CA /, "")),
    ["old", "new", "new"],
  );
  const held = holder.read();
  assert.ok(new X509Certificate(held.cert).verify(new X509Certificate(newFiles.cert).publicKey));
  // Who slept through the first step does not take the second one's word.
  const asleep = inMemory(await certified(before, SERVER));
  const told: string[] = [];
  const log = {
    ...silentLog,
    warn: (_: string, fields?: object) => void told.push((fields as { fault: Fault }).fault.code),
  };
  const renewal = keepRenewed({
    identity: SERVER,
    holder: asleep,
    clock: { ...systemClock, now: () => Date.now() + (DAY_MS * 3) / 4 },
    random: systemRandom,
    log,
    ask: answers(steps[1]!, Date.now),
  });
  for (let turn = 0; told.length === 0; turn++) {
    assert.ok(turn < 500);
    await systemClock.sleep(10);
  }
  await renewal.close();
  assert.deepEqual([told, asleep.held.length], [["CREDENTIALS_REJECTED"], 1]);
});
