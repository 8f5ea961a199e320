/**
 * What every adapter of ports/link.ts must hold. `setup` yields a pair of links, made anew for each test, and a way to cut whatever
 * connections are between them without a goodbye.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Fault, isFault } from "#model/fault.ts";
import type { FaultCode } from "#model/fault.ts";
import type { Handlers, Link, Listener, Peer } from "#ports/link.ts";

export interface LinkPair {
  /** process-server "ps-1" of site "primary". */
  readonly dialler: Link;
  /** master-target "mt-1" of site "secondary". */
  readonly listener: Link;
  /** The address to dial when `listening` is bound: possibly a wire that can be cut. */
  wire(listening: Listener): Promise<{ readonly host: string; readonly port: number }>;
  cut(): void;
  close(): Promise<void>;
}

export interface Pair {
  readonly near: Peer;
  readonly far: Peer;
  readonly links: LinkPair;
}

export function linkContract(name: string, setup: () => Promise<LinkPair>): void {
  async function connected(
    handlers: { readonly near?: Handlers; readonly far?: Handlers },
    use: (pair: Pair) => Promise<void>,
  ): Promise<void> {
    const links = await setup();
    try {
      const accepted = Promise.withResolvers<Peer>();
      const listening = await links.listener.listen({ host: "127.0.0.1", port: 0 }, (peer) => {
        accepted.resolve(peer);
        return handlers.far ?? {};
      });
      try {
        const address = await links.wire(listening);
        const near = await links.dialler.dial(address, { expect: "master-target", handlers: handlers.near ?? {} });
        await use({ near, far: await accepted.promise, links });
        near.close();
      } finally {
        await listening.close();
      }
    } finally {
      await links.close();
    }
  }

  test(`${name}: each side knows the other by its certificate`, async () => {
    await connected({}, async ({ near, far }) => {
      assert.deepEqual(near.identity, { site: "secondary", role: "master-target", name: "mt-1" });
      assert.deepEqual(far.identity, { site: "primary", role: "process-server", name: "ps-1" });
    });
  });

  test(`${name}: both sides can call, calls run beside each other, and undefined arrives as null`, async () => {
    const gate = Promise.withResolvers<void>();
    const far: Handlers = {
      slow: async () => (await gate.promise, "slow"),
      add: async ({ a, b }) => Number(a) + Number(b),
      nothing: async () => undefined,
      back: async (_params, { peer }) => await peer.call("whoami", {}),
    };
    await connected({ far, near: { whoami: async () => "near" } }, async ({ near }) => {
      const slow = near.call("slow", {});
      assert.equal(await near.call("add", { a: 20, b: 22 }), 42);
      assert.equal(await near.call("nothing", {}), null);
      assert.equal(await near.call("back", {}), "near");
      gate.resolve();
      assert.equal(await slow, "slow");
    });
  });

  test(`${name}: a Fault of a handler arrives as it is; any other error does not leak`, async () => {
    const fault = new Fault("STORE_DENIED", "The store said no", {
      details: { key: "a/b", status: 403 },
      hint: "Check the credentials",
    });
    const far: Handlers = {
      fault: async () => Promise.reject(fault),
      bug: async () => Promise.reject(new TypeError("secret internals")),
    };
    await connected({ far }, async ({ near }) => {
      const seen = await rejection(near.call("fault", {}));
      assert.deepEqual(seen.toJSON(), fault.toJSON());
      const bug = await rejection(near.call("bug", {}), "PROTOCOL_INVALID");
      assert.ok(!bug.message.includes("secret"));
      await rejection(near.call("no-such-method", {}), "PROTOCOL_INVALID");
      assert.equal(await near.call("fault", {}).catch(() => "still open"), "still open");
    });
  });

  test(`${name}: notices and calls are delivered in the order in which they were sent, one notice at a time`, async () => {
    const seen: number[] = [];
    let running = 0;
    const far: Handlers = {
      count: async ({ n }, { payload }) => {
        assert.equal(running, 0);
        running += 1;
        await new Promise((resolve) => setTimeout(resolve, Number(n) % 3));
        assert.equal(payload === undefined ? undefined : firstNumber(payload), Number(n) % 4 === 0 ? undefined : n);
        seen.push(Number(n));
        running -= 1;
      },
      sum: async () => seen.length,
    };
    await connected({ far }, async ({ near }) => {
      for (let n = 0; n < 60; n += 1)
        void near.notify("count", { n }, n % 4 === 0 ? undefined : numbered(n, 4 + n * 1000));
      assert.equal(await near.call("sum", {}), 60);
      assert.deepEqual(seen, [...Array(60).keys()]);
    });
  });

  test(`${name}: payloads of every size arrive byte for byte, while the sender reuses its buffer`, async () => {
    const sizes = [1, 2, 4096, 16_383, 16_384, 32_768, 32_769, 65_537, 1_048_575, 4_194_304];
    const seen: { readonly length: number; readonly intact: boolean }[] = [];
    const far: Handlers = {
      frames: async ({ n }, { payload }) => {
        await new Promise((resolve) => setImmediate(resolve));
        seen.push({ length: payload!.length, intact: payload!.every((byte, at) => byte === (Number(n) + at) % 251) });
      },
      done: async () => null,
    };
    await connected({ far }, async ({ near }) => {
      const buffer = new Uint8Array(4_194_304);
      for (const [n, size] of sizes.entries()) {
        for (let at = 0; at < size; at += 1) buffer[at] = (n + at) % 251;
        await near.notify("frames", { n }, buffer.subarray(0, size));
        buffer.fill(255);
      }
      await near.call("done", {});
      assert.deepEqual(
        seen,
        sizes.map((length) => ({ length, intact: true })),
      );
    });
  });

  test(`${name}: a slow receiver slows the sender down instead of filling memory`, async () => {
    const gate = Promise.withResolvers<void>();
    let delivered = 0;
    const far: Handlers = {
      frames: async () => {
        await gate.promise;
        delivered += 1;
      },
      done: async () => delivered,
    };
    await connected({ far }, async ({ near }) => {
      let handed = 0;
      const payload = numbered(7, 1_048_576);
      const sending = (async () => {
        for (let n = 0; n < 100; n += 1) {
          await near.notify("frames", {}, payload);
          handed += 1;
        }
      })();
      await settled(() => handed);
      assert.ok(handed < 40, `the sender was let ahead by ${handed} MiB`);
      assert.equal(delivered, 0);
      gate.resolve();
      await sending;
      assert.equal(await near.call("done", {}), 100);
    });
  });

  test(`${name}: a call ends by its own time-out or signal, and its late answer disturbs nothing`, async () => {
    const far: Handlers = {
      slow: async () => (await new Promise((resolve) => setTimeout(resolve, 120)), "late"),
      quick: async () => "quick",
    };
    await connected({ far }, async ({ near }) => {
      await rejection(near.call("slow", {}, { timeoutMs: 30 }), "TIMED_OUT");
      const controller = new AbortController();
      const call = near.call("slow", {}, { signal: controller.signal });
      controller.abort(new Fault("FENCED", "Another site is active"));
      await rejection(call, "FENCED");
      await new Promise((resolve) => setTimeout(resolve, 200));
      assert.equal(await near.call("quick", {}), "quick");
    });
  });

  test(`${name}: a goodbye delivers what was sent before it, and carries its reason`, async () => {
    const seen: number[] = [];
    const far: Handlers = {
      count: async ({ n }) => {
        await new Promise((resolve) => setTimeout(resolve, 5));
        seen.push(Number(n));
      },
    };
    await connected({ far }, async ({ near, far: peer }) => {
      for (let n = 0; n < 10; n += 1) await near.notify("count", { n });
      near.close(new Fault("FENCED", "Another site is active"));
      assert.equal((await peer.closed)?.code, "FENCED");
      assert.deepEqual(seen, [...Array(10).keys()]);
      await rejection(near.call("count", {}), "PEER_UNREACHABLE");
      await rejection(near.notify("count", {}), "PEER_UNREACHABLE");
    });
  });

  test(`${name}: a plain close is no fault on either side`, async () => {
    await connected({}, async ({ near, far }) => {
      near.close();
      assert.equal(await near.closed, undefined);
      assert.equal(await far.closed, undefined);
    });
  });

  test(`${name}: a cut connection fails open calls and notices, aborts handlers, and starts none afterwards`, async () => {
    let aborted = 0;
    let startedAfter = 0;
    let isClosed = false;
    const started = Promise.withResolvers<void>();
    const hang: Handlers[string] = async (_params, { signal }) => {
      if (isClosed) startedAfter += 1;
      started.resolve();
      await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve()));
      aborted += 1;
    };
    await connected({ far: { hang, frames: hang } }, async ({ near, far, links }) => {
      void far.closed.then(() => (isClosed = true));
      const call = near.call("hang", {});
      const notices = Array.from({ length: 20 }, () => near.notify("frames", {}, numbered(1, 1_048_576)));
      const outcomes = Promise.allSettled([call, ...notices]);
      await started.promise;
      await new Promise((resolve) => setTimeout(resolve, 50));
      links.cut();
      assert.equal((await near.closed)?.code, "PEER_UNREACHABLE");
      assert.equal((await far.closed)?.code, "PEER_UNREACHABLE");
      const [first, ...rest] = await outcomes;
      assert.ok(first!.status === "rejected" && isFault(first.reason, "PEER_UNREACHABLE"));
      assert.ok(rest.some((one) => one.status === "rejected"));
      for (const one of rest) assert.ok(one.status === "fulfilled" || isFault(one.reason, "PEER_UNREACHABLE"));
      await new Promise((resolve) => setTimeout(resolve, 30));
      assert.equal(startedAfter, 0);
      assert.equal(aborted, 2);
    });
  });

  test(`${name}: a notice whose handler fails ends the link with that Fault`, async () => {
    const far: Handlers = { frames: async () => Promise.reject(new Fault("FENCED", "Another site is active")) };
    await connected({ far }, async ({ near, far: peer }) => {
      await near.notify("frames", {});
      assert.equal((await near.closed)?.code, "FENCED");
      assert.equal((await peer.closed)?.code, "FENCED");
    });
  });

  test(`${name}: the listener can refuse a peer, and the dialler is told why`, async () => {
    const links = await setup();
    const listening = await links.listener.listen({ host: "127.0.0.1", port: 0 }, (peer) => {
      throw new Fault("PEER_REJECTED", `Not expecting ${peer.identity.name}`, { hint: "Ask elsewhere" });
    });
    try {
      const dialling = links.dialler.dial(await links.wire(listening), { expect: "master-target", handlers: {} });
      const fault = await rejection(dialling, "PEER_REJECTED");
      assert.equal(fault.hint, "Ask elsewhere");
    } finally {
      await listening.close();
      await links.close();
    }
  });

  test(`${name}: a listener of another role than expected is PEER_REJECTED; nobody listening is PEER_UNREACHABLE`, async () => {
    const links = await setup();
    const listening = await links.listener.listen({ host: "127.0.0.1", port: 0 }, () => ({}));
    try {
      await rejection(
        links.dialler.dial(await links.wire(listening), { expect: "control", handlers: {} }),
        "PEER_REJECTED",
      );
      await listening.close();
      await rejection(
        links.dialler.dial(listening.address, { expect: "master-target", handlers: {} }),
        "PEER_UNREACHABLE",
      );
      const aborted = AbortSignal.abort(new Fault("INTERRUPTED", "Enough"));
      const dialling = links.dialler.dial(listening.address, {
        expect: "master-target",
        handlers: {},
        signal: aborted,
      });
      await rejection(dialling, "INTERRUPTED");
    } finally {
      await links.close();
    }
  });
}

export async function rejection(promise: Promise<unknown>, code?: FaultCode): Promise<Fault> {
  const error = await promise.then(
    () => assert.fail("expected a fault"),
    (reason: unknown) => reason,
  );
  if (!isFault(error)) throw error;
  if (code !== undefined) assert.equal(error.code, code, error.message);
  return error;
}

/** Bytes that say which message they are of. */
function numbered(n: number, length: number): Uint8Array {
  const payload = new Uint8Array(length).fill((n % 250) + 1);
  new DataView(payload.buffer).setUint32(0, n);
  return payload;
}

function firstNumber(payload: Uint8Array): number {
  return new DataView(payload.buffer, payload.byteOffset).getUint32(0);
}

/** Waits until a number stays the same for 300 ms. */
async function settled(read: () => number): Promise<void> {
  for (let last = -1; last !== read();) {
    last = read();
    await new Promise((resolve) => setTimeout(resolve, 300));
  }
}
