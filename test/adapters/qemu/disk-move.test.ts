/** Disks that move under a running QEMU: no guest is needed for who-knows-what-when, only a device that reads and writes. */
import assert from "node:assert/strict";
import { mkdir, mkdtemp, rm, symlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { test } from "node:test";
import { Fault, isFault } from "#model/fault.ts";
import type { Hypervisor } from "#ports/hypervisor.ts";
import { systemClock } from "../../../src/adapters/clock/system-clock.ts";
import type { ControlSocket } from "../../../src/adapters/qemu/control-socket.ts";
import { moveDisk } from "../../../src/adapters/qemu/disk-move.ts";
import { readRecord, type MachineRecord } from "../../../src/adapters/qemu/machine-file.ts";
import { createQemuHypervisor } from "../../../src/adapters/qemu/qemu-hypervisor.ts";
import { serveNbd, type NbdServer } from "../../../src/nbd/server.ts";
import { until } from "../../contract/hypervisor.contract.ts";
import { createMemoryDevice, patterned } from "../../nbd/memory-device.ts";
import { machineControl, qemuPid, writeAsDevice } from "../../support/guest-device.ts";

const SIZE = 8 << 20;
const BLOCK = 4096;

test("a disk moves under a running machine, flushed before the record names it, and moves on and back again", async () => {
  await using world = await openWorld();
  const { hypervisor, id, url } = world;
  const { log } = world.servers["two"];
  world.servers["two"].onFlush = async () =>
    void log.push(`flush, recorded at ${world.serverOf(await world.record())}`);
  await world.write(3, 0x33);
  await world.moveTo("two", async () => await world.write(5, 0x55));
  assert.equal((await world.record()).disks[1]!.url, url("two"));
  const flushed = log.lastIndexOf("flush, recorded at one");
  assert.ok(
    flushed > log.lastIndexOf("write"),
    `the last write is flushed before the record changes: ${log.join("; ")}`,
  );
  assert.deepEqual(world.servers["two"].bytes, world.servers["one"].bytes);
  assert.deepEqual(world.servers["one"].sessions(), [], "the old server is left");
  await world.write(7, 0x77);
  assert.notDeepEqual(world.servers["two"].bytes, world.servers["one"].bytes, "what follows is the new disk's alone");

  for (const next of ["three", "one", "two"] as const) {
    await world.moveTo(next);
    await world.write(11, next.length);
    assert.deepEqual(
      (await hypervisor.inspect(id)).disks?.map((disk) => disk.url),
      [url("system"), url(next)],
    );
  }
  assert.equal((await hypervisor.inspect(id)).power, "running");
  const { state } = await hypervisor.moveDisk!(id, { diskId: "data", url: url("two"), sizeBytes: SIZE });
  assert.equal(state, "done", "once more is once");
  await hypervisor.powerOff(id);
  assert.equal((await world.ask("two")).state, "done", "also when it has been powered off since");
  await hypervisor.start(id);
  await until("booted from the new disk", async () => world.servers["two"].sessions().length === 1);
  assert.deepEqual(world.servers["one"].sessions(), []);
});

test("what cannot be moved is refused, and nothing is left of the attempt", async () => {
  await using world = await openWorld();
  const { hypervisor, id, url } = world;
  const ask = (diskId: string, to: string, sizeBytes = SIZE) =>
    hypervisor.moveDisk!(id, { diskId, url: to, sizeBytes });
  await assert.rejects(ask("data", url("short")), (error) => isFault(error, "IMAGE_INVALID"));
  await assert.rejects(ask("data", url("short"), SIZE / 2), (error) => isFault(error, "IMAGE_INVALID"));
  await assert.rejects(ask("data", "nbd+unix:///x?socket=/nowhere.sock"), (error) =>
    isFault(error, "PEER_UNREACHABLE"),
  );
  await assert.rejects(ask("data", "file:///etc/passwd"), (error) => isFault(error, "CONFIG_INVALID"));
  await assert.rejects(ask("other", url("two")), (error) => isFault(error, "NOT_FOUND"));
  await assert.rejects(hypervisor.moveDisk!("m-none", { diskId: "data", url: url("two"), sizeBytes: SIZE }), (error) =>
    isFault(error, "NOT_FOUND"),
  );
  assert.deepEqual(await world.nodes(), ["disk0", "disk1"]);
  assert.deepEqual(world.servers["short"].sessions(), []);
  await world.moveTo("two");
  await hypervisor.powerOff(id);
  await assert.rejects(ask("data", url("three")), (error) => isFault(error, "REFUSED") && error.hint !== undefined);
});

test("a move under way is given up by asking for the disk's own place, or turned by asking for another", async () => {
  await using world = await openWorld();
  const { url } = world;
  world.servers["two"].lateMs = 50;
  assert.equal((await world.ask("two")).state, "copying");
  assert.equal((await world.ask("one")).state, "done");
  assert.deepEqual(await world.nodes(), ["disk0", "disk1"]);
  assert.equal((await world.ask("two")).state, "copying");
  await world.moveTo("three");
  assert.equal((await world.record()).disks[1]!.url, url("three"));
  assert.deepEqual(world.servers["three"].bytes, world.servers["one"].bytes);
  assert.deepEqual(world.servers["two"].sessions(), []);
});

test("a target without space holds the mirror and not the guest, and the move goes on when there is some", async () => {
  await using world = await openWorld();
  world.servers["two"].full = true;
  const toldFull = (): Promise<boolean> =>
    world.ask("two").then(
      () => false,
      (error: unknown) => isFault(error, "DISK_FULL"),
    );
  await until("told that there is no space", toldFull);
  await world.write(1, 0x11);
  assert.equal((await world.hypervisor.inspect(world.id)).power, "running");
  world.servers["two"].full = false;
  await until("no longer told so", async () => !(await toldFull()));
  await world.moveTo("two");
  assert.deepEqual(world.servers["two"].bytes, world.servers["one"].bytes);
});

test("a record that cannot be written for want of space leaves the guest running where it was", async () => {
  await using world = await openWorld();
  const draft = path.join(world.folder, "machine.json.draft");
  await world.untilReady("two");
  using line = await world.control();
  const control = hooked(line, async (command) => {
    if (command === "job-complete") await symlink("/dev/full", draft);
  });
  const machine = { record: await world.record(), folder: world.folder, control, clock: systemClock };
  await assert.rejects(moveDisk(machine, { diskId: "data", url: world.url("two"), sizeBytes: SIZE }), (error) =>
    isFault(error, "DISK_FULL"),
  );
  assert.equal(((await line.execute("query-status")) as { readonly running: boolean }).running, true);
  line[Symbol.dispose](); // QEMU listens to one at a time.
  await world.write(9, 0x99);
  assert.equal(world.serverOf(await world.record()), "one");
  await rm(draft);
  await world.moveTo("two");
  assert.equal(world.servers["two"].bytes[9 * BLOCK], 0x99);
});

test("a record of which it is not known whether it was written holds the guest until it is", async () => {
  await using world = await openWorld();
  const draft = path.join(world.folder, "machine.json.draft");
  await world.untilReady("two");
  {
    using line = await world.control();
    const control = hooked(line, async (command) => {
      if (command === "job-complete") await mkdir(draft);
    });
    const machine = { record: await world.record(), folder: world.folder, control, clock: systemClock };
    await assert.rejects(moveDisk(machine, { diskId: "data", url: world.url("two"), sizeBytes: SIZE }), /EISDIR/);
    assert.equal(((await line.execute("query-status")) as { readonly running: boolean }).running, false);
  }
  await rm(draft, { recursive: true });
  assert.equal((await world.hypervisor.inspect(world.id)).power, "running");
  assert.equal(world.serverOf(await world.record()), "two");
});

function hooked(control: ControlSocket, before: (command: string) => Promise<void>): ControlSocket {
  return {
    async execute(command, options) {
      await before(command);
      return await control.execute(command, options);
    },
    [Symbol.dispose]: () => control[Symbol.dispose](),
  };
}

/**
 * Ends the work before its look number `at`, as a kill would: without any cleaning up. A look follows every step, so these are all the states that a
 * death can leave.
 */
function dyingAt(control: ControlSocket, at: number): ControlSocket {
  let looks = 0;
  return hooked(control, async (command) => {
    if (command === "query-status") looks += 1;
    if (looks === at) throw new Error("killed"); // No fault: a fault would be cleaned up after.
  });
}

/** With the mirror ready, one call is killed at its look number `at`; false when it took fewer. */
async function killedCall(world: World, to: Server, at: number): Promise<boolean> {
  using control = await world.control();
  const machine = {
    record: await world.record(),
    folder: world.folder,
    control: dyingAt(control, at),
    clock: systemClock,
  };
  try {
    await moveDisk(machine, { diskId: "data", url: world.url(to), sizeBytes: SIZE });
    return false;
  } catch (error) {
    assert.match(String(error), /killed/);
    return true;
  }
}

test("whoever moves a disk may die after any step: one look and the guest runs, one more call and it is done", async (context) => {
  await using world = await openWorld();
  let deaths = 0;
  for (let at = 1, died = true; died; at++) {
    const to = world.serverOf(await world.record()) === "one" ? "two" : "one";
    await world.untilReady(to);
    died = await killedCall(world, to, at);
    deaths += died ? 1 : 0;
    const seen = await world.reopen().inspect(world.id);
    assert.equal(seen.power, "running", `after death ${at}`);
    await world.write(at, at);
    await world.moveTo(to);
    await world.write(at, at);
    assert.equal(await world.nodesOfData(), 1);
    assert.equal((await world.record()).pivot, undefined);
  }
  context.diagnostic(`${deaths} deaths`);
  assert.ok(deaths >= 9);
});

test("QEMU may be killed after any step: the disk that the record names has every write", async (context) => {
  await using world = await openWorld();
  let deaths = 0;
  const booted = new Set<string>();
  for (let at = 1, died = true; died; at++) {
    const from = world.serverOf(await world.record());
    const to = from === "one" ? "two" : "one";
    await world.untilReady(to);
    await world.write(at, at);
    died = await killedCall(world, to, at);
    deaths += died ? 1 : 0;
    await world.killQemu();
    const named = world.serverOf(await world.record());
    booted.add(named === from ? "from" : "to");
    const block = world.servers[named].bytes.subarray(at * BLOCK, (at + 1) * BLOCK);
    assert.ok(
      block.every((byte) => byte === at),
      `after death ${at}`,
    );
    assert.equal((await world.hypervisor.start(world.id)).power, "running");
    assert.equal((await world.record()).pivot, undefined);
    await world.moveTo(named === "one" ? "two" : "one");
    assert.deepEqual(world.servers["one"].bytes, world.servers["two"].bytes);
  }
  context.diagnostic(`${deaths} deaths`);
  assert.deepEqual([...booted].sort(), ["from", "to"], "both sides of the record were hit");
});

type Server = "one" | "two" | "three" | "short" | "system";

interface TestServer {
  readonly bytes: Buffer;
  readonly sessions: () => readonly string[];
  readonly log: string[];
  lateMs: number;
  full: boolean;
  onFlush: () => Promise<void>;
}

interface World extends AsyncDisposable {
  readonly hypervisor: Hypervisor;
  readonly id: string;
  readonly folder: string;
  readonly servers: Readonly<Record<Server, TestServer>>;
  url(server: Server): string;
  reopen(): Hypervisor;
  record(): Promise<MachineRecord>;
  serverOf(record: MachineRecord): Server;
  control(): Promise<ControlSocket>;
  ask(to: Server): ReturnType<NonNullable<Hypervisor["moveDisk"]>>;
  /** Asks until it is done; `meanwhile` after the first call. */
  moveTo(to: Server, meanwhile?: () => Promise<void>): Promise<void>;
  /** The mirror is ready, and nobody has asked since. */
  untilReady(to: Server): Promise<void>;
  /** As the guest's device writes: block `block` full of `byte`, answered. */
  write(block: number, byte: number): Promise<void>;
  nodes(): Promise<readonly string[]>;
  nodesOfData(): Promise<number>;
  killQemu(): Promise<void>;
}

async function openWorld(): Promise<World> {
  const stateFolder = await mkdtemp(path.join(tmpdir(), "leeward-move-"));
  const opened: NbdServer[] = [];
  const servers = {} as Record<Server, TestServer>;
  for (const name of ["one", "two", "three", "short", "system"] as const) {
    const bytes = name === "one" ? patterned(SIZE) : Buffer.alloc(name === "short" ? SIZE / 2 : SIZE, 0xee);
    const memory = createMemoryDevice(bytes);
    const server: TestServer = {
      bytes,
      log: [],
      lateMs: 0,
      full: false,
      onFlush: () => Promise.resolve(),
      sessions: () => nbd.sessions(),
    };
    const late = async (): Promise<void> => {
      if (server.lateMs > 0) await systemClock.sleep(server.lateMs);
    };
    const device = {
      ...memory,
      write: async (data: Uint8Array, offset: number) => {
        await late();
        if (server.full) throw noSpace();
        server.log.push("write");
        await memory.write(data, offset);
      },
      zero: async (offset: number, length: number) => {
        await late();
        if (server.full) throw noSpace();
        server.log.push("write");
        await memory.zero(offset, length);
      },
      flush: async () => {
        await server.onFlush();
        await memory.flush();
      },
    };
    const nbd = await serveNbd({
      exports: { find: (asked) => (asked === name ? device : undefined), names: () => [name] },
      listen: { path: path.join(stateFolder, `${name}.sock`) },
    });
    opened.push(nbd);
    servers[name] = server;
  }
  const url = (server: Server): string => `nbd+unix:///${server}?socket=${path.join(stateFolder, `${server}.sock`)}`;
  const machines = path.join(stateFolder, "machines");
  const reopen = (): Hypervisor =>
    createQemuHypervisor({ stateFolder: machines, clock: systemClock, program: "qemu-system-x86_64" });
  const hypervisor = reopen();
  const { id } = await hypervisor.createMachine({
    operationId: "op-1",
    name: "moved",
    config: { cpus: 1, memoryMiB: 32, firmware: "bios" },
    disks: [
      { diskId: "system", url: url("system") },
      { diskId: "data", url: url("one") },
    ],
    network: { mode: "isolated", forwards: [] },
  });
  await hypervisor.start(id);
  const folder = path.join(machines, id);
  const control = (): Promise<ControlSocket> => machineControl(folder);
  const world: World = {
    hypervisor,
    id,
    folder,
    servers,
    url,
    reopen,
    control,
    record: async () => (await readRecord(folder))!,
    serverOf: (record) => (["one", "two", "three"] as const).find((name) => url(name) === record.disks[1]!.url)!,
    ask: async (to) => await hypervisor.moveDisk!(id, { diskId: "data", url: url(to), sizeBytes: SIZE }),
    async moveTo(to, meanwhile) {
      let first = true;
      await until(`moved to ${to}`, async () => {
        const { state, copiedBytes, totalBytes } = await world.ask(to);
        assert.ok(copiedBytes <= totalBytes);
        if (first) await meanwhile?.();
        first = false;
        return state === "done";
      });
    },
    async untilReady(to) {
      await world.ask(to);
      using line = await control();
      await until("ready", async () =>
        ((await line.execute("query-block-jobs")) as readonly { readonly ready: boolean }[]).every(
          ({ ready }) => ready,
        ),
      );
    },
    write: (block, byte) => writeAsDevice(folder, 1, { offset: block * BLOCK, length: BLOCK, byte }),
    async nodes() {
      using line = await control();
      const found = (await line.execute("query-named-block-nodes", { arguments: { flat: true } })) as readonly {
        readonly "node-name": string;
      }[];
      return found.map((node) => node["node-name"]).sort();
    },
    nodesOfData: async () => (await world.nodes()).filter((name) => name.startsWith("disk1")).length,
    async killQemu() {
      process.kill(await qemuPid(folder), "SIGKILL");
      await until("off", async () => (await reopen().inspect(id)).power === "off");
    },
    [Symbol.asyncDispose]: async () => {
      await hypervisor.destroy(id);
      for (const nbd of opened) await nbd.close({ graceMs: 100 });
      await rm(stateFolder, { recursive: true, force: true });
    },
  };
  return world;
}

function noSpace(): Fault {
  return new Fault("DISK_FULL", "No space left, as the test says");
}
