/**
 * After `leeward control adopt`: the workflows of a store's groups are begun again, each from its catalog entry, its claims and what runs at the
 * target now. See #model/adoption.ts for what is decided from these.
 *
 * Invariants:
 * - a group whose workflow is there is left alone: this can be done any number of times;
 * - a group that cannot be rebuilt keeps nobody from the others, and is named with why;
 * - what cannot be asked (a master target that is not connected, Temporal) is waited for; nothing is decided from half of what there is to know.
 */
import { adoptionFacts, planAdoption, type Standing } from "#model/adoption.ts";
import { Fault, isFault } from "#model/fault.ts";
import type { Machine } from "#ports/hypervisor.ts";
import type { CatalogedGroup, ExportStatus } from "#ports/master-target.ts";
import type { Clock } from "#ports/clock.ts";
import type { Log } from "#ports/log.ts";
import { RECORD_VERSION, type AdoptedGroup } from "../workflows/messages.ts";
import type { AdoptedGroupView, AdoptionView } from "./contract.ts";
import type { SiteAccess } from "./dependencies.ts";
import type { GroupWorkflows } from "./group-workflows.ts";

const PAUSE_MS = 1_000;

export interface Rebuild {
  view(): AdoptionView;
  /** Until every site's groups are back; settles early when `stop` aborts. */
  run(stop: AbortSignal): Promise<void>;
}

export function createRebuild(deps: {
  /** The store that was adopted. The groups of others follow when their master targets connect. */
  readonly storeId: string;
  /** Stores whose groups are back since an earlier start. */
  readonly rebuilt: readonly string[];
  readonly sites: ReadonlyMap<string, SiteAccess>;
  readonly workflows: Pick<GroupWorkflows, "adopt">;
  /** Durable when it settles. */
  readonly save: (rebuilt: readonly string[]) => Promise<void>;
  readonly clock: Clock;
  readonly log: Log;
}): Rebuild {
  const { storeId, sites, workflows, clock, log } = deps;
  const done = new Set(deps.rebuilt);
  const open = new Set(sites.keys());
  const groups = new Map<string, AdoptedGroupView>();
  let waitsFor = done.has(storeId) ? undefined : "the master target of the adopted store";

  async function rebuildSite(site: string, access: SiteAccess): Promise<void> {
    const catalog = await access.masterTarget.readCatalog({});
    if (!done.has(catalog.storeId)) {
      const [exports, machines] = await Promise.all([access.masterTarget.listExports({}), access.hypervisor.list()]);
      for (const group of catalog.groups) {
        const view = await rebuildGroup(site, group, { exports, machines });
        const known = groups.get(group.groupId);
        if (known === undefined || view.outcome !== "elsewhere") groups.set(group.groupId, view);
        log.info("A group of the adopted store", { ...view });
      }
      done.add(catalog.storeId);
      await deps.save([...done]);
    }
    open.delete(site);
    if (catalog.storeId === storeId) waitsFor = undefined;
  }

  async function rebuildGroup(
    site: string,
    group: CatalogedGroup,
    seen: { readonly exports: readonly ExportStatus[]; readonly machines: readonly Machine[] },
  ): Promise<AdoptedGroupView> {
    const { groupId } = group;
    try {
      const adopted = adoptedGroup(group, seen);
      if (adopted.record["targetSite"] !== site)
        return {
          group: groupId,
          outcome: "elsewhere",
          detail: `kept at site "${String(adopted.record["targetSite"])}"`,
        };
      const { standing } = planAdoption(adoptionFacts(adopted.record, adopted));
      if (standing.at === "ended") return { group: groupId, outcome: "ended", detail: describeStanding(standing) };
      if (standing.at === "elsewhere") throw claimedElsewhere(groupId, standing.activeSite);
      const started = await workflows.adopt(groupId, adopted);
      return {
        group: groupId,
        outcome: started ? "rebuilt" : "there",
        detail: started ? describeStanding(standing) : "its workflow was there already",
      };
    } catch (error) {
      if (!isFault(error) || error.retryable) throw error;
      return { group: groupId, outcome: "failed", detail: `${error.code}: ${error.message}` };
    }
  }

  return {
    view: () => ({
      storeId,
      state: waitsFor === undefined ? "done" : "rebuilding",
      ...(waitsFor === undefined ? {} : { waitsFor }),
      groups: [...groups.values()].sort((a, b) => (a.group < b.group ? -1 : 1)),
    }),
    async run(stop) {
      while (open.size > 0 && !stop.aborted) {
        for (const site of open) {
          const access = sites.get(site);
          if (access === undefined) throw new RangeError(`No site "${site}"`);
          try {
            await rebuildSite(site, access);
          } catch (error) {
            if (!isFault(error)) throw error;
            if (waitsFor !== undefined && error.code !== "PEER_UNREACHABLE")
              waitsFor = `${error.code}: ${error.message}`;
            log.debug("The groups of a site are not back yet", { site, fault: error });
          }
        }
        await clock.sleep(PAUSE_MS, stop).catch((error: unknown) => {
          if (!stop.aborted) throw error;
        });
      }
    },
  };
}

