import assert from "node:assert/strict";
import { generateKeyPairSync, randomUUID, sign, verify } from "node:crypto";
import { mkdtemp, readFile, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { Fault } from "#model/fault.ts";
import type { Handlers, Listener, PeerIdentity } from "#ports/link.ts";
import type { ReplicationOrder, SignedOrder } from "#ports/replication.ts";
import { systemClock } from "../../src/adapters/clock/system-clock.ts";
import { silentLog } from "../../src/adapters/log/pino-log.ts";
import { systemRandom } from "../../src/adapters/random/system-random.ts";
import { CERTIFICATE_DAYS, createKeyAndRequest } from "../../src/adapters/pki/authority.ts";
import { createDirectory, type Directory } from "../../src/control/directory.ts";
import { openEnrolment, TOKEN_LIFE_MS } from "../../src/control/enrolment.ts";
import { createLinkService } from "../../src/control/link-service.ts";
import { openOrderBook, type OrderBook } from "../../src/control/order-book.ts";
import { ensureApiToken, ensureAuthorityFiles, ensureOrderKey } from "../../src/control/secrets.ts";
import { rejection } from "../contract/link.contract.ts";
import { createTestAuthority } from "../support/credentials.ts";
import { testFiles } from "../support/test-files.ts";

const certified = await createTestAuthority();
const keys = generateKeyPairSync("ed25519");
const LOOPBACK = { host: "127.0.0.1", port: 0 };

interface Desk {
  readonly folder: string;
  readonly directory: Directory;
  readonly orders: OrderBook;
  readonly listener: Listener;
  dial(
    role: "worker" | "process-server" | "master-target" | "agent",
    site: string,
    handlers?: Handlers,
  ): Promise<import("#ports/link.ts").Peer>;
}

async function withControl(use: (desk: Desk) => Promise<void>): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), "leeward-control-"));
  const directory = createDirectory({
    clock: systemClock,
    log: silentLog,
    mirror: { connected: () => undefined, disconnected: () => undefined },
    term: { controlId: randomUUID(), controlEpoch: 1 },
  });
  const orders = await openOrderBook({
    files: testFiles,
    folder: join(folder, "orders"),
    sign: (bytes) => sign(null, bytes, keys.privateKey).toString("base64"),
    controlEpoch: 1,
    clock: systemClock,
    log: silentLog,
  });
  const link = await certified.link("secondary", "control", "control");
  const listener = await link.listen(
    LOOPBACK,
    createLinkService({
      directory,
      orders,
      resolvePlan: async () => ({}),
      enrolment: { renew: () => Promise.reject(new Fault("ENROLMENT_REFUSED", "Nobody is enrolled in this test")) },
    }),
  );
  try {
    await use({
      folder,
      directory,
      orders,
      listener,
      dial: async (role, site, handlers = {}) =>
        await (await certified.link(site, role, `${role}-1`)).dial(listener.address, { expect: "control", handlers }),
    });
  } finally {
    await listener.close();
    await rm(folder, { recursive: true, force: true });
  }
}

function order(version: number, more: Partial<ReplicationOrder> = {}): ReplicationOrder {
  return {
    groupId: "web",
    groupName: "web",
    version,
    state: "active",
    branch: "root",
    groupEpoch: 1,
    sourceSite: "primary",
    target: { site: "secondary", host: "127.0.0.1", port: 1 },
    intervalMs: 1000,
    compressAt: "agent",
    members: [],
    ...more,
  };
}

/** A process server that remembers its orders; `refuse` makes it fail so many times first. */
function processServer(refuse = 0): { readonly handlers: Handlers; readonly seen: SignedOrder[] } {
  const seen: SignedOrder[] = [];
  let failures = refuse;
  return {
    seen,
    handlers: {
      "processServer.putOrder": async ({ signed }) => {
        failures -= 1;
        if (failures >= 0) throw new Fault("DISK_FULL", "No space left");
        seen.push(signed as unknown as SignedOrder);
        return { version: 1 };
      },
      "processServer.groupState": async ({ groupId }) => ({ groupId: String(groupId), state: "live" }),
    },
  };
}

