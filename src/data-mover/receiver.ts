/**
 * The mover's listening side: process servers dial in, and what they say goes to their group.
 *
 * A group is known from the moment the master target names it; its disks and keys are opened when its source first comes, and
 * again after that failed, so a store that is down at the start keeps nobody from listening.
 */
import { Fault } from "#model/fault.ts";
import { MAX_FRAMES_PAYLOAD_BYTES } from "#model/frame-record.ts";
import { readText } from "#model/json-reader.ts";
import type { JsonValue } from "#model/json.ts";
import type { Address, Handlers, Link, Listener, Peer } from "#ports/link.ts";
import type { Log } from "#ports/log.ts";
import type { GroupProgress } from "#ports/replication.ts";
import { startAnchoring, type Anchoring } from "./anchoring.ts";
import { base64, comparisonToJson } from "./compared-disks.ts";
import { containerBuffers } from "./container-buffers.ts";
import { mapAccess } from "./map-access.ts";
import { moverDisk, type MoverDisk } from "./mover-disk.ts";
import { moverGroup, type MoverGroup, type MoverGroupSpec } from "./mover-group.ts";
import { readCompareRun, readCycleCommit, readFramesHead, readStreamOpen } from "./mover-messages.ts";
import type { MoverStore } from "./mover-store.ts";
import { SEGMENT_PUTS_MAX, slots } from "./segment-upload.ts";

export interface ReceivedGroup extends MoverGroupSpec {
  readonly disks: readonly { readonly diskId: string; readonly sizeBytes: number; readonly sectorBytes: number }[];
}

export interface Receiver {
  readonly address: Address;
  /** Receive this group from now on; a change of its disks ends its stream. */
  putGroup(group: ReceivedGroup): void;
  /** Receive it no more; its source hears why. */
  dropGroup(groupId: string, fault: Fault): Promise<void>;
  /** End the stream of a group; it may be opened again if the store allows it. */
  endStream(groupId: string, fault: Fault): Promise<void>;
  close(): Promise<void>;
}

export interface ReceiverOptions {
  readonly link: Link;
  readonly listen: Address;
  readonly store: MoverStore;
  readonly log: Log;
  readonly onProgress: (progress: GroupProgress) => void;
  readonly patienceMs?: number;
  /** At most one progress of a group in this time. */
  readonly progressEveryMs?: number;
}

const PATIENCE_MS = 20_000;
const PROGRESS_EVERY_MS = 200;

