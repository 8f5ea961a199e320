/** Composition root of control: CA and enrolment, the link that the roles dial, orders, and the API. */
import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { Client, Connection } from "@temporalio/client";
import { z } from "zod";
import { Fault } from "#model/fault.ts";
import type { JsonObject } from "#model/json.ts";
import type { PeerIdentity } from "#ports/link.ts";
import type { Log } from "#ports/log.ts";
import { systemClock } from "../adapters/clock/system-clock.ts";
import { createDurableFiles } from "../adapters/file/durable-files.ts";
import { createLink } from "../adapters/link/tls-link.ts";
import { createLog } from "../adapters/log/pino-log.ts";
import { createAuthorityFiles, createKeyAndRequest, openAuthority } from "../adapters/pki/authority.ts";
import type { LinkCredentials } from "../adapters/pki/identity-files.ts";
import { keepRenewed } from "../adapters/pki/keep-renewed.ts";
import { systemRandom } from "../adapters/random/system-random.ts";
import { createSiteCache } from "../adapters/redis/site-cache.ts";
import { hypervisorProxy, masterTargetProxy, processServerProxy, type RemoteCall } from "../adapters/relay/proxy.ts";
import type { SiteAccess } from "../api/dependencies.ts";
import { createGroupWorkflows } from "../api/group-workflows.ts";
import { createDrillSchedules } from "../api/plan/drill-schedules.ts";
import { createPlanRuns } from "../api/plan/plan-runs.ts";
import { createRebuild } from "../api/rebuild-groups.ts";
import { serveApi } from "../api/server.ts";
import { createApiService, type ApiService } from "../api/service.ts";
import { CONTROL_STATE_FILE, ensureControlState, writeControlState } from "../control/control-state.ts";
import { createDirectory, type Directory } from "../control/directory.ts";
import { openEnrolment } from "../control/enrolment.ts";
import { keyCopies } from "../control/key-copies.ts";
import { createLinkService } from "../control/link-service.ts";
import { openOrderBook } from "../control/order-book.ts";
import { ensureRecoveryKey, sealControlKeys } from "../control/recovery-key.ts";
import {
  ALSO_TRUSTED_FILE,
  ensureApiToken,
  ensureAuthorityFiles,
  ensureOrderKey,
  readControlSecrets,
} from "../control/secrets.ts";

const address = z.object({ host: z.string(), port: z.number().int().min(0).max(65_535) });
const name = z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/);
const configuration = z.object({
  /** Where this control runs: the recovery site. */
  site: name,
  stateDir: z.string().min(1),
  api: address,
  link: address,
  temporal: z.object({ address: z.string(), namespace: z.string(), uiUrl: z.string().optional() }),
  redisUrl: z.string(),
  /** Made at the first start; for a copy in a place of its own. Default: in the state folder. */
  recoveryKeyFile: z.string().min(1).optional(),
  sites: z.array(z.object({ name })).min(1),
  version: z.string().optional(),
  /** How long the certificates live that it issues. Default: 397. */
  certificateDays: z.number().positive().max(3650).optional(),
});
export type ControlConfig = z.infer<typeof configuration>;

export async function run(configFile: string, stop: AbortSignal): Promise<void> {
  const config = readControlConfig(configFile);
  const control = await startControl(config, createLog({ fields: { role: "control", site: config.site } }));
  if (!stop.aborted)
    await new Promise<void>((resolve) => stop.addEventListener("abort", () => resolve(), { once: true }));
  await control.close();
}

