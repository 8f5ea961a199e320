import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { connect as connectTcp, createServer } from "node:net";
import type { AddressInfo, Socket } from "node:net";
import { test } from "node:test";
import { connect as connectTls } from "node:tls";
import { systemClock } from "../../../src/adapters/clock/system-clock.ts";
import { keepDialled } from "../../../src/adapters/link/keep-dialled.ts";
import { createLink } from "../../../src/adapters/link/tls-link.ts";
import { encodeHead, LINK_PROTOCOL } from "../../../src/adapters/link/wire.ts";
import { silentLog } from "../../../src/adapters/log/pino-log.ts";
import { systemRandom } from "../../../src/adapters/random/system-random.ts";
import type { Peer } from "#ports/link.ts";
import { linkContract, rejection } from "../../contract/link.contract.ts";
import { createTestAuthority } from "../../support/credentials.ts";

const LOOPBACK = { host: "127.0.0.1", port: 0 };
const certified = await createTestAuthority();
const dialler = await certified.link("primary", "process-server", "ps-1");
const listener = await certified.link("secondary", "master-target", "mt-1");

linkContract("tls link", async () => {
  const wires: CuttableWire[] = [];
  return {
    dialler,
    listener,
    async wire(listening) {
      const wire = await createWire(listening.address.port);
      wires.push(wire);
      return { host: "127.0.0.1", port: wire.port };
    },
    cut: () => wires.forEach((wire) => wire.cut()),
    close: async () => {
      for (const wire of wires) await wire.close();
    },
  };
});

test("a certificate of another CA is CREDENTIALS_REJECTED, whichever side has it", async () => {
  const strangers = await createTestAuthority();
  const stranger = await strangers.link("primary", "process-server", "ps-1");
  let accepted = 0;
  const listening = await listener.listen(LOOPBACK, () => ((accepted += 1), {}));
  try {
    await rejection(
      stranger.dial(listening.address, { expect: "master-target", handlers: {} }),
      "CREDENTIALS_REJECTED",
    );

    // Knows our CA, so trusts the listener, but its own certificate is a stranger's.
    const own = await strangers.credentials({ site: "primary", role: "process-server", name: "ps-1" });
    const identity = { site: "primary", role: "process-server", name: "ps-1" } as const;
    const mixed = createLink({
      identity,
      credentials: () => ({ ...own, ca: certified.authority.cert }),
      clock: systemClock,
      log: silentLog,
    });
    const fault = await rejection(
      mixed.dial(listening.address, { expect: "master-target", handlers: {} }),
      "CREDENTIALS_REJECTED",
    );
    assert.match(fault.message, /CA/);
    assert.equal(accepted, 0);
  } finally {
    await listening.close();
  }
});

test("a dialler without a certificate is refused", async () => {
  const listening = await listener.listen(LOOPBACK, () => assert.fail("must not be accepted"));
  try {
    const ended = Promise.withResolvers<string>();
    const socket = connectTls({
      ...listening.address,
      ca: certified.authority.cert,
      ALPNProtocols: [LINK_PROTOCOL],
      checkServerIdentity: () => undefined,
    });
    let said = "";
    socket.on("data", (chunk: Buffer) => (said += chunk.toString("latin1")));
    socket.on("error", () => ended.resolve(said)).on("close", () => ended.resolve(said));
    assert.match(await ended.promise, /CREDENTIALS_REJECTED/);
  } finally {
    await listening.close();
  }
});

test("a link cannot be made for somebody else's certificate", async () => {
  const files = await certified.credentials({ site: "primary", role: "agent", name: "web-1" });
  const identity = { site: "primary", role: "agent", name: "web-2" } as const;
  assert.throws(() => createLink({ identity, credentials: () => files, clock: systemClock, log: silentLog }), {
    code: "CREDENTIALS_REJECTED",
  });
});

test("garbage, lengths over the bound and unknown types end the link with PROTOCOL_INVALID; the listener goes on", async () => {
  const files = await certified.credentials({ site: "primary", role: "process-server", name: "ps-1" });
  const tooLong = encodeHead("notice", { json: {} });
  tooLong.writeUInt32BE(0xffff_ffff, 0);
  const unknownType = encodeHead("ping", {});
  unknownType.writeUInt8(99, 4);
  const notJson = encodeHead("call", { id: 1, json: "xx" });
  notJson.write("{{{{", 13);
  for (const garbage of [randomBytes(64), tooLong, unknownType, notJson, Buffer.alloc(13)]) {
    const accepted = Promise.withResolvers<Peer>();
    const listening = await listener.listen(LOOPBACK, (peer) => (accepted.resolve(peer), {}));
    try {
      const socket = connectTls({
        ...files,
        ...listening.address,
        ALPNProtocols: [LINK_PROTOCOL],
        checkServerIdentity: () => undefined,
      });
      socket.on("error", () => undefined);
      socket.write(garbage);
      socket.resume();
      assert.equal((await (await accepted.promise).closed)?.code, "PROTOCOL_INVALID");
      socket.destroy();
      const peer = await dialler.dial(listening.address, { expect: "master-target", handlers: {} });
      peer.close();
    } finally {
      await listening.close();
    }
  }
});