export async function startReceiver(options: ReceiverOptions): Promise<Receiver> {
  const { link, store, log } = options;
  const buffers = containerBuffers();
  const uploads = slots(SEGMENT_PUTS_MAX);
  const turns = slots(1);
  const anchorings: Anchoring[] = [];
  const holder = `${link.self.site}/${link.self.name}/${process.pid}`;
  const groups = new Map<string, { readonly spec: ReceivedGroup; opened: Promise<MoverGroup> | undefined }>();
  const streams = new Map<string, MoverGroup>();
  const progressEveryMs = options.progressEveryMs ?? PROGRESS_EVERY_MS;
  const reports = new Map<string, NodeJS.Timeout>();
  const { random } = store.context;

  const report = (group: MoverGroup, groupId: string): void => {
    if (reports.has(groupId)) return;
    reports.set(
      groupId,
      setTimeout(() => {
        reports.delete(groupId);
        // What a group was before it was changed (fenced, say) is not how it is now.
        void groups.get(groupId)?.opened?.then(
          (now) => {
            if (now === group) options.onProgress(group.progress());
          },
          () => undefined, // It could not be opened: whoever tried has the error.
        );
      }, progressEveryMs),
    );
  };

  const openGroup = async (spec: ReceivedGroup): Promise<MoverGroup> => {
    const disks = new Map<string, MoverDisk>();
    const groupLog = log.child({ group: spec.groupId });
    for (const disk of spec.disks) {
      const opened = await store.openDisk(disk);
      const onTrouble = (fault: Fault): void =>
        groupLog.warn("The store refused or failed", { disk: disk.diskId, fault: fault.toJSON() });
      const anchoring = startAnchoring(mapAccess(opened, groupLog), { turns });
      anchorings.push(anchoring);
      disks.set(disk.diskId, moverDisk(opened, { buffers, uploads, holder, onTrouble, anchoring }));
    }
    const group: MoverGroup = moverGroup(spec, {
      storeId: await store.storeId(),
      context: await store.group(spec.groupId, [...disks.keys()]),
      disks,
      log: groupLog,
      onProgress: () => report(group, spec.groupId),
      newStreamId: () => Buffer.from(random.bytes(12)).toString("hex"),
      patienceMs: options.patienceMs ?? PATIENCE_MS,
    });
    return group;
  };

  const groupOf = async (groupId: string): Promise<MoverGroup> => {
    const known = groups.get(groupId);
    if (!known) {
      throw new Fault("NOT_FOUND", `Group "${groupId}" is not received here`, {
        hint: "Protect it again, or look which master target its order names.",
      });
    }
    if (!known.opened) {
      const opening = openGroup(known.spec);
      known.opened = opening;
      opening.catch(() => (known.opened = undefined)); // The caller has the error; the next stream tries again.
    }
    return known.opened;
  };

  const streamOf = (streamId: string): MoverGroup => {
    const group = streams.get(streamId);
    if (group) return group;
    throw new Fault("PROTOCOL_INVALID", `There is no stream "${streamId}"`, {
      hint: "Open a new stream; what was not acknowledged has to be sent again.",
    });
  };

  const accept = (peer: Peer): Handlers => {
    if (peer.identity.role !== "process-server") {
      throw new Fault("PEER_REJECTED", `Only process servers may dial a mover, not a "${peer.identity.role}"`);
    }
    return {
      "stream.open": async (params) => {
        const request = readStreamOpen(params);
        const group = await groupOf(request.groupId);
        const opened = await group.open(peer, request);
        for (const [id, other] of streams) if (other === group) streams.delete(id);
        streams.set(opened.streamId, group);
        return { ...opened } as unknown as JsonValue; // Plain numbers and texts.
      },
      "lane.open": async (params) => {
        const streamId = readText(params, "streamId");
        streamOf(streamId).join(peer, streamId);
        return {};
      },
      frames: async (params, { payload }) => {
        const head = readFramesHead(params);
        if (!payload || payload.length > MAX_FRAMES_PAYLOAD_BYTES) {
          throw new Fault(
            "PROTOCOL_INVALID",
            `Expected frames of at most ${MAX_FRAMES_PAYLOAD_BYTES} bytes, got ${payload?.length ?? 0}`,
          );
        }
        await streamOf(head.streamId).receive(head, payload);
      },
      "compare.begin": async (params) => {
        const head = readFramesHead(params);
        return { stripes: base64(await streamOf(head.streamId).beginCompare(head)) };
      },
      "compare.run": async (params) => {
        const request = readCompareRun(params);
        return comparisonToJson(await streamOf(request.streamId).compare(request));
      },
      "cycle.commit": async (params) => {
        const request = readCycleCommit(params);
        return { ...(await streamOf(request.streamId).commit(request)) } as unknown as JsonValue; // Plain numbers and texts.
      },
    };
  };

  const listener: Listener = await link.listen(options.listen, accept);
  // Rates fall while nothing arrives, and whoever watches should see that.
  const ticker = setInterval(() => {
    for (const [groupId, { opened }] of groups)
      void opened?.then(
        (group) => report(group, groupId),
        () => undefined,
      );
  }, 1_000);

  const endStream = async (groupId: string, fault: Fault): Promise<void> => {
    const opened = groups.get(groupId)?.opened;
    if (!opened) return;
    const group = await opened.catch(() => undefined); // Never opened: no stream to end.
    group?.end(fault);
    await group?.settled();
  };

  return {
    address: listener.address,
    putGroup(spec) {
      const known = groups.get(spec.groupId);
      if (known && JSON.stringify(known.spec) === JSON.stringify(spec)) return;
      if (known)
        void endStream(
          spec.groupId,
          new Fault("PEER_UNREACHABLE", `Group "${spec.groupId}" was changed: open its stream again`),
        );
      groups.set(spec.groupId, { spec, opened: undefined });
    },
    async dropGroup(groupId, fault) {
      await endStream(groupId, fault);
      groups.delete(groupId);
    },
    endStream,
    async close() {
      clearInterval(ticker);
      for (const timer of reports.values()) clearTimeout(timer);
      await Promise.all(
        [...groups.keys()].map((groupId) =>
          endStream(groupId, new Fault("PEER_UNREACHABLE", "The mover is being stopped")),
        ),
      );
      await Promise.all(anchorings.map((anchoring) => anchoring.close()));
      await listener.close();
    },
  };
}