/** Throws FORMAT_UNSUPPORTED, OBJECT_CORRUPT: what is left of the group says nothing, or not to us. */
export function adoptedGroup(
  group: CatalogedGroup,
  seen: { readonly exports: readonly ExportStatus[]; readonly machines: readonly Machine[] },
): AdoptedGroup {
  const { groupId, entry, claim, disk, newest } = group;
  if (entry === undefined) {
    throw new Fault("OBJECT_CORRUPT", `No entry of group "${groupId}" in the catalog can be read`, {
      details: { groupId },
      hint: "Its points are whole: read them with `leeward rescue`, and protect its machines anew under another name.",
    });
  }
  const { record, revision } = entry;
  if (record["version"] !== RECORD_VERSION) {
    throw new Fault(
      "FORMAT_UNSUPPORTED",
      `The record of group "${groupId}" has version ${JSON.stringify(record["version"])}, this program knows ${RECORD_VERSION}`,
      { details: { groupId }, hint: "Adopt it with the version of Leeward that wrote it, or a newer one." },
    );
  }
  const exports = seen.exports.filter((one) => one.groupId === groupId);
  return {
    revision,
    record,
    ...(claim === undefined ? {} : { claim }),
    ...(disk === undefined ? {} : { disk }),
    ...(newest === undefined ? {} : { newest }),
    exports: exports.map(({ operationId, mode, pointId, branch }) => ({
      operationId,
      mode,
      pointId,
      ...(branch === undefined ? {} : { branch }),
    })),
    machines: seen.machines
      .filter((one) => concerns(record, exports, one.operationId))
      .map(({ id, name, operationId, power, startedAtMs }) => ({
        id,
        name,
        operationId,
        running: power !== "off",
        // One that wrote has run, whatever became of it since.
        started: power !== "off" || startedAtMs !== undefined || wrote(exports, operationId),
      })),
  };
}

function wrote(exports: readonly ExportStatus[], operationId: string): boolean {
  return exports.some((one) => one.operationId === operationId && (one.writtenBytes > 0 || one.barrier > 0));
}

/** A hypervisor has the machines of every group; only those of this one's operations say something about it. */
function concerns(record: AdoptedGroup["record"], exports: readonly ExportStatus[], operationId: string): boolean {
  return (
    exports.some((one) => one.operationId === operationId) ||
    JSON.stringify([record["operations"], record["replica"], record["test"]]).includes(JSON.stringify(operationId))
  );
}

export function describeStanding(standing: Standing): string {
  switch (standing.at) {
    case "ended":
      return "its protection had ended";
    case "source":
      return standing.phase;
    case "target":
      return `${standing.phase}, on the machines of ${standing.replica}${standing.interrupted ? "; an interrupted move is taken back" : ""}`;
    case "nowhere":
      return "protected, but its source is fenced and nothing runs: failover again, or resume";
    case "elsewhere":
      return `claimed for site "${standing.activeSite}"`;
  }
}

function claimedElsewhere(groupId: string, activeSite: string): Fault {
  return new Fault("FENCED", `Group "${groupId}" is claimed for site "${activeSite}", which its record does not know`, {
    details: { groupId, activeSite },
    hint: `Adopt the store of site "${activeSite}": the group is kept there now.`,
  });
}