test("something that does not speak TLS is PROTOCOL_INVALID or unreachable, not a hang", async () => {
  const server = createServer((socket) => socket.end("HTTP/1.1 400 Bad Request\r\n\r\n"));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  try {
    const { port } = server.address() as AddressInfo;
    const fault = await rejection(dialler.dial({ host: "127.0.0.1", port }, { expect: "master-target", handlers: {} }));
    assert.ok(["PROTOCOL_INVALID", "PEER_UNREACHABLE"].includes(fault.code), fault.code);
  } finally {
    server.close();
  }
});

test("a peer that falls silent is closed; one whose handler is slow is not", async () => {
  const timing = { pingMs: 40, silenceMs: 160 };
  const near = await certified.link("primary", "process-server", "ps-1", { timing });
  const far = await certified.link("secondary", "master-target", "mt-1", { timing });
  const gate = Promise.withResolvers<void>();
  let delivered = 0;
  const listening = await far.listen(LOOPBACK, () => ({
    frames: async () => {
      await gate.promise;
      delivered += 1;
    },
    done: async () => delivered,
  }));
  const wire = await createWire(listening.address.port);
  try {
    const peer = await near.dial({ host: "127.0.0.1", port: wire.port }, { expect: "master-target", handlers: {} });
    const payload = new Uint8Array(1_048_576).fill(5);
    const sent = Promise.all(Array.from({ length: 30 }, () => peer.notify("frames", {}, payload)));
    await systemClock.sleep(600);
    gate.resolve();
    await sent;
    assert.equal(await peer.call("done", {}), 30);

    wire.freeze();
    assert.equal((await peer.closed)?.code, "PEER_UNREACHABLE");
  } finally {
    await wire.close();
    await listening.close();
  }
});

test("a kept link comes back after every loss, and ends when it is closed", async () => {
  const accepted: Peer[] = [];
  let listening = await listener.listen(LOOPBACK, (peer) => (accepted.push(peer), { ping: async () => "pong" }));
  const { address } = listening;
  let used = 0;
  const kept = keepDialled(
    dialler,
    address,
    {
      expect: "master-target",
      handlers: {},
      clock: systemClock,
      random: systemRandom,
      log: silentLog,
      backoffMsMin: 5,
      backoffMsMax: 40,
    },
    () => void (used += 1),
  );
  try {
    for (let round = 1; round <= 3; round += 1) {
      const peer = await kept.connected();
      assert.equal(await peer.call("ping", {}), "pong");
      assert.equal(used, round);
      await listening.close();
      await peer.closed;
      await systemClock.sleep(60);
      assert.equal(kept.peer, undefined);
      listening = await listener.listen(address, (next) => (accepted.push(next), { ping: async () => "pong" }));
    }
    await kept.connected();
    await kept.close();
    await rejection(kept.connected(), "INTERRUPTED");
  } finally {
    await kept.close();
    await listening.close();
  }
});

interface CuttableWire {
  readonly port: number;
  /** Reset both ends. */
  cut(): void;
  /** Stop carrying bytes, keep the connections. */
  freeze(): void;
  close(): Promise<void>;
}

/** A TCP relay in front of `port` that can be cut. */
async function createWire(port: number): Promise<CuttableWire> {
  const sockets = new Set<Socket>();
  const server = createServer((near) => {
    const far = connectTcp(port, "127.0.0.1");
    for (const [one, other] of [
      [near, far],
      [far, near],
    ] as const) {
      sockets.add(one);
      one.on("error", () => other.destroy());
      one.on("close", () => (sockets.delete(one), other.destroy()));
      one.pipe(other);
    }
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  // A reset while the socket's own FIN is under way is never completed by libuv, and then Node spins at exit.
  const cut = (): void =>
    sockets.forEach((socket) => (socket.writableEnded ? socket.destroy() : socket.resetAndDestroy()));
  return {
    port: (server.address() as AddressInfo).port,
    cut,
    freeze: () => sockets.forEach((socket) => socket.unpipe()),
    close: async () => {
      cut();
      await new Promise<void>((resolve) => server.close(() => resolve()));
    },
  };
}
