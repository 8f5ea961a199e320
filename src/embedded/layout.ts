/**
 * The embedded installation as data: which processes each site has, with which files, ports and secrets.
 *
 * Who holds what follows the table in docs/overview ("the way of the data"), and test/embedded/secrets.test.ts checks it on the running
 * system: S3 credentials and disk keys of a site lie below that site's master-target folder only; Temporal's address stands in the
 * configuration of `control` and `worker` only.
 *
 * ```
 * STATE/
 *   embedded.json                what runs: pids, URLs (written by `leeward up`)
 *   ports.json
 *   recovery-key                 opens the sealed copy of control's keys in the stores: keep a copy elsewhere
 *   sites/SITE/site.json         the process list that the site's leader keeps alive
 *   sites/SITE/logs/PROCESS.log
 *   sites/SITE/PROCESS/…         configuration, certificate and state of one process
 *   sites/SITE/lost              there: the site has burned down, nothing of it is started
 * ```
 */
import { randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { readJsonFile, writeJsonFile } from "./json-file.ts";
import type { ProcessSpec } from "./managed-process.ts";

export const SITES = ["primary", "secondary"] as const;
export type SiteName = (typeof SITES)[number];
/** Where the control plane lives: the recovery site. */
export const CONTROL_SITE: SiteName = "secondary";

export const PORT_NAMES = [
  ...SITES.flatMap((site) => [`${site}-redis`, `${site}-s3`, `${site}-process-server`, `${site}-mover`]),
  "temporal",
  "temporal-ui",
  "control-api",
  "control-link",
];

export interface EmbeddedTools {
  readonly temporal: string;
  readonly versitygw: string;
  readonly redisServer: string;
}

export interface Layout {
  readonly state: string;
  readonly ports: Readonly<Record<string, number>>;
  readonly tools: EmbeddedTools;
  /** How to run a role: the program and what stands before the role's name. */
  readonly leeward: readonly string[];
}

/** A process of ours that proves itself by a certificate. */
export interface EnrolledRole {
  readonly site: SiteName;
  readonly role: "agent" | "process-server" | "master-target" | "worker";
  readonly name: string;
  /** Its certificate, key and CA go here. */
  readonly identityFolder: string;
  readonly configFile: string;
  readonly config: Readonly<Record<string, unknown>>;
}

export const siteFolder = (state: string, site: string): string => join(state, "sites", site);
export const lostMarker = (state: string, site: string): string => join(siteFolder(state, site), "lost");
/** Beside the sites and not in one of them: a copy of it belongs to a place of its own. */
export const recoveryKeyFile = (state: string): string => join(state, "recovery-key");
export const controlFolder = (state: string): string => join(siteFolder(state, CONTROL_SITE), "control");

const HOST = "127.0.0.1";

export function port(layout: Pick<Layout, "ports">, name: string): number {
  const value = layout.ports[name];
  if (value === undefined) throw new RangeError(`No port "${name}"`);
  return value;
}

export function urls(layout: Layout): Record<string, string> {
  return {
    api: `http://${HOST}:${port(layout, "control-api")}`,
    temporalUi: `http://${HOST}:${port(layout, "temporal-ui")}`,
    temporal: `${HOST}:${port(layout, "temporal")}`,
    ...Object.fromEntries(SITES.map((site) => [`${site}Store`, `http://${HOST}:${port(layout, `${site}-s3`)}`])),
  };
}

/** `control` makes the CA, so it starts without a certificate of another. */
export function controlConfig(layout: Pick<Layout, "state" | "ports">): Record<string, unknown> {
  return {
    site: CONTROL_SITE,
    stateDir: controlFolder(layout.state),
    api: { host: HOST, port: port(layout, "control-api") },
    link: { host: HOST, port: port(layout, "control-link") },
    temporal: {
      address: `${HOST}:${port(layout, "temporal")}`,
      namespace: "default",
      uiUrl: `http://${HOST}:${port(layout, "temporal-ui")}`,
    },
    redisUrl: `redis://${HOST}:${port(layout, `${CONTROL_SITE}-redis`)}`,
    recoveryKeyFile: recoveryKeyFile(layout.state),
    sites: SITES.map((name) => ({ name })),
  };
}

export function enrolledRoles(layout: Layout): EnrolledRole[] {
  const control = { host: HOST, port: port(layout, "control-link") };
  const roles = SITES.flatMap((site) => {
    const redisUrl = `redis://${HOST}:${port(layout, `${site}-redis`)}`;
    const processServer = { host: HOST, port: port(layout, `${site}-process-server`) };
    const mover = { host: HOST, port: port(layout, `${site}-mover`) };
    return [
      enrolled(layout, site, "process-server", `${site}-ps`, (identity, stateDir) => ({
        site,
        name: `${site}-ps`,
        stateDir,
        identity,
        control,
        listen: processServer,
        redisUrl,
        spoolBytesMax: 1 << 30,
        orderKeyFile: join(identityFolderOf(layout, site, "process-server"), "order-key.pem"),
      })),
      enrolled(layout, site, "master-target", `${site}-mt`, (identity, stateDir) => ({
        site,
        name: `${site}-mt`,
        stateDir,
        identity,
        control,
        moverListen: mover,
        advertise: mover,
        redisUrl,
        store: {
          endpoint: `http://${HOST}:${port(layout, `${site}-s3`)}`,
          region: "us-east-1",
          bucket: "leeward",
          root: "leeward",
          credentialsFile: credentialsFile(layout, site),
        },
        keysFile: join(stateDir, "disk-keys.json"),
        overlayBytesMax: 16 * 2 ** 30,
      })),
      enrolled(layout, site, "agent", agentName(site), (identity, stateDir) => ({
        site,
        name: agentName(site),
        stateDir,
        identity,
        processServers: [processServer],
      })),
    ];
  });
  const worker = enrolled(layout, CONTROL_SITE, "worker", "worker", (identity, stateDir) => ({
    site: CONTROL_SITE,
    sites: [...SITES],
    stateDir,
    identity,
    control,
    temporal: { address: `${HOST}:${port(layout, "temporal")}`, namespace: "default" },
    deployment: { name: "leeward", buildId: "embedded" },
  }));
  return [...roles, worker];
}

/** The agent that the embedded installation runs at each site; `--machine` may be left out for the primary one. */
export const agentName = (site: SiteName): string => (site === "primary" ? "localhost" : `localhost-${site}`);

function identityFolderOf(layout: Layout, site: SiteName, role: string): string {
  return join(siteFolder(layout.state, site), role, "identity");
}

function enrolled(
  layout: Layout,
  site: SiteName,
  role: EnrolledRole["role"],
  name: string,
  config: (identity: Record<string, string>, stateDir: string) => Record<string, unknown>,
): EnrolledRole {
  const folder = join(siteFolder(layout.state, site), role);
  const identityFolder = identityFolderOf(layout, site, role);
  const identity = {
    certFile: join(identityFolder, "cert.pem"),
    keyFile: join(identityFolder, "key.pem"),
    caFile: join(identityFolder, "ca.pem"),
  };
  return {
    site,
    role,
    name,
    identityFolder,
    configFile: join(folder, "config.json"),
    config: config(identity, folder),
  };
}

function credentialsFile(layout: Layout, site: SiteName): string {
  return join(siteFolder(layout.state, site), "master-target", "s3-credentials.json");
}

/** Make the site's S3 credentials on first use. They exist in its master-target folder and its S3 server's environment, nowhere else. */
export function ensureCredentials(layout: Layout, site: SiteName): { accessKey: string; secretKey: string } {
  const file = credentialsFile(layout, site);
  if (!existsSync(file)) {
    writeJsonFile(file, {
      accessKey: `leeward-${site}-${randomBytes(4).toString("hex")}`,
      secretKey: randomBytes(24).toString("base64url"),
    });
  }
  return readJsonFile(file) as { accessKey: string; secretKey: string };
}

/**
 * What flows through a role lies in buffers outside the heap, so V8's generous defaults only cost memory: with these a process server that relays an
 * initial sync takes 90 MiB instead of 140, an idle master target 60 instead of 84. The heap itself is small, and may grow to four times its
 * size between two full collections: with V8's own limit a relaying process made one for each 20 MB that passed, half of its processor time.
 */
const ROLE_FLAGS = ["--max-semi-space-size=4", "--optimize-for-size", "--heap-growing-percent=300", "--expose-gc"];

function withFlags([program, ...rest]: readonly string[], flags: readonly string[]): string[] {
  return program === undefined ? [] : [program, ...flags, ...rest];
}

/** The processes of one site, in the order in which they are started. */
export function siteProcesses(layout: Layout, site: SiteName): ProcessSpec[] {
  const folder = siteFolder(layout.state, site);
  const spec = (name: string, command: readonly string[], more: Partial<ProcessSpec> = {}): ProcessSpec => ({
    name,
    command,
    environment: {},
    folder: join(folder, name),
    logFile: join(folder, "logs", `${name}.log`),
    needs: [],
    ...more,
  });
  const redisPort = port(layout, `${site}-redis`);
  const s3Port = port(layout, `${site}-s3`);
  const credentials = ensureCredentials(layout, site);
  const servers = [
    spec(
      "redis",
      [
        layout.tools.redisServer,
        "--bind",
        HOST,
        "--port",
        `${redisPort}`,
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        ".",
      ],
      { readyPort: redisPort },
    ),
    spec(
      "s3",
      [
        layout.tools.versitygw,
        "--port",
        `${HOST}:${s3Port}`,
        "--quiet",
        "--keep-alive",
        "posix",
        "--data-integrity-etag",
        ".",
      ],
      {
        readyPort: s3Port,
        environment: { ROOT_ACCESS_KEY: credentials.accessKey, ROOT_SECRET_KEY: credentials.secretKey },
      },
    ),
  ];
  const plane = site === CONTROL_SITE ? controlPlane(layout, spec) : [];
  const roles = enrolledRoles(layout)
    .filter((role) => role.site === site)
    .map((role) =>
      spec(role.role, [...withFlags(layout.leeward, ROLE_FLAGS), role.role, "--config", role.configFile], {
        needs: [role.configFile, join(role.identityFolder, "cert.pem")],
      }),
    );
  return [...servers, ...plane, ...roles];
}

function controlPlane(
  layout: Layout,
  spec: (name: string, command: readonly string[], more?: Partial<ProcessSpec>) => ProcessSpec,
): ProcessSpec[] {
  const temporalPort = port(layout, "temporal");
  const configFile = join(controlFolder(layout.state), "config.json");
  return [
    spec(
      "temporal",
      [
        layout.tools.temporal,
        "server",
        "start-dev",
        "--ip",
        HOST,
        "--port",
        `${temporalPort}`,
        "--ui-ip",
        HOST,
        "--ui-port",
        `${port(layout, "temporal-ui")}`,
        "--db-filename",
        "temporal.db",
        "--sqlite-pragma",
        "journal_mode=WAL",
        "--sqlite-pragma",
        "synchronous=NORMAL",
        "--log-level",
        "warn",
        "--ui-disable-news-fetch",
      ],
      { readyPort: temporalPort },
    ),
    spec("control", [...layout.leeward, "control", "--config", configFile], {
      needs: [configFile],
      readyPort: port(layout, "control-api"),
    }),
  ];
}