test("a worker's relay reaches the role of that site, with its Faults; nobody there is PEER_UNREACHABLE", async () => {
  await withControl(async ({ dial }) => {
    const worker = await dial("worker", "secondary");
    const relay = {
      site: "primary",
      role: "process-server",
      method: "processServer.groupState",
      params: { groupId: "web" },
      timeoutMs: 1000,
    };
    const unreachable = await rejection(worker.call("relay", relay), "PEER_UNREACHABLE");
    assert.match(unreachable.hint ?? "", /primary/);

    await dial("process-server", "primary", processServer().handlers);
    await dial("master-target", "secondary", {
      "masterTarget.fence": async () => Promise.reject(new Fault("FENCED", "Held elsewhere")),
    });
    assert.deepEqual(await worker.call("relay", relay), { groupId: "web", state: "live" });
    const fence = {
      site: "secondary",
      role: "master-target",
      method: "masterTarget.fence",
      params: {},
      timeoutMs: 1000,
    };
    await rejection(worker.call("relay", fence), "FENCED");
  });
});

test("a relay to a role that went away is PEER_UNREACHABLE, and the newest link of a name is asked", async () => {
  await withControl(async ({ dial, directory }) => {
    const worker = await dial("worker", "secondary");
    const relay = {
      site: "primary",
      role: "process-server",
      method: "processServer.groupState",
      params: { groupId: "web" },
      timeoutMs: 1000,
    };
    const old = await dial("process-server", "primary", { "processServer.groupState": async () => ({ state: "old" }) });
    const fresh = await dial("process-server", "primary", processServer().handlers);
    assert.equal(((await worker.call("relay", relay)) as { state: string }).state, "live");
    assert.equal(directory.connected().filter(({ identity }) => identity.role === "process-server").length, 1);
    fresh.close();
    old.close();
    await systemClock.sleep(50);
    await rejection(worker.call("relay", relay), "PEER_UNREACHABLE");
  });
});

test("orders cannot be relayed, agents do not belong here, and only workers may ask", async () => {
  await withControl(async ({ dial }) => {
    const worker = await dial("worker", "secondary");
    const relay = {
      site: "primary",
      role: "process-server",
      method: "processServer.putOrder",
      params: {},
      timeoutMs: 1000,
    };
    await rejection(worker.call("relay", relay), "PEER_REJECTED");
    await rejection(worker.call("relay", { ...relay, method: "anything.else" }), "PEER_REJECTED");
    await rejection(worker.call("relay", { ...relay, site: 7 }), "PROTOCOL_INVALID");
    await rejection(dial("agent", "primary"), "PEER_REJECTED");
    const server = await dial("process-server", "primary");
    await rejection(server.call("relay", relay), "PROTOCOL_INVALID");
    await rejection(server.call("orders.put", { groupId: "web", order: { ...order(1) } as never }), "PROTOCOL_INVALID");
  });
});

test("an order is signed as it travels, delivered to the source site only, and its version only grows", async () => {
  await withControl(async ({ dial, folder }) => {
    const worker = await dial("worker", "secondary");
    const put = (value: ReplicationOrder) => worker.call("orders.put", { groupId: "web", order: value as never });
    assert.deepEqual(await put(order(3)), { version: 3, delivered: false });

    const primary = processServer();
    const secondary = processServer();
    await dial("process-server", "primary", primary.handlers);
    await dial("process-server", "secondary", secondary.handlers);
    await until(() => primary.seen.length === 1, "the order that waited for the process server");
    assert.deepEqual(JSON.parse(primary.seen[0]!.order), order(3, { controlEpoch: 1 }));

    assert.deepEqual(await put(order(4)), { version: 4, delivered: true });
    assert.deepEqual(await put(order(4)), { version: 4, delivered: true }, "the same order again is no error");
    await rejection(put(order(4, { state: "stopped" })), "REFUSED");
    await rejection(put(order(2)), "REFUSED");
    await rejection(put(order(5, { groupId: "../x" })), "PROTOCOL_INVALID");
    for (const { order: text, signature } of primary.seen) {
      assert.ok(verify(null, Buffer.from(text), keys.publicKey, Buffer.from(signature, "base64")));
    }
    assert.equal(secondary.seen.length, 0);
    assert.equal((await stat(join(folder, "orders", "web.json"))).mode & 0o777, 0o600);

    const reopened = await openOrderBook({
      files: testFiles,
      folder: join(folder, "orders"),
      sign: () => "",
      controlEpoch: 1,
      clock: systemClock,
      log: silentLog,
    });
    assert.deepEqual(reopened.groups(), [order(4, { controlEpoch: 1 })]);
    await rejection(
      reopened.put(order(4, { branch: "x" }), () => []),
      "REFUSED",
    );
  });
});

