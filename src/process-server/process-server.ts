/**
 * The process server: the source site's gateway. Agents and control speak to it; it speaks to movers. It holds no credentials of a store, no disk
 * keys, and nothing on its disk that would be missed.
 */
import { join } from "node:path";
import { Fault } from "#model/fault.ts";
import { readList, readObject, readText, readWhole } from "#model/json-reader.ts";
import type { JsonObject, JsonValue } from "#model/json.ts";
import type { Clock } from "#ports/clock.ts";
import type { DurableFiles } from "#ports/durable-files.ts";
import type { Address, Link } from "#ports/link.ts";
import type { Log } from "#ports/log.ts";
import type { ProcessServer } from "#ports/process-server.ts";
import type { ReplicationOrder } from "#ports/replication.ts";
import type { GroupTask } from "#ports/source-link.ts";
import { createAgentRegistry, readAgentDisks } from "./agent-registry.ts";
import { startGroup, type Group } from "./group.ts";
import { openGroupFile } from "./group-file.ts";
import { openOrderBook } from "./order-book.ts";
import type { SiteCache } from "./site-cache.ts";
import { openSpool } from "./spool.ts";
import { createStreamReducer, type CompressPayload } from "./stream-reducer.ts";

export interface ProcessServerOptions {
  readonly link: Link;
  readonly listen: Address;
  readonly stateDir: string;
  readonly spoolBytesMax: number;
  /** Control's public key, PEM. */
  readonly orderKey: string;
  readonly compressPayload: CompressPayload;
  readonly cache: SiteCache;
  readonly throttle: (bytes: number, signal: AbortSignal) => Promise<void>;
  /** Brings an agent's request for its next certificate to control. Throws PEER_UNREACHABLE. */
  readonly renew: (request: JsonObject) => Promise<JsonValue>;
  readonly files: DurableFiles;
  readonly clock: Clock;
  readonly log: Log;
}

export interface RunningProcessServer extends ProcessServer {
  /** Where agents dial. */
  readonly address: Address;
  close(): Promise<void>;
}

/** Throws PORT_IN_USE, CONFIG_INVALID. */
export async function startProcessServer(options: ProcessServerOptions): Promise<RunningProcessServer> {
  const { link, stateDir, throttle, clock, log } = options;
  const book = openOrderBook({
    folder: join(stateDir, "orders"),
    orderKey: options.orderKey,
    site: link.self.site,
    files: options.files,
    log,
  });
  const spool = openSpool({ folder: join(stateDir, "spool"), bytesMax: options.spoolBytesMax });
  const groups = new Map<string, Group>();
  const agents = createAgentRegistry({
    log,
    tasksOf,
    renew: options.renew,
    async takeFrames(frames) {
      const group = groups.get(frames.groupId);
      if (group === undefined) throw new Fault("PROTOCOL_INVALID", `There is no order for group "${frames.groupId}"`);
      await group.takeFrames(frames);
    },
    async compare(asked) {
      const group = groups.get(asked.groupId);
      if (group === undefined) throw new Fault("PROTOCOL_INVALID", `There is no order for group "${asked.groupId}"`);
      return group.compare(asked);
    },
    onChange: (machine) => {
      for (const group of groups.values()) group.agentChanged(machine);
    },
    onLaneClosed: (lane) => {
      for (const group of groups.values()) group.laneClosed(lane);
    },
  });
  for (const order of book.orders) start(order);
  const listener = await link.listen(options.listen, (peer) => agents.accept(peer));
  log.info("The process server serves agents", { address: listener.address, groups: [...groups.keys()] });

  return {
    address: listener.address,
    async putOrder({ signed }) {
      const { order, changed } = book.put(signed);
      if (changed) {
        const former = groups.get(order.groupId)?.order;
        if (former === undefined) start(order);
        else groups.get(order.groupId)?.obey(order);
        log.info("An order is obeyed", { groupId: order.groupId, version: order.version, state: order.state });
        const machines = new Set([...(former?.members ?? []), ...order.members].map((member) => member.machine));
        await Promise.all([...machines].map(tellTasks));
      }
      return { version: order.version };
    },
    async inspectDisks({ machine, sources, groupId }) {
      for (const order of book.orders) {
        if (order.groupId === groupId || order.state === "stopped") continue;
        const taken = order.members
          .find((member) => member.machine === machine)
          ?.disks.find((disk) => sources.includes(disk.source));
        if (taken === undefined) continue;
        throw new Fault(
          "DISK_ALREADY_PROTECTED",
          `"${taken.source}" of "${machine}" is protected in group "${order.groupName}", expected a disk that no group has`,
          {
            details: { machine, source: taken.source, groupId: order.groupId },
            hint: `Unprotect group "${order.groupName}" first, or leave this disk out`,
          },
        );
      }
      const agent = agents.get(machine);
      if (agent === undefined) {
        throw new Fault("AGENT_UNREACHABLE", `Machine "${machine}" is not connected to this site's process server`, {
          details: {
            machine,
            connected: agents.known
              .filter((known) => known.connected)
              .map((known) => known.machine)
              .join(", "),
          },
          hint: "Start its agent, or check the machine's name with `leeward agent list`",
        });
      }
      const disks = await agent.call("agent.inspect", { groupId, sources });
      return readList({ disks }, "disks", (disk) => ({
        source: readText(disk, "source"),
        sizeBytes: readWhole(disk, "sizeBytes"),
        sectorBytes: readWhole(disk, "sectorBytes"),
      }));
    },
    groupState: async ({ groupId }) => existing(groupId).state(),
    cutNow: async ({ groupId, ...request }) => existing(groupId).cutNow(request),
    listAgents: async () => agents.known,
    async close() {
      await listener.close();
      await Promise.all([...groups.values()].map((group) => group.close()));
      await spool.close();
    },
  };

  function start(order: ReplicationOrder): void {
    const { groupId } = order;
    const file = openGroupFile(join(stateDir, "groups", `${groupId}.json`), options.files);
    const deps = { link, agents, spool, cache: options.cache, throttle, clock, log: log.child({ groupId }) };
    groups.set(groupId, startGroup(deps, order, { file, reducer: createStreamReducer(options.compressPayload) }));
  }

  function existing(groupId: string): Group {
    const group = groups.get(groupId);
    if (group === undefined)
      throw new Fault("NOT_FOUND", `There is no order for group "${groupId}"`, {
        hint: "Control gives one when the group is protected",
      });
    return group;
  }

  function tasksOf(machine: string): GroupTask[] {
    return book.orders.flatMap((order) =>
      order.members
        .filter((member) => member.machine === machine)
        .map((member) => ({
          groupId: order.groupId,
          state: order.state,
          compressAt: order.compressAt,
          disks: member.disks,
        })),
    );
  }

  async function tellTasks(machine: string): Promise<void> {
    const agent = agents.get(machine);
    if (agent === undefined) return; // It asks when it comes.
    try {
      const answer = await agent.call("agent.obey", {
        tasks: tasksOf(machine).map((task) => ({ ...task, disks: task.disks.map((disk) => ({ ...disk })) })),
      });
      agents.note(machine, readAgentDisks(readObject(answer, "answer")));
    } catch (error) {
      if (!(error instanceof Fault)) throw error;
      log.warn("An agent did not take its tasks; it is connected anew", { machine, fault: error });
      agent.close(error);
    }
    for (const group of groups.values()) group.agentChanged(machine);
  }
}
