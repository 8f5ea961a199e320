/**
 * A source site for tests: a process server, agents with real taps (processes of their own), links with real certificates. Each part can be lost and
 * started again; the machines write through NBD and never notice but for a pause.
 */
import { generateKeyPairSync, sign } from "node:crypto";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { systemClock } from "../../src/adapters/clock/system-clock.ts";
import { createLog, silentLog } from "../../src/adapters/log/pino-log.ts";
import { startAgent, type Agent } from "../../src/agent/agent.ts";
import { startLaneThread } from "../../src/agent/lane-threads.ts";
import { spawnTap } from "../../src/agent/spawn-tap.ts";
import { openSweepLane } from "../../src/agent/sweep-lane.ts";
import type { TapProcess } from "../../src/agent/tap-host.ts";
import { connectTap } from "../../src/capture/tap/tap-client.ts";
import { createCompressPool } from "../../src/process-server/compress-pool.ts";
import { startProcessServer, type RunningProcessServer } from "../../src/process-server/process-server.ts";
import { noSiteCache, type SiteCache } from "../../src/process-server/site-cache.ts";
import { Fault } from "#model/fault.ts";
import type { Link, Peer } from "#ports/link.ts";
import type { ReplicationOrder, SignedOrder } from "#ports/replication.ts";
import type { HistoryDisk } from "../capture/write-history.ts";
import { SECTOR } from "../capture/write-history.ts";
import { connectNbd, ConnectionLost, type NbdClient } from "../nbd/nbd-client.ts";
import { createTestAuthority, type TestAuthority } from "./credentials.ts";
import { testFiles } from "./test-files.ts";

const main = (name: string): URL => new URL(`../../src/main/${name}.ts`, import.meta.url);
export const testLog = process.env["LEEWARD_TEST_LOG"] === undefined ? silentLog : createLog({ level: "debug" });

export interface SourceSite {
  readonly folder: string;
  readonly authority: TestAuthority;
  /** Where the agents dial: a port that stays the same over restarts of the process server. */
  readonly port: number;
  readonly processServer: RunningProcessServer;
  startProcessServer(): Promise<void>;
  /** As lost as it can be in one process: nothing of it answers any more, its memory is gone. */
  loseProcessServer(): Promise<void>;
  addMachine(
    name: string,
    disks: readonly { readonly diskId: string; readonly image: Buffer }[],
    options?: { readonly threads?: boolean },
  ): Promise<Machine>;
  sign(order: ReplicationOrder): SignedOrder;
  close(): Promise<void>;
}

export interface Machine {
  readonly name: string;
  readonly images: readonly string[];
  readonly sources: readonly string[];
  startAgent(): void;
  loseAgent(): Promise<void>;
  killTap(): Promise<void>;
  /** The machine attaches its disks; retries over a lost tap. Waits until the taps serve them. */
  attach(): Promise<HistoryDisk[]>;
}

export interface SiteOptions {
  readonly spoolBytesMax?: number;
  readonly frozenBytesMax?: number;
  readonly cache?: SiteCache;
  /** An agent has answered; the process server hears it when this settles. */
  readonly onAgentAnswer?: (method: string) => Promise<void>;
}

