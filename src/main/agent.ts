/** Composition root of the agent. */
import { mkdirSync, readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { fileURLToPath } from "node:url";
import { z } from "zod";
import { Fault } from "#model/fault.ts";
import { systemClock } from "../adapters/clock/system-clock.ts";
import { createDurableFiles } from "../adapters/file/durable-files.ts";
import { createLog } from "../adapters/log/pino-log.ts";
import { startAgent } from "../agent/agent.ts";
import { startLaneThread } from "../agent/lane-threads.ts";
import { spawnTap } from "../agent/spawn-tap.ts";
import { connectTap } from "../capture/tap/tap-client.ts";
import { keepRoleRenewed, openRoleLink, RENEW, type RoleIdentity } from "./role-link.ts";

const address = z.object({ host: z.string().min(1), port: z.int().min(0).max(65535) });

const agentConfig = z.object({
  site: z.string().min(1),
  /** The machine's name. */
  name: z.string().min(1),
  stateDir: z.string().min(1),
  identity: z.object({ certFile: z.string(), keyFile: z.string(), caFile: z.string() }),
  processServers: z.array(address).min(1),
  /** Threads that sweep; default: as many as cores, at most 4. */
  lanes: z.int().min(1).max(16).optional(),
});
type AgentConfig = z.infer<typeof agentConfig>;

const LANES_MAX = 4;

export async function run(configFile: string, stop: AbortSignal): Promise<void> {
  const config = parseAgentConfig(configFile);
  const log = createLog({ fields: { role: "agent", site: config.site, name: config.name } });
  mkdirSync(config.stateDir, { recursive: true, mode: 0o700 });
  const { site, name, identity } = config;
  const self: RoleIdentity = { site, role: "agent", name, files: identity };
  const link = openRoleLink(self, log);
  const files = createDurableFiles({
    fullHint: "Free space under the agent's state folder; what was protected before stays so",
  });
  const agent = startAgent({
    link,
    machine: config.name,
    stateDir: config.stateDir,
    processServers: config.processServers,
    bootId: readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim(),
    version: (
      JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8")) as { readonly version: string }
    ).version,
    connectTap,
    spawnTap: (tap) => spawnTap(tap, { program: fileURLToPath(sibling("./tap")), folder: config.stateDir }),
    startLane: (target) => startLaneThread(sibling("./agent-lane"), self, target),
    laneCount: config.lanes ?? Math.min(LANES_MAX, availableParallelism()),
    files,
    clock: systemClock,
    log,
  });
  const renewal = await keepRoleRenewed(self, { ask: (request) => agent.ask(RENEW, request), files, log });
  if (!stop.aborted) await new Promise((resolve) => stop.addEventListener("abort", resolve, { once: true }));
  await renewal.close();
  await agent.close();
}

/** Throws CONFIG_INVALID. */
export function parseAgentConfig(configFile: string): AgentConfig {
  let text: string;
  try {
    text = readFileSync(configFile, "utf8");
  } catch (cause) {
    throw new Fault("CONFIG_INVALID", `Cannot read "${configFile}"`, {
      cause,
      hint: "Give the agent's configuration with --config FILE",
    });
  }
  try {
    return agentConfig.parse(JSON.parse(text));
  } catch (cause) {
    const why = cause instanceof z.ZodError ? z.prettifyError(cause) : String(cause);
    throw new Fault("CONFIG_INVALID", `"${configFile}" is no configuration of an agent: ${why}`, {
      cause,
      hint: "Correct the named fields; `leeward up` writes such a file for each role",
    });
  }
}

/** A file beside this one, as source or as built. */
function sibling(name: string): URL {
  return new URL(name + (import.meta.filename.endsWith(".ts") ? ".ts" : ".js"), import.meta.url);
}
