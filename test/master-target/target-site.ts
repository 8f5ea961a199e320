/** A whole target site for tests: a real S3 server, a master target with real child processes, and links to its mover. */
import { execFile } from "node:child_process";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import type { TestContext } from "node:test";
import type { Address, Link } from "#ports/link.ts";
import { freePort } from "../../src/adapters/net/free-port.ts";
import { silentLog, createLog } from "../../src/adapters/log/pino-log.ts";
import { startMasterTarget, type MasterTargetConfig, type RunningMasterTarget } from "../../src/main/master-target.ts";
import { createTestAuthority } from "../support/credentials.ts";
import { startVersitygw, type Versitygw } from "../support/versitygw.ts";
import { ScriptedSource } from "../data-mover/mover-source.ts";

export const run = promisify(execFile);
export const GROUP = "web-tier";

export interface TargetSite {
  readonly config: MasterTargetConfig;
  readonly server: Versitygw;
  readonly sourceLink: Link;
  /** Of the process server at the master target's own site. */
  readonly localLink: Link;
  readonly folder: string;
  target: RunningMasterTarget;
  /** End the master target as a restart of its service would, and start it again. */
  restart(): Promise<void>;
  prepare(source: ScriptedSource): Promise<Address>;
  /** Run at the end, the last one first, whether the test passes or not. */
  defer(cleanUp: () => unknown): void;
}

export async function targetSite(t: TestContext): Promise<TargetSite> {
  const cleanUps: (() => unknown)[] = [];
  const defer = (cleanUp: () => unknown): void => void cleanUps.unshift(cleanUp);
  t.after(async () => {
    const failures: unknown[] = [];
    for (const cleanUp of cleanUps) {
      try {
        await cleanUp();
      } catch (error) {
        failures.push(error); // The others run all the same.
      }
    }
    if (failures.length > 0) throw failures[0];
  });
  const folder = await mkdtemp(join(tmpdir(), "leeward-mt-"));
  defer(() => rm(folder, { recursive: true, force: true, maxRetries: 5 }));
  const server = await startVersitygw();
  defer(() => server.stop());
  const ca = await createTestAuthority();
  const files = await ca.credentials({ site: "secondary", role: "master-target", name: "mt" });
  const identity = {
    certFile: join(folder, "cert.pem"),
    keyFile: join(folder, "key.pem"),
    caFile: join(folder, "ca.pem"),
  };
  await writeFile(identity.certFile, files.cert);
  await writeFile(identity.keyFile, files.key);
  await writeFile(identity.caFile, files.ca);
  const credentialsFile = join(folder, "s3.json");
  await writeFile(credentialsFile, JSON.stringify({ accessKey: server.accessKey, secretKey: server.secretKey }));
  const stateDir = join(folder, "state");
  await mkdir(stateDir);
  const config: MasterTargetConfig = {
    site: "secondary",
    name: "mt",
    stateDir,
    identity,
    moverListen: { host: "127.0.0.1", port: await freePort() },
    advertise: { host: "127.0.0.1", port: 0 },
    store: { endpoint: server.endpoint, region: server.region, bucket: "leeward", root: "site", credentialsFile },
    keysFile: join(folder, "keys.json"),
    overlayBytesMax: 1 << 30,
    exportCommitMs: 300,
  };
  const log =
    process.env["LEEWARD_TEST_LOG"] === undefined ? silentLog : createLog({ fields: { role: "master-target" } });
  const site: TargetSite = {
    config,
    defer,
    server,
    folder,
    sourceLink: await ca.link("primary", "process-server", "ps"),
    localLink: await ca.link("secondary", "process-server", "ps"),
    target: await startMasterTarget(config, log),
    async restart() {
      await site.target.close();
      site.target = await startMasterTarget(config, log);
    },
    async prepare(source) {
      const { host, port } = await site.target.masterTarget.prepareGroup({
        groupId: GROUP,
        operationId: "protect-1",
        groupName: "Web tier",
        sourceSite: "primary",
        disks: source.disks.map((disk, index) => ({
          diskId: disk.diskId,
          machine: "web-1",
          sizeBytes: disk.content.length,
          sectorBytes: 512,
          bootIndex: index,
        })),
        record: "{}",
      });
      return { host, port };
    },
  };
  defer(() => site.target.close());
  return site;
}

export async function until<Value>(
  what: string,
  probe: () => Value | undefined | Promise<Value | undefined>,
  seconds = 20,
): Promise<Value> {
  for (const giveUpAt = performance.now() + seconds * 1000; performance.now() < giveUpAt;) {
    const value = await probe();
    if (value !== undefined) return value;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error(`Did not come true within ${seconds} s: ${what}`);
}
