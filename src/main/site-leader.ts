/** Composition root of a site's leader (internal; see src/embedded/site-leader.ts). */
import { createLog } from "../adapters/log/pino-log.ts";
import { leadSite } from "../embedded/site-leader.ts";
import { Fault } from "#model/fault.ts";

export async function runSiteLeader(args: readonly string[], stop: AbortSignal): Promise<void> {
  const folder = args[args.indexOf("--folder") + 1];
  if (!args.includes("--folder") || folder === undefined) throw new Fault("USAGE", "Expected site-leader --folder DIR");
  await leadSite(folder, { log: createLog({ fields: { role: "site-leader" } }), stop });
}
