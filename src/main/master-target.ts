/**
 * Composition root of the master target: the only process of a site, with its children, that has the store's credentials and the disk keys.
 */
import { mkdirSync, readFileSync } from "node:fs";
import { extname, join } from "node:path";
import { z } from "zod";
import { Fault } from "#model/fault.ts";
import { storeNames } from "#model/format/object-names.ts";
import type { JsonObject } from "#model/json.ts";
import type { Hypervisor } from "#ports/hypervisor.ts";
import type { Address } from "#ports/link.ts";
import type { Log } from "#ports/log.ts";
import type { MasterTarget } from "#ports/master-target.ts";
import type { GroupProgress } from "#ports/replication.ts";
import { systemClock } from "../adapters/clock/system-clock.ts";
import { createDurableFiles } from "../adapters/file/durable-files.ts";
import { keepDialled } from "../adapters/link/keep-dialled.ts";
import { createLog } from "../adapters/log/pino-log.ts";
import { createQemuHypervisor } from "../adapters/qemu/qemu-hypervisor.ts";
import { systemRandom } from "../adapters/random/system-random.ts";
import { createSiteCache } from "../adapters/redis/site-cache.ts";
import { controlUnreachable } from "../adapters/relay/proxy.ts";
import { serveHypervisor, serveMasterTarget } from "../adapters/relay/serve.ts";
import { ensureStoreRecord } from "../data-mover/mover-store.ts";
import type { ReceivedGroup } from "../data-mover/receiver.ts";
import { exportRecords } from "../master-target/export-record.ts";
import { exportSupervisor } from "../master-target/export-supervisor.ts";
import { openGroupRegister, type RegisteredGroup } from "../master-target/group-register.ts";
import { openKeyFile } from "../master-target/key-file.ts";
import { controlGuard } from "../master-target/control-guard.ts";
import { createMasterTarget, waitingProgress } from "../master-target/master-target.ts";
import { createProgressBoard } from "../master-target/progress-board.ts";
import { lockFolder } from "../master-target/process-lock.ts";
import type { ExportFigures } from "../master-target/running-export.ts";
import { superviseChild } from "../master-target/supervised-child.ts";
import type { MoverSetup } from "./data-mover.ts";
import type { ExportSetup } from "./export.ts";
import { encodeKeys, openReplica, openStore, type StoreSettings } from "./mover-setup.ts";
import { keepRoleRenewed, openRoleLink, RENEW, type RoleIdentity } from "./role-link.ts";

const address = z.object({ host: z.string().min(1), port: z.int().min(0).max(65535) });

const masterTargetConfig = z.object({
  site: z.string().min(1),
  name: z.string().min(1),
  stateDir: z.string().min(1),
  identity: z.object({ certFile: z.string(), keyFile: z.string(), caFile: z.string() }),
  /** Absent: nobody is asked, nobody asks; for tests. */
  control: address.optional(),
  /** Where the mover listens for process servers. */
  moverListen: address,
  /** What process servers dial. Port 0: the port that the mover got. */
  advertise: address,
  store: z.object({
    endpoint: z.url(),
    region: z.string().default("us-east-1"),
    bucket: z.string().min(1),
    root: z.string().default("leeward"),
    /** JSON: accessKey, secretKey. */
    credentialsFile: z.string().min(1),
  }),
  keysFile: z.string().min(1),
  redisUrl: z.string().min(1).optional(),
  overlayBytesMax: z.int().min(1 << 20),
  /** How often a read-write export commits. */
  exportCommitMs: z.int().min(100).optional(),
  qemu: z.object({ program: z.string().min(1), accelerator: z.string().min(1).optional() }).optional(),
});
export type MasterTargetConfig = z.infer<typeof masterTargetConfig>;

const credentials = z.object({ accessKey: z.string().min(1), secretKey: z.string().min(1) });

/** Room for what a container's frames leave behind. Full collections only when there is something to collect, as for the roles (embedded/layout.ts). */
const MOVER_FLAGS = [
  "--min-semi-space-size=16",
  "--max-semi-space-size=32",
  "--heap-growing-percent=300",
  "--expose-gc",
];
const LOCK_WAIT_MS = 15_000;

export interface RunningMasterTarget {
  readonly masterTarget: MasterTarget;
  readonly hypervisor: Hypervisor;
  /** The mover's process, while there is one. */
  moverPid(): number | undefined;
  /** Processes of open exports, by operation. */
  exportPids(): ReadonlyMap<string, number>;
  close(): Promise<void>;
}

