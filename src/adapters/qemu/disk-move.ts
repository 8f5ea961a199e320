/**
 * Moving a running machine's disk from one block server to another: QEMU mirrors it, then the guest leaves the old one for the new one.
 *
 * What is under way is QEMU's: its job, named for the disk and the URL it goes to. Nothing is remembered here but the pivot (pivot-plan.ts), in the
 * machine's record, since the guest may be standing still for it. So a call after any crash looks, and goes on or begins again.
 *
 * Invariants:
 * - trouble at either end never reaches the guest: requests wait for a server that restarts, and after that the *mirror* is held (`stop` below),
 *   to be let go by the next call. The guest's own reads and writes are the old disk's, with its own rules;
 * - a guest's write is done when both disks have it (`write-blocking`), so that a mirror that was ready once stays ready, whatever the guest writes;
 * - a block node is named for its disk and its URL; whatever node of this disk nobody uses is removed, which closes its connection.
 *
 * Source: QEMU 7.2, qapi/block-core.json (blockdev-mirror); docs/decisions/0014-qemus-mirror-hydrates.md.
 */
import { createHash } from "node:crypto";
import { connect } from "node:net";
import { Fault, isFault, unreachable } from "#model/fault.ts";
import type { Clock } from "#ports/clock.ts";
import type { DiskMove } from "#ports/hypervisor.ts";
import { firstNode, nbdNode, parseNbdUrl } from "./command-line.ts";
import type { ControlSocket } from "./control-socket.ts";
import { writeRecord, type DiskPivot, type MachineRecord } from "./machine-file.ts";
import { nextPivotStep, type PivotFacts } from "./pivot-plan.ts";

/** A machine that runs, and our line to its QEMU. */
export interface RunningMachine {
  readonly record: MachineRecord;
  readonly folder: string;
  readonly control: ControlSocket;
  readonly clock: Clock;
}

export interface MoveRequest {
  readonly diskId: string;
  readonly url: string;
  readonly sizeBytes: number;
}

/** Commands that wait for requests in flight, and with them perhaps for a server that is being restarted. */
const SLOW_MS = 20_000;
/** So long may the guest stand still for a pivot that does not come about. */
const HELD_MS = 10_000;
const LOOK_MS = 5;
/** A target that does not answer would hold QEMU, and with it the guest, for as long as it is tried. */
const OPEN_SECONDS = 2;

/** Both disks are equal; the later two belong to a pivot whose record was lost. */
const READY: readonly string[] = ["ready", "waiting", "pending"];

/** Throws NOT_FOUND, IMAGE_INVALID, PEER_UNREACHABLE, DISK_FULL, HYPERVISOR_UNAVAILABLE. */
export async function moveDisk(given: RunningMachine, request: MoveRequest): Promise<DiskMove> {
  const machine = { ...given, record: await settlePivot(given) };
  const { record, control } = machine;
  const { index, disk } = findDisk(record, request.diskId);
  const node = nodeFor(index, request.url);
  const seen = await look(control, index);
  if (disk.url === request.url) {
    if (seen.job !== undefined) await giveUp(machine, index, seen.job.id);
    await removeUnused(control, index);
    return doneMove(request);
  }
  if (seen.job === undefined || seen.job.id !== node || seen.job.status === "concluded") {
    if (seen.job !== undefined) await giveUp(machine, index, seen.job.id);
    await removeUnused(control, index);
    await begin(machine, index, request);
    return { state: "copying", copiedBytes: 0, totalBytes: request.sizeBytes };
  }
  const { job } = seen;
  if (job.ioStatus !== "ok") {
    await control.execute("block-job-resume", { arguments: { device: job.id } });
    throw heldUp(machine, disk.url, request, job.ioStatus);
  }
  if (!READY.includes(job.status)) {
    const totalBytes = Math.max(job.length, request.sizeBytes); // It has no length before it has begun.
    return { state: "copying", copiedBytes: job.offset, totalBytes };
  }
  if (!seen.guestRuns)
    throw new Fault("HYPERVISOR_UNAVAILABLE", `Machine "${record.name}" is paused, expected it to run`, {
      details: { machineId: record.id },
      hint: "It waits for one of its disks: see that they are served, then start it again",
    });
  const pivot = { diskId: request.diskId, from: disk.url, to: request.url };
  const pivoting = { ...record, pivot };
  await writeRecord(machine.folder, pivoting);
  const after = await settlePivot({ ...machine, record: pivoting });
  if (findDisk(after, request.diskId).disk.url !== request.url)
    throw new Fault(
      "HYPERVISOR_UNAVAILABLE",
      `Disk "${request.diskId}" of machine "${record.name}" could not be handed over to "${request.url}", and stays at "${disk.url}"`,
      { details: { machineId: record.id }, hint: "Asked again, the move begins again" },
    );
  return doneMove(request);
}

