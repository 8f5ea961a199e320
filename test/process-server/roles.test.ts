/** The roles as they are started in the field: processes with a configuration, killed with -9 and started again. */
import assert from "node:assert/strict";
import { spawn, type ChildProcess } from "node:child_process";
import { generateKeyPairSync, sign } from "node:crypto";
import { once } from "node:events";
import { closeSync, mkdirSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import type { Peer } from "#ports/link.ts";
import type { ProcessServer } from "#ports/process-server.ts";
import { freePort } from "../../src/adapters/net/free-port.ts";
import { peerCall, processServerProxy } from "../../src/adapters/relay/proxy.ts";
import { createHistory, SECTOR } from "../capture/write-history.ts";
import { seededRandom } from "../capture/seeded-random.ts";
import { connectNbd, ConnectionLost, type NbdClient } from "../nbd/nbd-client.ts";
import { createTestAuthority } from "../support/credentials.ts";
import { startFakeMover } from "../support/fake-mover.ts";
import { eventually, testOrder } from "../support/source-site.ts";

const PROGRAM = new URL("../../src/main/leeward.ts", import.meta.url).pathname;
const seed = Number(process.env["LEEWARD_SEED"] ?? Math.floor(Math.random() * 2 ** 31));
const SECTORS = 8 * 3_000;

test(
  `kill -9 of the agent, its tap and the process server while a machine writes (seed ${seed})`,
  { timeout: 180_000 },
  async (t) => {
    const folder = mkdtempSync(join(tmpdir(), "leeward-roles-"));
    const running = new Map<string, ChildProcess>();
    let over = false;
    t.after(async () => {
      over = true;
      for (const child of running.values()) child.kill("SIGKILL");
      for (const pid of tapsOf(folder)) process.kill(pid, "SIGKILL");
      rmSync(folder, { recursive: true, force: true, maxRetries: 5 });
    });
    const authority = await createTestAuthority();
    const { publicKey, privateKey } = generateKeyPairSync("ed25519");
    const identityOf = async (role: "agent" | "process-server", name: string) => {
      const home = join(folder, role);
      mkdirSync(home);
      const files = await authority.credentials({ site: "primary", role, name });
      for (const [file, text] of Object.entries(files)) writeFileSync(join(home, `${file}.pem`), text);
      return {
        home,
        identity: { certFile: join(home, "cert.pem"), keyFile: join(home, "key.pem"), caFile: join(home, "ca.pem") },
      };
    };
    const ps = await identityOf("process-server", "ps");
    const agent = await identityOf("agent", "machine");
    writeFileSync(join(ps.home, "order-key.pem"), publicKey.export({ type: "spki", format: "pem" }));

    let control: ProcessServer | undefined;
    const controlLink = await authority.link("secondary", "control", "control");
    const controlListener = await controlLink.listen({ host: "127.0.0.1", port: 0 }, (peer: Peer) => {
      control = processServerProxy(peerCall(peer));
      return {};
    });
    t.after(() => controlListener.close());
    const history = createHistory([SECTORS], seededRandom(seed));
    let points = 0;
    const mover = await startFakeMover({
      link: await authority.link("secondary", "master-target", "mt"),
      onPoint: ({ images }) => {
        history.judge([images.get("disk")!.subarray(0, SECTORS * SECTOR)], {
          after: 0,
          before: Number.POSITIVE_INFINITY,
        });
        points += 1;
      },
    });
    t.after(() => mover.close());

    const listen = { host: "127.0.0.1", port: await freePort() };
    const image = join(folder, "disk.img");
    writeFileSync(image, history.initial(0));
    const base = { site: "primary" };
    writeFileSync(
      join(ps.home, "config.json"),
      JSON.stringify({
        ...base,
        name: "ps",
        stateDir: ps.home,
        identity: ps.identity,
        listen,
        control: controlListener.address,
        spoolBytesMax: 32 << 20,
        orderKeyFile: join(ps.home, "order-key.pem"),
      }),
    );
    writeFileSync(
      join(agent.home, "config.json"),
      JSON.stringify({
        ...base,
        name: "machine",
        stateDir: agent.home,
        identity: agent.identity,
        processServers: [listen],
      }),
    );
    const start = (role: "agent" | "process-server"): void => {
      const log = openSync(join(folder, `${role}.log`), "a");
      running.set(
        role,
        spawn(process.execPath, [PROGRAM, role, "--config", join(folder, role, "config.json")], {
          stdio: ["ignore", log, log],
        }),
      );
      closeSync(log);
    };
    const kill = async (role: "agent" | "process-server"): Promise<void> => {
      const child = running.get(role)!;
      assert.equal(child.exitCode, null, readFileSync(join(folder, `${role}.log`), "utf8").slice(-2_000));
      child.kill("SIGKILL");
      await once(child, "exit");
    };
    start("process-server");
    start("agent");
    await eventually(
      "the agent is connected",
      async () => {
        const agents = await control?.listAgents({}).catch(() => undefined);
        return agents?.some((known) => known.machine === "machine" && known.connected) === true;
      },
      30_000,
    );
    assert.deepEqual(await control!.inspectDisks({ machine: "machine", sources: [`tap:${image}`], groupId: "group" }), [
      { source: `tap:${image}`, sizeBytes: SECTORS * SECTOR, sectorBytes: SECTOR },
    ]);
    const order = testOrder("group", mover.port, [
      { machine: "machine", disks: [{ diskId: "disk", source: `tap:${image}` }] },
    ]);
    const text = JSON.stringify(order);
    await control!.putOrder({
      signed: { order: text, signature: sign(undefined, Buffer.from(text), privateKey).toString("base64") },
    });
    await eventually("the first point", () => points > 0, 40_000);

    const socket = (JSON.parse(readFileSync(join(agent.home, "disks.json"), "utf8")) as { disks: { socket: string }[] })
      .disks[0]!.socket;
    let connection: Promise<NbdClient> | undefined;
    const request = async (action: (client: NbdClient) => Promise<void>): Promise<void> => {
      for (;;) {
        try {
          connection ??= connectNbd({ path: socket }, "disk");
          return await action(await connection);
        } catch (error) {
          const { code } = error as NodeJS.ErrnoException;
          if (over || !(error instanceof ConnectionLost || code === "ECONNREFUSED" || code === "ENOENT")) throw error;
          connection = undefined;
          await new Promise((resolve) => setTimeout(resolve, 5));
        }
      }
    };
    const disk = {
      sectors: SECTORS,
      write: (data: Buffer, offset: number, fua: boolean) => request((client) => client.write(data, offset, { fua })),
      zero: (offset: number, length: number) => request((client) => client.zero(offset, length)),
      trim: (offset: number, length: number) => request((client) => client.trim(offset, length)),
      flush: () => request((client) => client.flush()),
    };
    const morePoints = async (): Promise<void> => {
      const before = points;
      await eventually("points are made again", () => points > before + 1, 40_000);
    };
    const losses = async (): Promise<void> => {
      await morePoints();
      await kill("agent");
      start("agent");
      await morePoints();
      await kill("process-server");
      start("process-server");
      await morePoints();
      for (const pid of tapsOf(folder)) process.kill(pid, "SIGKILL");
      await morePoints();
    };
    await history.run([disk], 4, losses());
    const cut = await control!.cutNow({ groupId: "group", operationId: "last", timeoutMs: 30_000 });
    assert.ok(cut.barrier > 0);
    (await connection)?.destroy();
    assert.ok(
      mover.images
        .get("disk")!
        .subarray(0, SECTORS * SECTOR)
        .equals(readFileSync(image)),
      "the target is the source",
    );
    assert.deepEqual(mover.errors, []);
    t.diagnostic(`${points} points, ${history.changes} writes`);
  },
);

/** Pids of the taps that were started below `folder`: found by their command line, which names a file there. */
function tapsOf(folder: string): number[] {
  return readdirSync("/proc")
    .filter((name) => /^[0-9]+$/.test(name))
    .filter((name) => {
      try {
        return readFileSync(`/proc/${name}/cmdline`, "utf8").includes(`${folder}/agent/tap.json`);
      } catch {
        return false; // Ended meanwhile.
      }
    })
    .map(Number);
}