test("an order that a process server could not keep is brought again", async () => {
  await withControl(async ({ dial }) => {
    const worker = await dial("worker", "secondary");
    const flaky = processServer(1);
    await dial("process-server", "primary", flaky.handlers);
    assert.deepEqual(await worker.call("orders.put", { groupId: "web", order: order(1) as never }), {
      version: 1,
      delivered: false,
    });
    await until(() => flaky.seen.length === 1, "the second delivery");
  });
});

test("an enrolment token is good once, for an hour, for the identity it was made out to, and only its hash is kept", async () => {
  const folder = await mkdtemp(join(tmpdir(), "leeward-enrolment-"));
  try {
    const file = join(folder, "enrolment.json");
    let now = 1_000_000;
    const clock = { ...systemClock, now: () => now };
    const { csr: good } = await createKeyAndRequest({ site: "primary", role: "agent", name: "web-1" });
    const authority = {
      ...certified.authority,
      issue: async (csr: string, identity: PeerIdentity) => {
        if (csr === "bad") throw new Fault("ENROLMENT_REFUSED", "Expected a certificate request in PEM");
        await systemClock.sleep(5);
        return certified.authority.issue(good, identity);
      },
    };
    const open = () =>
      openEnrolment({ file, files: testFiles, authority, clock, random: systemRandom, log: silentLog });
    const desk = await open();
    const identity = { site: "primary", role: "agent", name: "web-1" } as const;
    const { token, expiresAtMs } = await desk.issueToken(identity);
    assert.equal(expiresAtMs, now + TOKEN_LIFE_MS);
    assert.ok(!(await readFile(file, "utf8")).includes(token));

    await rejection(desk.redeem("wrong", "csr"), "ENROLMENT_REFUSED");
    await rejection(desk.redeem(token, "bad"), "ENROLMENT_REFUSED");
    const both = await Promise.allSettled([desk.redeem(token, "one"), desk.redeem(token, "two")]);
    assert.deepEqual(both.map(({ status }) => status).sort(), ["fulfilled", "rejected"]);
    await rejection(desk.redeem(token, "three"), "ENROLMENT_REFUSED");
    const [enrolled, ...others] = (await open()).enrolled();
    assert.deepEqual([{ ...enrolled, life: undefined }, ...others], [{ ...identity, life: undefined }]);
    assert.equal(Math.round((enrolled!.life!.notAfterMs - Date.now()) / 86_400_000), CERTIFICATE_DAYS);

    const late = await desk.issueToken(identity);
    now += TOKEN_LIFE_MS;
    await rejection((await open()).redeem(late.token, "csr"), "ENROLMENT_REFUSED");
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
});

test("control's secrets are made once, readable by their owner only, and a lost CA key is not replaced", async () => {
  const folder = await mkdtemp(join(tmpdir(), "leeward-secrets-"));
  try {
    const token = await ensureApiToken(folder, { files: testFiles, random: systemRandom });
    assert.equal(await ensureApiToken(folder, { files: testFiles, random: systemRandom }), token);
    assert.equal((await stat(join(folder, "api-token"))).mode & 0o777, 0o600);
    const first = await ensureOrderKey(folder, testFiles);
    const again = await ensureOrderKey(folder, testFiles);
    assert.equal(first.publicKey, again.publicKey);
    assert.ok(
      verify(null, Buffer.from("order"), first.publicKey, Buffer.from(again.sign(Buffer.from("order")), "base64")),
    );
    const made = await ensureAuthorityFiles(folder, {
      files: testFiles,
      create: async () => ({ cert: "C", key: "K" }),
    });
    assert.deepEqual(
      await ensureAuthorityFiles(folder, { files: testFiles, create: async () => assert.fail("made twice") }),
      made,
    );
    await rm(join(folder, "ca", "key.pem"));
    await rejection(
      ensureAuthorityFiles(folder, { files: testFiles, create: async () => assert.fail("replaced") }),
      "CONFIG_INVALID",
    );
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
});

async function until(condition: () => boolean, what: string): Promise<void> {
  for (let waited = 0; !condition(); waited += 20) {
    assert.ok(waited < 8_000, `waited for ${what}`);
    await systemClock.sleep(20);
  }
}
