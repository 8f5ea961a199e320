/** Our connection to the mover of one group: the session, and one more connection for each sweeping lane of an agent. */
import { COMPARE_MS } from "#model/comparison.ts";
import { Fault, isFault } from "#model/fault.ts";
import { readBase64, readBoolean, readList, readName, readObject, readText, readWhole } from "#model/json-reader.ts";
import type { JsonObject, JsonValue } from "#model/json.ts";
import type { Link, Peer } from "#ports/link.ts";
import type { ReplicationOrder } from "#ports/replication.ts";
import type { CompareQuestion } from "#ports/source-link.ts";

/** What the store has of a disk. `cycle` is the last one with a commit of it. */
export interface DiskTail {
  readonly diskId: string;
  readonly epoch: number;
  readonly seq: number;
  readonly commitHash: string;
  readonly cycle: number;
  /** Life of the process server for which it was committed; "" if there is none. */
  readonly sourceLife: string;
  /** The branch has data of this disk. Undefined: an older mover, which compares nothing. */
  readonly stored: boolean | undefined;
}

export interface CommitAnswer {
  readonly committed: readonly {
    readonly diskId: string;
    readonly epoch: number;
    readonly seq: number;
    readonly commitHash: string;
  }[];
  readonly barrier: boolean;
  readonly barrierNumber: number;
}

export interface MoverStream {
  /** "" when the mover is too old to say. */
  readonly storeId: string;
  /** Highest number of a cycle or barrier in the store. */
  readonly barrier: number;
  readonly tails: ReadonlyMap<string, DiskTail>;
  readonly open: boolean;
  readonly closed: Promise<Fault | undefined>;
  /** Frames of a cut, on the session. */
  send(diskId: string, cycle: number, payload: Uint8Array): Promise<void>;
  /** Frames of a sweep, on the connection that belongs to the agent's `lane`. */
  relay(lane: Peer, diskId: string, cycle: number, payload: Uint8Array): Promise<void>;
  closeLane(lane: Peer): void;
  /** The disk is compared in this cycle. Answers the stripes that the replica has, base64. Throws the mover's Fault, PEER_UNREACHABLE, TIMED_OUT. */
  beginCompare(diskId: string, cycle: number): Promise<string>;
  /** A question of the agent's `lane`, behind its frames, and the mover's answer. Throws like `beginCompare`. */
  compare(lane: Peer, params: CompareQuestion): Promise<JsonValue>;
  /** Throws the mover's Fault, PEER_UNREACHABLE, TIMED_OUT. */
  commit(request: JsonObject): Promise<CommitAnswer>;
  close(): void;
}

/** The mover waits 20 s for a store that fails, and as long for records. */
const COMMIT_MS = 90_000;
const OPEN_MS = 60_000;
/** The mover may have to read the indexes of thousands of commits first. */
const BEGIN_COMPARE_MS = 300_000;

/** Throws FENCED, PEER_UNREACHABLE, PEER_REJECTED, NOT_FOUND, REFUSED, STORE_…: whatever dialling and the mover say. */
export async function openMoverStream(
  link: Link,
  order: ReplicationOrder,
  sourceLife: string,
  disks: readonly { readonly diskId: string; readonly sizeBytes: number }[],
  signal: AbortSignal,
): Promise<MoverStream> {
  const { groupId, branch, groupEpoch, sourceSite, version, target } = order;
  const dial = (): Promise<Peer> =>
    link.dial({ host: target.host, port: target.port }, { expect: "master-target", handlers: {}, signal });
  const peer = await dial();
  const lanes = new Map<Peer, Promise<Peer>>();
  let open = true;
  const closed = peer.closed.then((fault) => {
    open = false;
    for (const lane of lanes.keys()) closeLane(lane);
    return fault;
  });
  try {
    if (peer.identity.site !== target.site) {
      throw new Fault("PEER_REJECTED", `The mover is of site "${peer.identity.site}", expected "${target.site}"`, {
        hint: "Look at the order's target",
      });
    }
    const request = {
      groupId,
      branch,
      groupEpoch,
      sourceSite,
      orderVersion: version,
      sourceLife,
      disks: disks.map(({ diskId, sizeBytes }) => ({ diskId, sizeBytes })),
    };
    const answer = readObject(await peer.call("stream.open", request, { timeoutMs: OPEN_MS, signal }), "stream");
    const streamId = readText(answer, "streamId");
    const tails = readList(answer, "disks", (disk) => ({
      diskId: readName(disk, "diskId"),
      epoch: readWhole(disk, "epoch"),
      seq: readWhole(disk, "seq"),
      commitHash: String(disk["commitHash"] ?? ""),
      cycle: readWhole(disk, "cycle"),
      sourceLife: String(disk["sourceLife"] ?? ""),
      stored: typeof disk["stored"] === "boolean" ? disk["stored"] : undefined,
    }));
    return {
      storeId: answer["storeId"] === undefined ? "" : readText(answer, "storeId"),
      barrier: readWhole(answer, "barrier"),
      tails: new Map(tails.map((tail) => [tail.diskId, tail])),
      get open() {
        return open;
      },
      closed,
      send: (diskId, cycle, payload) => peer.notify("frames", { streamId, diskId, cycle }, payload),
      async relay(lane, diskId, cycle, payload) {
        const mine = await laneOf(lane, streamId);
        await mine.notify("frames", { streamId, diskId, cycle }, payload);
      },
      async beginCompare(diskId, cycle) {
        const params = { streamId, diskId, cycle };
        const begun = await peer.call("compare.begin", params, { timeoutMs: BEGIN_COMPARE_MS });
        return readBase64(readObject(begun, "comparison"), "stripes");
      },
      async compare(lane, { diskId, cycle, first, count, digests }) {
        const mine = await laneOf(lane, streamId);
        const params = { streamId, diskId, cycle, first, count, digests };
        return mine.call("compare.run", params, { timeoutMs: COMPARE_MS });
      },
      closeLane,
      async commit(params) {
        const result = readObject(
          await peer.call("cycle.commit", { streamId, ...params }, { timeoutMs: COMMIT_MS }),
          "commit",
        );
        const barrier = readBoolean(result, "barrier");
        return {
          committed: readList(result, "committed", (disk) => ({
            diskId: readName(disk, "diskId"),
            epoch: readWhole(disk, "epoch"),
            seq: readWhole(disk, "seq"),
            commitHash: String(disk["commitHash"] ?? ""),
          })),
          barrier,
          barrierNumber: barrier ? readWhole(result, "barrierNumber") : 0,
        };
      },
      close: () => peer.close(),
    };
  } catch (error) {
    peer.close();
    throw error;
  }

  function laneOf(lane: Peer, streamId: string): Promise<Peer> {
    let mine = lanes.get(lane);
    if (mine === undefined) lanes.set(lane, (mine = openLane(streamId)));
    return mine;
  }

  async function openLane(streamId: string): Promise<Peer> {
    const lane = await dial();
    try {
      await lane.call("lane.open", { streamId });
    } catch (error) {
      lane.close();
      throw error;
    }
    // Frames of it may be lost on the way: only a new stream counts right again.
    void lane.closed.then((fault) => {
      if (fault !== undefined) peer.close(fault);
    });
    return lane;
  }

  function closeLane(lane: Peer): void {
    const mine = lanes.get(lane);
    lanes.delete(lane);
    void mine?.then(
      (opened) => opened.close(),
      (error: unknown) => {
        if (!isFault(error)) throw error; // A Fault was seen by whoever relayed.
      },
    );
  }
}