/**
 * Bring a pivot that was begun to its end, forward if it can be and back if not, and let the guest go on. The record that holds then.
 *
 * Throws: HYPERVISOR_UNAVAILABLE, DISK_FULL; then the guest goes on where its record says, unless QEMU does not answer, and the next call comes
 * here again.
 */
export async function settlePivot(machine: RunningMachine): Promise<MachineRecord> {
  const { record, folder, control, clock } = machine;
  const { pivot } = record;
  if (pivot === undefined) return record;
  const { index } = findDisk(record, pivot.diskId);
  const job = nodeFor(index, pivot.to);
  const at = (url: string): MachineRecord => ({
    ...record,
    disks: record.disks.map((one) => (one.diskId === pivot.diskId ? { ...one, url } : one)),
  });
  let current = record;
  let asked = false;
  let resumed = false;
  const facts = async (): Promise<PivotFacts> => {
    const seen = await look(control, index);
    return {
      guestRuns: seen.guestRuns || resumed, // Once is enough: what stops it again is not ours.
      atTarget: seen.root === job,
      job: seen.job?.status,
      asked,
      recorded: findDisk(current, pivot.diskId).disk.url === pivot.to ? "to" : "from",
    };
  };
  const deadline = clock.monotonic() + HELD_MS;
  try {
    for (;;) {
      const step = nextPivotStep(await facts());
      switch (step) {
        case "stop":
          await control.execute("stop", { timeoutMs: SLOW_MS });
          break;
        case "complete":
          await control.execute("job-complete", { arguments: { id: job }, timeoutMs: SLOW_MS });
          asked = true;
          break;
        case "record":
        case "take-back": {
          const next = at(step === "record" ? pivot.to : pivot.from);
          await writeRecord(folder, next);
          current = next;
          break;
        }
        case "finalize":
          await control.execute("job-finalize", { arguments: { id: job }, timeoutMs: SLOW_MS });
          break;
        case "resume":
          await control.execute("cont", { timeoutMs: SLOW_MS });
          resumed = true;
          break;
        case "dismiss":
          await control.execute("job-dismiss", { arguments: { id: job } });
          break;
        case "forget": {
          const { pivot: _, ...settled } = current;
          await removeUnused(control, index);
          await writeRecord(folder, settled);
          return settled;
        }
        case "wait":
          if (clock.monotonic() >= deadline) throw notAtRest(record, pivot);
          await clock.sleep(LOOK_MS);
          break;
        default:
          unreachable(step);
      }
    }
  } catch (error) {
    if (isFault(error)) await letGo(control, facts, job);
    throw error;
  }
}

/**
 * A pivot that cannot go on for now is no reason for the guest to stand still, if it is attached to the disk that its record names. A job that
 * would not let it reach that disk is ended. Of a record that failed to be written otherwise than for want of space it is not known which one
 * the disk holds; then there is no fault, and the guest waits for the next call, which writes again.
 */
