/** Composition root of one sweeping thread of the agent: its own link, its own descriptor. Started by src/agent/lane-threads.ts. */
import { workerData } from "node:worker_threads";
import { createLog } from "../adapters/log/pino-log.ts";
import { serveLaneThread, type LaneTarget } from "../agent/lane-threads.ts";
import { openSweepLane } from "../agent/sweep-lane.ts";
import { openRoleLink, type RoleIdentity } from "./role-link.ts";

const { config, target } = workerData as { readonly config: RoleIdentity; readonly target: LaneTarget };
const log = createLog({ fields: { role: "agent-lane", site: config.site, name: config.name } });

await serveLaneThread(() => openSweepLane({ link: openRoleLink(config, log), log, ...target }));