export async function startSourceSite(options: SiteOptions = {}): Promise<SourceSite> {
  const folder = mkdtempSync(join(tmpdir(), "leeward-source-"));
  const authority = await createTestAuthority();
  const keys = generateKeyPairSync("ed25519");
  const orderKey = keys.publicKey.export({ type: "spki", format: "pem" }).toString();
  const pool = createCompressPool(new URL("../../src/process-server/compress-worker.ts", import.meta.url), 2);
  const psLink = heldAnswers(await authority.link("primary", "process-server", "ps"), options.onAgentAnswer);
  const cleanups: (() => Promise<void>)[] = [];
  let processServer: RunningProcessServer | undefined;
  let port = 0;

  async function start(): Promise<void> {
    processServer = await startProcessServer({
      files: testFiles,
      renew: () => Promise.reject(new Fault("PEER_UNREACHABLE", "There is no control in this test")),
      link: psLink,
      listen: { host: "127.0.0.1", port },
      stateDir: join(folder, "ps"),
      spoolBytesMax: options.spoolBytesMax ?? 64 << 20,
      orderKey,
      compressPayload: pool.compress,
      cache: options.cache ?? noSiteCache,
      throttle: () => Promise.resolve(),
      clock: systemClock,
      log: testLog.child({ role: "process-server" }),
    });
    port = processServer.address.port;
  }
  await start();

  return {
    folder,
    authority,
    get port() {
      return port;
    },
    get processServer() {
      if (processServer === undefined) throw new Error("The process server is lost");
      return processServer;
    },
    startProcessServer: start,
    async loseProcessServer() {
      const lost = processServer;
      processServer = undefined;
      await lost?.close();
    },
    async addMachine(name, disks, { threads = false } = {}) {
      const { machine, close } = await startMachine({
        name,
        disks,
        folder,
        authority,
        port: () => port,
        threads,
        frozenBytesMax: options.frozenBytesMax,
      });
      cleanups.push(close);
      return machine;
    },
    sign(order) {
      const text = JSON.stringify(order);
      return { order: text, signature: sign(undefined, Buffer.from(text), keys.privateKey).toString("base64") };
    },
    async close() {
      for (const cleanup of cleanups) await cleanup();
      await processServer?.close();
      await pool.close();
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

async function startMachine(options: {
  readonly name: string;
  readonly disks: readonly { readonly diskId: string; readonly image: Buffer }[];
  readonly folder: string;
  readonly authority: TestAuthority;
  readonly port: () => number;
  readonly threads: boolean;
  readonly frozenBytesMax: number | undefined;
}): Promise<{ readonly machine: Machine; readonly close: () => Promise<void> }> {
  const { name, authority, threads } = options;
  const home = join(options.folder, name);
  mkdirSync(home);
  const images = options.disks.map(({ diskId, image }) => {
    const path = join(home, `${diskId}.img`);
    writeFileSync(path, image);
    return path;
  });
  const identity = { site: "primary", role: "agent", name } as const;
  const files = await authority.credentials(identity);
  for (const [file, text] of Object.entries(files)) writeFileSync(join(home, `${file}.pem`), text);
  const link: Link = await authority.link("primary", "agent", name);
  const config = {
    site: "primary",
    name,
    stateDir: home,
    identity: { certFile: join(home, "cert.pem"), keyFile: join(home, "key.pem"), caFile: join(home, "ca.pem") },
    processServers: [],
  };
  let agent: Agent | undefined;
  let tap: TapProcess | undefined;
  let ended = false;
  const attached: NbdClient[] = [];

  const machine: Machine = {
    name,
    images,
    sources: images.map((image) => `tap:${image}`),
    startAgent() {
      agent = startAgent({
        files: testFiles,
        link,
        machine: name,
        stateDir: home,
        processServers: [{ host: "127.0.0.1", port: options.port() }],
        bootId: "test-boot",
        version: "0.0.0",
        connectTap,
        spawnTap(tapConfig) {
          const withBound = {
            ...tapConfig,
            ...(options.frozenBytesMax === undefined ? {} : { frozenBytesMax: options.frozenBytesMax }),
          };
          tap = spawnTap(withBound, { program: main("tap").pathname, folder: home });
          return tap;
        },
        startLane: (target) =>
          threads
            ? startLaneThread(
                main("agent-lane"),
                { site: "primary", role: "agent", name, files: config.identity },
                target,
              )
            : openSweepLane({ link, log: testLog.child({ role: "lane", machine: name }), ...target }),
        laneCount: 2,
        reportMs: 300,
        clock: systemClock,
        log: testLog.child({ role: "agent", machine: name }),
      });
    },
    async loseAgent() {
      const lost = agent;
      agent = undefined;
      await lost?.close();
    },
    async killTap() {
      const lost = tap;
      tap = undefined;
      if (lost?.pid === undefined) return;
      try {
        process.kill(lost.pid, "SIGKILL");
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error; // It ended before.
      }
      await lost.ended;
    },
    attach: () =>
      Promise.all(
        options.disks.map(async ({ diskId, image }) =>
          attachDisk(diskId, join(home, "disks.json"), image.length / SECTOR),
        ),
      ),
  };

  return {
    machine,
    async close() {
      ended = true;
      for (const client of attached) client.destroy();
      await machine.loseAgent();
      await machine.killTap();
    },
  };

  async function attachDisk(diskId: string, bookFile: string, sectors: number): Promise<HistoryDisk> {
    let connection: Promise<NbdClient> | undefined;
    const connect = async (): Promise<NbdClient> => {
      const disks = (JSON.parse(readFileSync(bookFile, "utf8")) as { disks: { diskId: string; socket: string }[] })
        .disks;
      const client = await connectNbd({ path: disks.find((disk) => disk.diskId === diskId)!.socket }, diskId);
      attached.push(client);
      return client;
    };
    async function request(action: (client: NbdClient) => Promise<void>): Promise<void> {
      for (;;) {
        try {
          connection ??= connect();
          return await action(await connection);
        } catch (error) {
          const code = (error as NodeJS.ErrnoException).code;
          if (
            ended ||
            !(
              error instanceof ConnectionLost ||
              code === "ECONNREFUSED" ||
              code === "ECONNRESET" ||
              code === "ENOENT" ||
              error instanceof TypeError
            )
          )
            throw error;
          connection = undefined;
          await new Promise((resolve) => setTimeout(resolve, 5));
        }
      }
    }
    await request((client) => client.flush());
    return {
      sectors,
      write: (data, offset, fua) => request((client) => client.write(data, offset, { fua })),
      zero: (offset, length) => request((client) => client.zero(offset, length)),
      trim: (offset, length) => request((client) => client.trim(offset, length)),
      flush: () => request((client) => client.flush()),
    };
  }
}

/** A link whose accepted peers' answers go through `held`. */
function heldAnswers(link: Link, held: SiteOptions["onAgentAnswer"]): Link {
  if (held === undefined) return link;
  const holding = (peer: Peer): Peer =>
    Object.assign(Object.create(peer) as Peer, {
      async call(...args: Parameters<Peer["call"]>) {
        const answer = await peer.call(...args);
        await held(args[0]);
        return answer;
      },
    });
  return { ...link, listen: (address, accept) => link.listen(address, (peer) => accept(holding(peer))) };
}

export function testOrder(
  groupId: string,
  target: number,
  members: ReplicationOrder["members"],
  more: Partial<ReplicationOrder> = {},
): ReplicationOrder {
  return {
    groupId,
    groupName: groupId,
    version: 1,
    state: "active",
    branch: "root",
    groupEpoch: 1,
    sourceSite: "primary",
    target: { site: "secondary", host: "127.0.0.1", port: target },
    intervalMs: 200,
    compressAt: "agent",
    members,
    ...more,
  };
}

/** Settles once `probe` is true. */
export async function eventually(
  what: string,
  probe: () => boolean | Promise<boolean>,
  timeoutMs = 20_000,
): Promise<void> {
  const deadline = Date.now() + timeoutMs;
  while (!(await probe())) {
    if (Date.now() > deadline) throw new Error(`Not within ${timeoutMs} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