async function letGo(control: ControlSocket, facts: () => Promise<PivotFacts>, job: string): Promise<void> {
  try {
    const seen = await facts();
    if (seen.guestRuns || seen.atTarget !== (seen.recorded === "to")) return;
    if (seen.job === "pending") await control.execute("job-cancel", { arguments: { id: job }, timeoutMs: SLOW_MS });
    await control.execute("cont", { timeoutMs: SLOW_MS });
  } catch (error) {
    if (!isFault(error)) throw error; // QEMU does not answer. The fault that led here says why, and the next call comes here again.
  }
}

function notAtRest(record: MachineRecord, { diskId, to }: DiskPivot): Fault {
  return new Fault(
    "HYPERVISOR_UNAVAILABLE",
    `The mirror of disk "${diskId}" of machine "${record.name}" did not come to rest within ${HELD_MS} ms, and the machine runs on`,
    { details: { machineId: record.id }, hint: `Check that "${to}" is served; asked again, the move goes on` },
  );
}

async function begin({ control, record }: RunningMachine, index: number, request: MoveRequest): Promise<void> {
  const { diskId, url, sizeBytes } = request;
  const node = nodeFor(index, url);
  await assertServed(url, diskId);
  const block = nbdNode(url, { node, openSeconds: OPEN_SECONDS });
  await control.execute("blockdev-add", { arguments: block, timeoutMs: SLOW_MS });
  const { root, sizes } = await look(control, index);
  const seen = [
    [findDisk(record, diskId).disk.url, sizes.get(root)],
    [url, sizes.get(node)],
  ] as const;
  for (const [where, size] of seen) {
    if (size === sizeBytes) continue;
    await control.execute("blockdev-del", { arguments: { "node-name": node } });
    throw new Fault(
      "IMAGE_INVALID",
      `Disk "${diskId}" at "${where}" has ${size ?? "no"} bytes, expected ${sizeBytes}: both ends of a move have one size`,
      {
        details: { machineId: record.id, diskId, sizeBytes },
        hint: "Serve an image of that size at the URL that the disk is to be moved to",
      },
    );
  }
  await control.execute("blockdev-mirror", {
    arguments: {
      "job-id": node,
      device: root,
      target: node,
      "filter-node-name": `${node}.mirror`,
      sync: "full",
      "copy-mode": "write-blocking",
      "on-source-error": "stop",
      "on-target-error": "stop",
      "auto-finalize": false,
      "auto-dismiss": false,
    },
    timeoutMs: SLOW_MS,
  });
}

/** The guest stays where it is; afterwards there is no mirror of this disk. */
async function giveUp({ control, record, clock }: RunningMachine, index: number, job: string): Promise<void> {
  const deadline = clock.monotonic() + SLOW_MS;
  for (let cancelled = false; clock.monotonic() < deadline; await clock.sleep(LOOK_MS)) {
    const status = (await look(control, index)).job?.status;
    if (status === undefined) return;
    if (status === "concluded") await control.execute("job-dismiss", { arguments: { id: job } });
    else if (!cancelled) {
      await control.execute("block-job-cancel", { arguments: { device: job, force: true }, timeoutMs: SLOW_MS });
      cancelled = true;
    }
  }
  throw new Fault(
    "HYPERVISOR_UNAVAILABLE",
    `QEMU did not end the mirror "${job}" of machine "${record.name}" in time`,
    {
      details: { machineId: record.id },
      hint: "One of the two disk servers does not answer; asked again, it is ended then",
    },
  );
}

/** Block nodes of earlier moves, and of moves that came to nothing. */
async function removeUnused(control: ControlSocket, index: number): Promise<void> {
  const { root, sizes } = await look(control, index);
  for (const node of sizes.keys()) {
    if (node === root) continue;
    await control.execute("blockdev-del", { arguments: { "node-name": node }, timeoutMs: SLOW_MS });
  }
}

interface Seen {
  readonly guestRuns: boolean;
  /** The block node that the guest's device is attached to. */
  readonly root: string;
  /** Sizes of the disk's block nodes, by name. */
  readonly sizes: ReadonlyMap<string, number>;
  readonly job: SeenJob | undefined;
}

