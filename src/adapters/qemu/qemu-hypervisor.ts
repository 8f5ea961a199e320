/**
 * Machines as QEMU processes on this host.
 *
 * Invariants (test/contract/hypervisor.contract.ts):
 * - a machine is a folder below `stateFolder`, and its id follows from operation and name: asking twice finds it;
 * - QEMU outlives us: its output goes to files, and whoever comes next finds it by the machine's folder;
 * - at most one QEMU runs per machine, whatever crashed when: QEMU holds a lock on the machine's pid file;
 * - QEMU stays in our process group: losing a site by its group loses its machines too, and a terminal's Ctrl-C reaches them;
 * - a signal goes only to a process that was just seen to be this machine's QEMU;
 * - a guest that stands still between two disks (disk-move.ts) goes on as soon as anybody looks at its machine.
 *
 * A machine that reboots reboots: `-no-reboot` would turn a guest's restart into a loss of service.
 */
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { closeSync, openSync } from "node:fs";
import { rm } from "node:fs/promises";
import path from "node:path";
import { Fault, isFault } from "#model/fault.ts";
import type { Clock } from "#ports/clock.ts";
import type { DiskMove, Hypervisor, HypervisorCapabilities, Machine, MachineDisk } from "#ports/hypervisor.ts";
import { commandLine, CONSOLE_FILE, OPEN_SECONDS, parseNbdUrl, QEMU_LOG_FILE } from "./command-line.ts";
import { moveDisk, settlePivot, type MoveRequest, type RunningMachine } from "./disk-move.ts";
import { pickPorts } from "./host-ports.ts";
import {
  listRecords,
  machineFolder,
  readRecord,
  readTail,
  removeFolder,
  writeRecord,
  type MachineRecord,
} from "./machine-file.ts";
import { command, isUp, openControl, powerOf, unlessGone } from "./machine-control.ts";
import { findProcess, howItEnded, PID_FILE, signalProcess, type ProcessIdentity } from "./process-identity.ts";

export interface QemuOptions {
  /** Ours alone; made if missing. */
  readonly stateFolder: string;
  readonly clock: Clock;
  /** qemu-system-x86_64 */
  readonly program: string;
  /** Default "tcg": software emulation, which works everywhere. */
  readonly accelerator?: string;
}

/** QEMU itself is up in well under a second; the disks' servers may take OPEN_SECONDS. */
const START_MS = OPEN_SECONDS * 1000 + 10_000;
const POLL_MS = 100;
/** A guest that is still booting misses the power button. */
const PRESS_AGAIN_MS = 3_000;
const QUIT_MS = 2_000;
const KILL_MS = 10_000;
const PID_FILE_LOCKED = "Cannot lock pid file";
/** Between picking a free port and QEMU's listening on it, another program may take it. */
const PORT_ATTEMPTS = 3;

const CAPABILITIES: HypervisorCapabilities = {
  disks: "nbd",
  firmware: ["bios"],
  forwards: true,
  console: true,
  hotPlug: false,
  exclusiveDisks: false,
  movesDisks: true,
};