/** Running, with both listeners open. Temporal, Redis and the roles may come later. */
export async function startControl(
  config: ControlConfig,
  log: Log,
): Promise<{ readonly apiUrl: string; readonly linkPort: number; close(): Promise<void> }> {
  const { site, stateDir } = config;
  mkdirSync(stateDir, { recursive: true, mode: 0o700 });
  const files = createDurableFiles({ fullHint: "Free space under control's state folder" });
  const clock = systemClock;
  const random = systemRandom;
  const authorityOptions = { now: clock.now, random };
  const alsoTrusted = await files.read(join(stateDir, ALSO_TRUSTED_FILE));
  const authority = await openAuthority(
    await ensureAuthorityFiles(stateDir, { files, create: () => createAuthorityFiles(site, authorityOptions) }),
    {
      ...authorityOptions,
      ...(config.certificateDays === undefined ? {} : { lifetimeMs: config.certificateDays * 86_400_000 }),
      ...(alsoTrusted === undefined ? {} : { alsoTrusted }),
    },
  );
  const orderKey = await ensureOrderKey(stateDir, files);
  const token = await ensureApiToken(stateDir, { files, random });
  const stateFile = join(stateDir, CONTROL_STATE_FILE);
  const state = await ensureControlState(stateFile, files);
  const { adoption, ...term } = state;
  const recoveryKeyFile = config.recoveryKeyFile ?? join(stateDir, "recovery-key");
  const { key: recoveryKey, made } = await ensureRecoveryKey(recoveryKeyFile, { files, random });
  if (made) log.info("Made the recovery key of this control: keep a copy in another place", { recoveryKeyFile });
  const enrolment = await openEnrolment({
    file: join(stateDir, "enrolment.json"),
    files,
    authority,
    clock,
    random,
    log,
    onEnrolled: () => copies.changed(),
  });
  const cache = createSiteCache({ url: config.redisUrl, log });
  const directory = createDirectory({
    clock,
    log,
    mirror: {
      connected: ({ identity, connectedAtMs }) =>
        void cache.set(roleKey(identity), JSON.stringify({ connected: true, atMs: connectedAtMs })),
      disconnected: (identity) =>
        void cache.set(roleKey(identity), JSON.stringify({ connected: false, atMs: clock.now() })),
    },
    term,
  });
  const orders = await openOrderBook({
    folder: join(stateDir, "orders"),
    sign: orderKey.sign,
    controlEpoch: term.controlEpoch,
    supersededAt: directory.supersededAt,
    files,
    clock,
    log,
  });
  const copies = keyCopies({
    directory,
    seal: async () =>
      sealControlKeys(await readControlSecrets(stateDir, files), {
        ...term,
        recoveryKey,
        createdAtMs: clock.now(),
        random,
      }),
    clock,
    log,
  });

  // Its own certificate is new at each start: nobody else needs to know the key, not even the disk.
  const identity = { site, role: "control", name: "control" } as const;
  const { key, csr } = await createKeyAndRequest(identity);
  let credentials: LinkCredentials = { cert: await authority.issue(csr, identity), key, ca: authority.trust.ca };
  const link = createLink({ identity, credentials: () => credentials, clock, log });
  const renewal = keepRenewed({
    identity,
    holder: {
      read: () => credentials,
      replace: async (next) => {
        credentials = next;
      },
    },
    ask: async (request) => ({
      cert: await authority.issue(authority.examine(request).csr, identity),
      ...authority.trust,
      nowMs: clock.now(),
    }),
    clock,
    random,
    log,
  });
  const serving: { api?: ApiService } = {};
  const listener = await link.listen(
    config.link,
    createLinkService({
      directory,
      orders,
      enrolment,
      // Asked for by a worker, which finds nobody before control is ready.
      resolvePlan: async (plan) => {
        if (serving.api === undefined) throw new Fault("PEER_UNREACHABLE", "Control is starting");
        return (await serving.api.resolvePlan(plan, { mode: "test" })) as unknown as JsonObject; // Plain JSON throughout.
      },
      onMasterTarget: copies.keepAt,
    }),
  );

  const connection = Connection.lazy({ address: config.temporal.address });
  const client = new Client({ connection, namespace: config.temporal.namespace });
  const version = config.version ?? packageVersion();
  const sites = new Map(config.sites.map((one) => [one.name, siteAccess(directory, one.name)]));
  const workflows = createGroupWorkflows({ client, clock, address: config.temporal.address });
  const planRuns = createPlanRuns({ client, clock, address: config.temporal.address });
  const closing = new AbortController();
  const rebuild =
    adoption === undefined
      ? undefined
      : createRebuild({
          ...adoption,
          sites,
          workflows,
          save: async (rebuilt) =>
            await writeControlState(stateFile, { ...term, adoption: { ...adoption, rebuilt } }, { files }),
          clock,
          log,
        });
  const service = createApiService({
    version,
    controlSite: site,
    sites,
    control: { ...term, ...(rebuild === undefined ? {} : { adoption: rebuild.view }) },
    supersededAt: directory.supersededAt,
    connected: directory.connected,
    enrolment,
    orderPublicKey: orderKey.publicKey,
    workflows,
    planRuns,
    drills: createDrillSchedules({ client, clock, address: config.temporal.address }),
    orders: orders.groups,
    ...(config.temporal.uiUrl === undefined ? {} : { temporalUiUrl: config.temporal.uiUrl }),
    redisReachable: cache.reachable,
    clock,
    random,
    log,
  });
  serving.api = service;
  const api = await serveApi(config.api, { service, token, version, log });
  const rebuilding = rebuild?.run(closing.signal);
  log.info("Control is ready", { api: api.url, link: listener.address });

  return {
    apiUrl: api.url,
    linkPort: listener.address.port,
    async close() {
      closing.abort();
      await renewal.close();
      await api.close();
      await listener.close();
      await rebuilding;
      await connection.close();
      cache.close();
    },
  };
}

function siteAccess(directory: Directory, site: string): SiteAccess {
  const ask =
    (role: "master-target" | "process-server"): RemoteCall =>
    (method, params, timeoutMs) =>
      directory.call({ site, role }, method, params, timeoutMs);
  return {
    masterTarget: masterTargetProxy(ask("master-target")),
    processServer: processServerProxy(ask("process-server")),
    hypervisor: hypervisorProxy(ask("master-target")),
  };
}

function roleKey({ site, role, name: own }: PeerIdentity): string {
  return `leeward:role:${site}/${role}/${own}`;
}

/** Throws CONFIG_INVALID. */
export function readControlConfig(file: string): ControlConfig {
  let json: unknown;
  try {
    json = JSON.parse(readFileSync(file, "utf8"));
  } catch (error) {
    throw new Fault("CONFIG_INVALID", `Expected JSON in "${file}"`, {
      cause: error,
      hint: "Check the path and the file",
    });
  }
  const parsed = configuration.safeParse(json);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  throw new Fault(
    "CONFIG_INVALID",
    `In "${file}", "${issue?.path.join(".") ?? ""}": ${issue?.message ?? "not as expected"}`,
    {
      hint: "Expected: site, stateDir, api, link, temporal, redisUrl, sites",
    },
  );
}

function packageVersion(): string {
  const manifest: unknown = JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8"));
  return (manifest as { readonly version: string }).version; // Our own package.json.
}
