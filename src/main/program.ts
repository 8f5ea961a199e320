/**
 * The program behind leeward.ts. Roles and commands are imported only when they are asked for: an agent does not load Temporal, and a tap starts in a
 * fraction of a second.
 */
import { readFileSync } from "node:fs";
import { Fault } from "#model/fault.ts";
import type { CliDependencies } from "../cli/context.ts";
import { runCli } from "../cli/program.ts";
import { apiAccessOf } from "./api-access.ts";

type RoleMain = { readonly run: (configFile: string, stop: AbortSignal) => Promise<void> };

const ROLES: Readonly<Record<string, () => Promise<RoleMain>>> = {
  agent: () => import("./agent.ts"),
  "process-server": () => import("./process-server.ts"),
  "master-target": () => import("./master-target.ts"),
  control: () => import("./control.ts"),
  worker: () => import("./worker.ts"),
};

const stopping = new AbortController();
let asked = 0;
for (const name of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
  process.on(name, () => {
    asked += 1;
    // A second Ctrl-C means it: whoever asked has seen that stopping takes too long.
    if (asked > 1 && name === "SIGINT") process.exit(130);
    stopping.abort();
  });
}

const manifest = JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8")) as {
  readonly version: string;
};

const dependencies: CliDependencies = {
  version: manifest.version,
  stop: stopping.signal,
  client: (state) => lazyClient(state),
  embedded: {
    up: async (state, options) => (await embedded()).up(state, options),
    down: async (state) => (await embedded()).down(state),
    loseSite: async (state, site) => (await embedded()).loseSite(state, site),
    startSite: async (state, site) => (await embedded()).startSite(state, site),
    doctor: async () => (await embedded()).doctor(),
    demo: async (state, options) => (await embedded()).demo(state, options),
  },
  rescue: {
    probe: async (options) => (await storeCommands()).probe(options),
    check: async (options, onProgress) => (await storeCommands()).check(options, onProgress),
    stats: async (options) => (await storeCommands()).stats(options),
    list: async (options) => (await rescueCommands()).list(options),
    export: async (options, serving) => (await rescueCommands()).export(options, serving),
    restore: async (options, onProgress) => (await rescueCommands()).restore(options, onProgress),
  },
  control: {
    adopt: async (options) => (await controlCommands()).adopt(options),
    survey: async (store) => (await controlCommands()).survey(store),
    surveyOwn: async (state) => (await controlCommands()).surveyOwn(state),
  },
  enrol: async (request) => ({
    ...(await (await import("../adapters/pki/enrol.ts")).enrol(request)),
    dir: request.dir,
  }),
  copyExport: async (request, onProgress) =>
    (await import("./copy-export.ts")).copyExport({ ...request, stop: stopping.signal, onProgress }),
  role: async (name, configFile) => {
    const load = ROLES[name];
    if (load === undefined) throw new Fault("USAGE", `No role "${name}"`);
    await (await load()).run(configFile, stopping.signal);
  },
};

async function embedded() {
  const { createEmbeddedCommands } = await import("./embedded-commands.ts");
  return createEmbeddedCommands({ version: manifest.version, stop: stopping.signal });
}

async function storeCommands() {
  return (await import("./store-commands.ts")).createStoreCommands(stopping.signal);
}

async function rescueCommands() {
  return (await import("./rescue-commands.ts")).createRescueCommands(stopping.signal);
}

async function controlCommands() {
  const { createControlCommands } = await import("./control-commands.ts");
  return createControlCommands({ stop: stopping.signal });
}

/** The API client of the control that the environment names, else of this state folder; loaded at its first call. */
function lazyClient(state: string): ReturnType<CliDependencies["client"]> {
  const load = async () => {
    const { createApiClient } = await import("../api/client.ts");
    const named = apiAccessOf(process.env);
    if (named !== undefined) return createApiClient(named);
    const { apiAccess } = await import("../embedded/installation.ts");
    return createApiClient(apiAccess(await absolute(state)));
  };
  let client: ReturnType<typeof load> | undefined;
  return new Proxy({} as ReturnType<CliDependencies["client"]>, {
    // Every member of ApiClient is a method that returns a promise.
    get:
      (_, name: string) =>
      async (...args: unknown[]) => {
        client ??= load();
        const methods = (await client) as unknown as Record<string, (...args: unknown[]) => Promise<unknown>>;
        const method = methods[name];
        if (method === undefined) throw new RangeError(`The API client has no "${name}"`);
        return method(...args);
      },
  });
}

async function absolute(path: string): Promise<string> {
  return (await import("node:path")).resolve(path);
}

if (process.argv[2] === "site-leader") {
  // Internal: started by `up` as the first process of a site's group.
  const { runSiteLeader } = await import("./site-leader.ts");
  await runSiteLeader(process.argv.slice(3), stopping.signal);
  process.exit(0);
}
const code = await runCli(process.argv.slice(2), dependencies);
// Exit at once: a pooled connection must not keep a finished command alive. Standard output is flushed first.
process.stdout.write("", () => process.exit(stopping.signal.aborted && code === 0 ? 130 : code));