export function createQemuHypervisor(options: QemuOptions): Hypervisor {
  const { clock, stateFolder } = options;
  const queues = new Map<string, Promise<unknown>>();

  /** One change at a time per machine; questions do not wait. */
  async function alone<T>(id: string, work: () => Promise<T>): Promise<T> {
    const before = queues.get(id) ?? Promise.resolve();
    const mine = before.then(work, work);
    queues.set(id, mine);
    try {
      return await mine;
    } finally {
      if (queues.get(id) === mine) queues.delete(id);
    }
  }

  async function load(id: string): Promise<{ readonly record: MachineRecord; readonly folder: string }> {
    const folder = machineFolder(stateFolder, id);
    const record = await readRecord(folder);
    if (record === undefined)
      throw new Fault("NOT_FOUND", `There is no machine "${id}"`, { details: { machineId: id } });
    return { record, folder };
  }

  async function describe(record: MachineRecord, folder: string): Promise<Machine> {
    const running = findProcess(folder);
    return {
      id: record.id,
      operationId: record.operationId,
      name: record.name,
      power: running === undefined ? "off" : await powerOf(running),
      config: record.config,
      forwards: record.forwards,
      disks: record.disks,
      consoleTail: await readTail(path.join(folder, CONSOLE_FILE)),
      ...(record.startedAtMs === undefined
        ? {}
        : running === undefined
          ? { wentOff: await howItEnded(folder) }
          : { startedAtMs: record.startedAtMs }),
    };
  }

  /** What `work` needs of a machine that runs. */
  async function withControl<T>(
    running: ProcessIdentity,
    record: MachineRecord,
    work: (machine: RunningMachine) => Promise<T>,
  ): Promise<T> {
    using control = await openControl(running);
    return await work({ record, folder: machineFolder(stateFolder, record.id), control, clock });
  }

  /** Whoever held the guest for a pivot and has died since: what was begun is brought to its end. */
  async function settled(record: MachineRecord, running: ProcessIdentity | undefined): Promise<MachineRecord> {
    if (record.pivot === undefined || running === undefined) return record;
    return await withControl(running, record, settlePivot);
  }

  /** A look that is no change by itself: it settles what nobody is at work on, and waits for nobody. */
  async function lookAt(record: MachineRecord, folder: string): Promise<Machine> {
    if (record.pivot === undefined || queues.has(record.id)) return await describe(record, folder);
    return await alone(record.id, async () => {
      const now = (await readRecord(folder)) ?? record;
      const after = await settled(now, findProcess(folder)).catch((error: unknown) => {
        // As for its state: a QEMU that is busy or just ending is asked again at the next look.
        if (isFault(error, "HYPERVISOR_UNAVAILABLE")) return now;
        throw error;
      });
      return await describe(after, folder);
    });
  }

  async function move(id: string, request: MoveRequest): Promise<DiskMove> {
    const { record, folder } = await load(id);
    parseNbdUrl(request.url);
    const running = findProcess(folder);
    if (running !== undefined) return await withControl(running, record, (machine) => moveDisk(machine, request));
    const at = record.disks.find((one) => one.diskId === request.diskId)?.url;
    if (at === request.url) return { state: "done", copiedBytes: request.sizeBytes, totalBytes: request.sizeBytes };
    throw new Fault("REFUSED", `Machine "${record.name}" is off, and only the disk of a running machine is moved`, {
      details: { machineId: id },
      hint: "Start it, and ask again",
    });
  }

  async function start(before: MachineRecord, folder: string): Promise<Machine> {
    const running = findProcess(folder);
    const { pivot: _, ...record } = await settled(before, running);
    if (running !== undefined) {
      // Paused by an I/O error, or by a person: its disks are asked again.
      if ((await powerOf(running)) === "paused") await command(running, "cont");
      return await describe(record, folder);
    }
    const lockedUntil = clock.monotonic() + KILL_MS;
    for (let attempt = 1; ; attempt++) {
      const forwards = attempt === 1 ? record.forwards : await pickPorts(record.network);
      const started = { ...record, forwards, startedAtMs: clock.now() };
      await writeRecord(folder, started);
      try {
        await launch(started, folder);
        return await describe(started, folder);
      } catch (error) {
        // A QEMU that was killed is gone to /proc before its last thread has let go of the lock.
        if (isFault(error) && error.message.includes(PID_FILE_LOCKED) && clock.monotonic() < lockedUntil) {
          await clock.sleep(POLL_MS);
          attempt -= 1;
          continue;
        }
        const taken = isFault(error) && error.message.includes("host forwarding rule");
        if (!taken || attempt === PORT_ATTEMPTS || record.network.forwards.every((one) => one.hostPort !== 0))
          throw error;
      }
    }
  }

  /** With other disks, while it is off. */
  async function withDisks(
    id: string,
    change: (disks: readonly MachineDisk[]) => readonly MachineDisk[],
  ): Promise<Machine> {
    const { record, folder } = await load(id);
    const changed = { ...record, disks: change(record.disks) };
    if (JSON.stringify(changed.disks) === JSON.stringify(record.disks)) return await describe(record, folder);
    if (findProcess(folder) !== undefined)
      throw new Fault("REFUSED", `Machine "${record.name}" runs, and its disks can be changed only while it is off`, {
        details: { machineId: id },
        hint: "Shut it down first",
      });
    commandLine(changed, { accelerator: "tcg", mac: macOf(id) });
    await writeRecord(folder, changed);
    return await describe(changed, folder);
  }

  /** Start QEMU and wait until the guest's processor runs. */
  async function launch(record: MachineRecord, folder: string): Promise<void> {
    const words = commandLine(record, {
      accelerator: options.accelerator ?? "tcg",
      mac: record.network.mac ?? macOf(record.id),
    });
    await rm(path.join(folder, CONSOLE_FILE), { force: true });
    const log = openSync(path.join(folder, QEMU_LOG_FILE), "w", 0o600);
    const child = spawn(options.program, words, { cwd: folder, stdio: ["ignore", log, log] });
    closeSync(log);
    child.unref();
    let ended: Error | undefined;
    child.on("error", (error) => (ended = error));
    child.on("exit", (code, signal) => (ended ??= new Error(`QEMU ended with ${signal ?? `exit code ${code}`}`)));

    const deadline = clock.monotonic() + START_MS;
    while (ended === undefined && clock.monotonic() < deadline) {
      const running = findProcess(folder);
      if (running?.pid === child.pid && running !== undefined && (await isUp(running))) return;
      await clock.sleep(POLL_MS);
    }
    if (child.pid !== undefined && ended === undefined) {
      child.kill("SIGKILL"); // Still our child, so its pid cannot have been given away.
      ended = new Error(`QEMU was not up within ${START_MS} ms`);
    }
    throw await notStarted(record, folder, ended);
  }

  async function shutdown(record: MachineRecord, folder: string, timeoutMs: number): Promise<Machine> {
    const deadline = clock.monotonic() + timeoutMs;
    let pressedAt = -Infinity;
    for (;;) {
      const running = findProcess(folder);
      if (running === undefined) return await describe(record, folder);
      const now = clock.monotonic();
      if (now >= deadline) {
        throw new Fault(
          "TIMED_OUT",
          `Machine "${record.name}" did not shut down within ${timeoutMs} ms and still runs`,
          {
            details: { machineId: record.id },
            hint: "Power it off, or look at its console for what it waits for",
          },
        );
      }
      if (now - pressedAt >= PRESS_AGAIN_MS) {
        pressedAt = now;
        await unlessGone(folder, () => command(running, "system_powerdown"));
      }
      await clock.sleep(POLL_MS);
    }
  }

  async function powerOff(folder: string): Promise<void> {
    const running = findProcess(folder);
    if (running === undefined) return;
    // `quit` hands on what QEMU still holds; a QEMU that waits for its disks does not answer.
    await unlessGone(folder, () => command(running, "quit", QUIT_MS)).catch((error: unknown) => {
      if (!isFault(error, "HYPERVISOR_UNAVAILABLE")) throw error;
    });
    if (await isGone(folder, QUIT_MS)) return;
    signalProcess(folder, running, "SIGKILL");
    if (await isGone(folder, KILL_MS)) {
      await rm(path.join(folder, PID_FILE), { force: true }); // As QEMU does when it is told to end: see howItEnded.
      return;
    }
    throw new Fault(
      "HYPERVISOR_UNAVAILABLE",
      `QEMU (process ${running.pid}) did not end within ${KILL_MS} ms of being killed`,
      {
        hint: "The process hangs in the kernel: look at the storage that its disks are on",
      },
    );
  }

  async function isGone(folder: string, timeoutMs: number): Promise<boolean> {
    for (const deadline = clock.monotonic() + timeoutMs; clock.monotonic() < deadline; await clock.sleep(POLL_MS)) {
      if (findProcess(folder) === undefined) return true;
    }
    return findProcess(folder) === undefined;
  }

  return {
    kind: "qemu",
    capabilities: CAPABILITIES,
    createMachine: async (request) => {
      const id = `m-${createHash("sha256").update(`${request.operationId}\0${request.name}`).digest("hex").slice(0, 16)}`;
      const folder = machineFolder(stateFolder, id);
      return await alone(id, async () => {
        const existing = await readRecord(folder);
        if (existing !== undefined) return await describe(existing, folder);
        const { operationId, name, config, disks, network } = request;
        const record: MachineRecord = {
          format: 1,
          id,
          operationId,
          name,
          config,
          disks,
          network,
          forwards: await pickPorts(network),
        };
        commandLine(record, { accelerator: "tcg", mac: macOf(id) }); // What cannot be started is refused now, not in the emergency.
        await writeRecord(folder, record);
        return await describe(record, folder);
      });
    },
    start: (id) =>
      alone(id, async () => {
        const { record, folder } = await load(id);
        return await start(record, folder);
      }),
    shutdown: (id, { timeoutMs }) =>
      alone(id, async () => {
        const { record, folder } = await load(id);
        return await shutdown(record, folder, timeoutMs);
      }),
    powerOff: (id) =>
      alone(id, async () => {
        const { record, folder } = await load(id);
        await powerOff(folder);
        return await describe(record, folder);
      }),
    inspect: async (id) => {
      const { record, folder } = await load(id);
      return await lookAt(record, folder);
    },
    list: async (filter = {}) => {
      const records = await listRecords(stateFolder);
      const wanted = records.filter(
        (one) => filter.operationId === undefined || one.operationId === filter.operationId,
      );
      return await Promise.all(wanted.map((one) => lookAt(one, machineFolder(stateFolder, one.id))));
    },
    attachDisk: (id, disk) =>
      alone(id, () =>
        withDisks(id, (disks) => (disks.some((one) => one.diskId === disk.diskId) ? disks : [...disks, disk])),
      ),
    detachDisk: (id, diskId) => alone(id, () => withDisks(id, (disks) => disks.filter((one) => one.diskId !== diskId))),
    moveDisk: (id, request) => alone(id, () => move(id, request)),
    destroy: (id) =>
      alone(id, async () => {
        const folder = machineFolder(stateFolder, id);
        await powerOff(folder);
        await removeFolder(folder);
      }),
  };
}

async function notStarted(record: MachineRecord, folder: string, cause: Error | undefined): Promise<Fault> {
  if ((cause as NodeJS.ErrnoException | undefined)?.code === "ENOENT") {
    return new Fault("TOOL_MISSING", "QEMU is not there", {
      cause,
      hint: "Install it: apt-get install qemu-system-x86",
    });
  }
  const said = [
    await readTail(path.join(folder, QEMU_LOG_FILE), 10),
    await readTail(path.join(folder, CONSOLE_FILE), 20),
  ];
  const tail = said.filter((text) => text !== "").join("\n");
  return new Fault(
    "MACHINE_NOT_STARTED",
    `Machine "${record.name}" did not start: ${tail === "" ? (cause?.message ?? "no reason given") : tail}`,
    {
      cause,
      details: { machineId: record.id },
      hint: "Check that its disks are served at the URLs it was given, and that its host ports are free",
    },
  );
}

/** In QEMU's own range; the same machine keeps its address. */
function macOf(id: string): string {
  const digits = createHash("sha256").update(id).digest("hex");
  return `52:54:00:${digits.slice(0, 2)}:${digits.slice(2, 4)}:${digits.slice(4, 6)}`;
}