export async function run(configFile: string, stop: AbortSignal): Promise<void> {
  const config = parseMasterTargetConfig(configFile);
  const log = createLog({ fields: { role: "master-target", site: config.site, name: config.name } });
  const running = await startMasterTarget(config, log);
  if (!stop.aborted) await new Promise((resolve) => stop.addEventListener("abort", resolve, { once: true }));
  await running.close();
}

/** Throws CONFIG_INVALID. */
export function parseMasterTargetConfig(configFile: string): MasterTargetConfig {
  return parseFile(configFile, masterTargetConfig, "Give the master target's configuration with --config FILE");
}

export async function startMasterTarget(config: MasterTargetConfig, log: Log): Promise<RunningMasterTarget> {
  const { site, name, stateDir, identity } = config;
  mkdirSync(stateDir, { recursive: true, mode: 0o700 });
  const lock = await lockFolder(stateDir, { clock: systemClock, waitMs: LOCK_WAIT_MS });
  const settings: StoreSettings = {
    ...config.store,
    ...parseFile(config.store.credentialsFile, credentials, "Expected a JSON file with accessKey and secretKey"),
  };
  const files = createDurableFiles({ fullHint: "Free space under the master target's state folder" });
  const keys = await openKeyFile(config.keysFile, { files, random: systemRandom, log });
  const register = await openGroupRegister(stateDir, files);
  const objects = openStore(settings);
  const store = openReplica(objects, { root: settings.root, keys: keys.keyOf, expectedStoreId: register.storeId });
  const cache = config.redisUrl === undefined ? undefined : createSiteCache({ url: config.redisUrl, log });
  const progress = createProgressBoard({
    boardId: Buffer.from(systemRandom.bytes(6)).toString("hex"),
    publish: (one) => void cache?.set(`leeward:progress:${one.groupId}`, JSON.stringify(one)),
  });

  const childSetup = (diskIds: readonly string[]) => ({
    site,
    name,
    store: settings,
    ...(register.storeId === undefined ? {} : { expectedStoreId: register.storeId }),
    keys: encodeKeys(diskIds, keys.keyOf) as Record<string, string>,
  });

  let listen: Address = config.moverListen;
  const mover = superviseChild({
    name: "data-mover",
    script: sibling("data-mover"),
    nodeFlags: MOVER_FLAGS,
    log,
    handlers: { progress: async (params) => progress.put(params as unknown as GroupProgress) },
    async setUp(channel) {
      const groups = register.list().filter((group) => !group.released);
      const setup: MoverSetup = {
        ...childSetup(groups.flatMap((group) => group.disks.map(({ diskId }) => diskId))),
        identity,
        listen,
        groups: groups.map(receivedGroup),
      };
      // A restarted mover listens where the first one did: orders name the port.
      listen = (await channel.call("setUp", setup as unknown as JsonObject)) as unknown as Address;
    },
  });

  const exportChildren = new Map<string, () => number | undefined>();
  const records = exportRecords(stateDir, files);
  const exports = exportSupervisor({
    records,
    log,
    start(record, onFigures) {
      const child = superviseChild({
        name: "export",
        script: sibling("export"),
        log: log.child({ operation: record.operationId }),
        handlers: { figures: async (params) => onFigures(params as unknown as ExportFigures) },
        async setUp(channel) {
          const setup: ExportSetup = {
            ...childSetup(record.disks.map(({ diskId }) => diskId)),
            record,
            folder: records.folder(record.operationId),
            overlayBytesMax: config.overlayBytesMax,
            ...(config.exportCommitMs === undefined ? {} : { commitIntervalMs: config.exportCommitMs }),
          };
          await channel.call("setUp", setup as unknown as JsonObject);
        },
      });
      exportChildren.set(record.operationId, () => child.pid);
      return child;
    },
  });
  await exports.restore();

  const masterTarget = createMasterTarget({
    site,
    name,
    stateDir,
    advertise: {
      host: config.advertise.host,
      get port() {
        return config.advertise.port === 0 ? listen.port : config.advertise.port;
      },
    },
    store,
    storeEndpoint: settings.endpoint,
    ensureBucket: () => objects.ensureBucket(),
    keys,
    register,
    exports,
    progress,
    mover: {
      putGroup: async (group) => {
        await mover.call("putGroup", {
          group: receivedGroup(group) as unknown as JsonObject,
          keys: encodeKeys(
            group.disks.map(({ diskId }) => diskId),
            keys.keyOf,
          ),
        });
      },
      dropGroup: async (groupId, fault) =>
        void (await mover.call("dropGroup", { groupId, fault: fault.toJSON() as unknown as JsonObject })),
      endStream: async (groupId, fault) =>
        void (await mover.call("endStream", { groupId, fault: fault.toJSON() as unknown as JsonObject })),
    },
    log,
  });
  for (const group of register.list()) if (!group.released) void showKnown(group);

  /** What observers see of a group before its source comes back: the newest point that the store has. */
  async function showKnown(group: RegisteredGroup): Promise<void> {
    progress.put(waitingProgress(group, undefined, systemClock.now()));
    try {
      const [newest] = await masterTarget.listPoints({ groupId: group.groupId, limit: 1 });
      if (progress.get(group.groupId)?.barrier === 0) progress.put(waitingProgress(group, newest, systemClock.now()));
    } catch (error) {
      if (!(error instanceof Fault)) throw error;
      log.warn("The points of a group cannot be read yet", { group: group.groupId, fault: error.toJSON() });
    }
  }

  const hypervisor = createQemuHypervisor({
    stateFolder: join(stateDir, "machines"),
    clock: systemClock,
    program: config.qemu?.program ?? "qemu-system-x86_64",
    ...(config.qemu?.accelerator === undefined ? {} : { accelerator: config.qemu.accelerator }),
  });
  void letGuestsGo();

  /** A guest that stood still between two disks when our last process died goes on now, and not when somebody asks for it. */
  async function letGuestsGo(): Promise<void> {
    try {
      await hypervisor.list();
    } catch (error) {
      if (!(error instanceof Fault)) throw error;
      log.warn("The machines cannot be looked at yet", { fault: error.toJSON() });
    }
  }

  const guard = controlGuard({
    site,
    context: store.context,
    ensureStore: async () => {
      await objects.ensureBucket();
      await ensureStoreRecord(store.context);
    },
    log,
  });
  const self: RoleIdentity = { site, role: "master-target", name, files: identity };
  const control =
    config.control &&
    keepDialled(openRoleLink(self, log), config.control, {
      expect: "control",
      handlers: {
        ...serveMasterTarget(masterTarget, guard.check),
        ...serveHypervisor(hypervisor, guard.checkMachines),
      },
      clock: systemClock,
      random: systemRandom,
      log,
    });
  const renewal =
    control &&
    (await keepRoleRenewed(self, {
      ask: async (request) => {
        if (control.peer === undefined) throw controlUnreachable();
        return control.peer.call(RENEW, request);
      },
      files,
      log,
    }));
  let closing: Promise<void> | undefined;
  log.info("The master target runs", {
    store: settings.endpoint,
    bucket: settings.bucket,
    root: storeNames(settings.root).store,
    keysFile: config.keysFile,
  });

  return {
    masterTarget,
    hypervisor,
    moverPid: () => mover.pid,
    exportPids: () =>
      new Map(
        [...exportChildren].flatMap(([operationId, pid]) => {
          const now = pid();
          return now === undefined ? [] : [[operationId, now] as const];
        }),
      ),
    close: () => (closing ??= close()),
  };

  async function close(): Promise<void> {
    await renewal?.close();
    await control?.close();
    await exports.stop();
    await mover.stop();
    await objects.close();
    cache?.close();
    await lock.release();
  }
}

function receivedGroup({ groupId, sourceSite, formerSite, disks }: RegisteredGroup): ReceivedGroup {
  return {
    groupId,
    sourceSite,
    ...(formerSite === undefined ? {} : { formerSite }),
    disks: disks.map(({ diskId, sizeBytes, sectorBytes }) => ({ diskId, sizeBytes, sectorBytes })),
  };
}

/** A program beside this one, as source or as built. */
function sibling(script: string): string {
  return join(import.meta.dirname, script + extname(import.meta.filename));
}

function parseFile<Shape extends z.ZodType>(file: string, shape: Shape, hint: string): z.infer<Shape> {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (cause) {
    throw new Fault("CONFIG_INVALID", `Cannot read "${file}"`, { cause, hint });
  }
  try {
    return shape.parse(JSON.parse(text));
  } catch (cause) {
    // The text may hold a secret; only the shape of what is wrong is told.
    const why = cause instanceof z.ZodError ? z.prettifyError(cause) : "it is not JSON";
    throw new Fault("CONFIG_INVALID", `"${file}" is not as expected: ${why}`, { hint });
  }
}