interface SeenJob {
  readonly id: string;
  readonly status: string;
  readonly ioStatus: string;
  readonly offset: number;
  readonly length: number;
}

interface BlockNode {
  readonly "node-name"?: string;
  readonly image: { readonly "virtual-size": number };
}

async function look(control: ControlSocket, index: number): Promise<Seen> {
  const first = firstNode(index);
  const ours = (name: string | undefined): name is string => name === first || name?.startsWith(`${first}.`) === true;
  // The shapes are QEMU's own, of the version that we started.
  const { running } = (await control.execute("query-status")) as { readonly running: boolean };
  const devices = (await control.execute("query-block")) as readonly { readonly inserted?: BlockNode }[];
  const jobs = (await control.execute("query-block-jobs")) as readonly {
    readonly device: string;
    readonly status: string;
    readonly "io-status": string;
    readonly offset: number;
    readonly len: number;
  }[];
  const nodes = (await control.execute("query-named-block-nodes", {
    arguments: { flat: true },
  })) as readonly BlockNode[];
  const root = devices.map(({ inserted }) => inserted?.["node-name"]).find(ours);
  if (root === undefined) throw new RangeError(`QEMU has no device at "${first}"`);
  const job = jobs.find(({ device }) => ours(device));
  return {
    guestRuns: running,
    root,
    sizes: new Map(
      nodes.flatMap((node) => (ours(node["node-name"]) ? [[node["node-name"], node.image["virtual-size"]]] : [])),
    ),
    job: job && {
      id: job.device,
      status: job.status,
      ioStatus: job["io-status"],
      offset: job.offset,
      length: job.len,
    },
  };
}

/** Names of block nodes and jobs have 31 characters; no two disks of a machine, and no two URLs of a disk, share one. */
function nodeFor(index: number, url: string): string {
  return `${firstNode(index)}.${createHash("sha256").update(url).digest("hex").slice(0, 12)}`;
}

function findDisk(record: MachineRecord, diskId: string) {
  const index = record.disks.findIndex((one) => one.diskId === diskId);
  const disk = record.disks[index];
  if (disk !== undefined) return { index, disk };
  throw new Fault("NOT_FOUND", `Machine "${record.name}" has no disk "${diskId}"`, {
    details: { machineId: record.id, diskId },
  });
}

function doneMove({ sizeBytes }: MoveRequest): DiskMove {
  return { state: "done", copiedBytes: sizeBytes, totalBytes: sizeBytes };
}

function heldUp({ record }: RunningMachine, from: string, { diskId, url }: MoveRequest, ioStatus: string): Fault {
  const details = { machineId: record.id, diskId };
  if (ioStatus === "nospace")
    return new Fault("DISK_FULL", `No space left at "${url}" for disk "${diskId}" of machine "${record.name}"`, {
      details,
      hint: "Free space where that image is; asked again, the move goes on",
    });
  return new Fault(
    "HYPERVISOR_UNAVAILABLE",
    `Disk "${diskId}" of machine "${record.name}" could not be read at "${from}" or not be written at "${url}"`,
    { details, hint: "Check that both are served; asked again, the move goes on" },
  );
}

/** Looked at from here first: QEMU connects while its guest waits. */
async function assertServed(url: string, diskId: string): Promise<void> {
  const { server } = parseNbdUrl(url);
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const socket =
    server.type === "unix" ? connect({ path: server.path }) : connect({ host: server.host, port: Number(server.port) });
  socket.setTimeout(OPEN_SECONDS * 1000, () => socket.destroy(new Error("no answer")));
  socket.once("data", () => resolve()); // The server speaks first.
  socket.once("error", reject);
  socket.once("close", () => reject(new Error("the connection was closed")));
  try {
    await promise;
  } catch (cause) {
    throw new Fault("PEER_UNREACHABLE", `Nothing serves disk "${diskId}" at "${url}"`, {
      cause,
      details: { diskId },
      hint: "See that its tap runs; asked again, the move begins then",
    });
  } finally {
    socket.destroy();
  }
}
