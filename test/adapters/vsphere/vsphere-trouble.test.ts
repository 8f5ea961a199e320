/** What goes wrong with a vCenter, and what is seen of it; without guests. */
import assert from "node:assert/strict";
import { open, stat, writeFile } from "node:fs/promises";
import path from "node:path";
import { test } from "node:test";
import { isFault } from "#model/fault.ts";
import { isThere, startSimulator, type Simulator } from "./simulator.ts";

const MACHINE = {
  config: { cpus: 2, memoryMiB: 256, firmware: "uefi" },
  network: { mode: "isolated", forwards: [] },
} as const;
const REQUEST = { operationId: "op-1", name: "web", disks: [], ...MACHINE } as const;

test("a session that ended is begun again: nothing is taken for gone, and nothing is made twice", async () => {
  await using simulator = await startSimulator();
  const hypervisor = simulator.connect();
  const { id } = await hypervisor.createMachine(REQUEST);
  await simulator.control("end-sessions");
  assert.deepEqual(
    (await hypervisor.list()).map((one) => one.id),
    [id],
  );
  await simulator.control("end-sessions");
  // Many find it out at the same time, and one logs in.
  const [again, ...others] = await Promise.all([
    hypervisor.createMachine(REQUEST),
    hypervisor.inspect(id),
    hypervisor.list(),
    hypervisor.inventory(),
  ]);
  assert.equal(again.id, id);
  assert.equal(others.length, 3);
  const calls = await callsOf(simulator);
  assert.equal(calls["Login"], 3);
  assert.equal(calls["CreateVM_Task"], 1);
});

test("a wait goes on when the session ends under it", async () => {
  await using simulator = await startSimulator();
  const hypervisor = simulator.connect();
  const { id } = await hypervisor.createMachine(REQUEST);
  await hypervisor.start(id);
  await simulator.control("mute", { id }); // Its guest no longer listens.
  const down = hypervisor.shutdown(id, { timeoutMs: 3_000 });
  await new Promise((resolve) => setTimeout(resolve, 500));
  await simulator.control("end-sessions");
  await assert.rejects(down, (error) => isFault(error, "TIMED_OUT"));
  assert.ok(((await callsOf(simulator))["Login"] ?? 0) > 1);
  assert.equal((await hypervisor.powerOff(id)).power, "off");
});

test("a vCenter that goes away under a wait is said to be away, and no machine is taken for gone", async () => {
  await using simulator = await startSimulator();
  const hypervisor = simulator.connect();
  const { id } = await hypervisor.createMachine(REQUEST);
  await hypervisor.start(id);
  await simulator.control("mute", { id });
  const down = hypervisor.shutdown(id, { timeoutMs: 20_000 });
  await new Promise((resolve) => setTimeout(resolve, 500));
  process.kill(simulator.pid, "SIGKILL");
  await assert.rejects(down, (error) => isFault(error, "HYPERVISOR_UNAVAILABLE"));
  for (const ask of [() => hypervisor.list(), () => hypervisor.inspect(id), () => hypervisor.destroy(id)])
    await assert.rejects(ask(), (error) => isFault(error, "HYPERVISOR_UNAVAILABLE"));
});

test("of more machines than a page holds every one is read", async () => {
  await using simulator = await startSimulator({ machines: 105 });
  const hypervisor = simulator.connect();
  const { machines } = await hypervisor.inventory();
  assert.equal(machines.length, 210);
  assert.equal(new Set(machines.map((one) => one.id)).size, 210);
  const last = machines.at(-1)?.disks[0];
  assert.ok(last !== undefined);
  const stolen = { ...REQUEST, disks: [{ diskId: "stolen", url: last.url }] };
  await assert.rejects(hypervisor.createMachine(stolen), (error) => isFault(error, "IMAGE_IN_USE"));
  const { id } = await hypervisor.createMachine(REQUEST);
  assert.deepEqual(
    (await hypervisor.list()).map((one) => one.id),
    [id],
  );
});

test("who is not who we expect gets no password; who refuses it, is not asked again and again", async () => {
  await using simulator = await startSimulator();
  const other = simulator.thumbprint.replace(/^./, (digit) => (digit === "0" ? "1" : "0"));
  for (const trust of [{ by: "thumbprint", sha256: other }, { by: "system" }] as const)
    await assert.rejects(
      simulator.connect({ trust }).list(),
      (error) => isFault(error, "PEER_REJECTED") && error.hint !== undefined,
    );
  assert.deepEqual(await callsOf(simulator), {});

  const credentials = (): Promise<{ userName: string; password: string }> =>
    Promise.resolve({ userName: "leeward", password: "wrong" });
  const refused = simulator.connect({ credentials });
  const answers = await Promise.allSettled([refused.list(), refused.list(), refused.inventory()]);
  for (const answer of answers)
    assert.ok(answer.status === "rejected" && isFault(answer.reason, "CREDENTIALS_REJECTED"), JSON.stringify(answer));
  assert.equal((await callsOf(simulator))["Login"], 1);

  const nobody = simulator.connect({ url: "https://127.0.0.1:1/sdk" });
  await assert.rejects(nobody.list(), (error) => isFault(error, "HYPERVISOR_UNAVAILABLE"));
  assert.throws(
    () => simulator.connect({ url: simulator.url.replace("https", "http") }),
    (error) => isFault(error, "CONFIG_INVALID"),
  );
});

test("two processes that create the same machine at once make one", async () => {
  await using simulator = await startSimulator();
  const made = await Promise.all(Array.from({ length: 4 }, () => simulator.connect().createMachine(REQUEST)));
  assert.equal(new Set(made.map((one) => one.id)).size, 1);
  assert.equal((await simulator.connect().list()).length, 1);
});

test("two processes that start or stop the same machine at once both find it as they wanted", async () => {
  await using simulator = await startSimulator();
  const drivers = [simulator.connect(), simulator.connect(), simulator.connect()];
  const made = await Promise.all(drivers.map((one) => one.createMachine(REQUEST)));
  const id = made[0]?.id ?? "";
  for (let round = 0; round < 5; round++) {
    const on = await Promise.all(drivers.map((one) => one.start(id)));
    assert.deepEqual(new Set(on.map((one) => one.power)), new Set(["running"]));
    const off = await Promise.all(drivers.map((one) => one.powerOff(id)));
    assert.deepEqual(new Set(off.map((one) => one.power)), new Set(["off"]));
  }
  await Promise.all(drivers.map((one) => one.destroy(id)));
  assert.deepEqual(await simulator.connect().list(), []);
});

test("a machine is found by its operation after a person renamed it", async () => {
  await using simulator = await startSimulator();
  const hypervisor = simulator.connect();
  const { id } = await hypervisor.createMachine(REQUEST);
  await simulator.control("rename", { id, name: "DC0_H0_VM0" }); // As another machine is called.
  const [found] = await hypervisor.list({ operationId: "op-1" });
  assert.deepEqual([found?.id, found?.name], [id, "web"]);
  assert.equal((await hypervisor.createMachine(REQUEST)).id, id);
  await hypervisor.destroy(id);
  assert.deepEqual(await hypervisor.list(), []);
  assert.match(await simulator.control("machines"), /DC0_H0_VM0/);
});

test("vCenter's refusals are told in our words, with what a person can do, and pass with their cause", async () => {
  await using simulator = await startSimulator();
  const hypervisor = simulator.connect();
  await fail(simulator, "CreateVM_Task", "NoDiskSpace", { File: "[LocalDS_0] x", Datastore: "LocalDS_0" });
  await assert.rejects(hypervisor.createMachine(REQUEST), (error) => {
    return isFault(error, "DISK_FULL") && error.details["datastore"] === "LocalDS_0";
  });
  const { id } = await hypervisor.createMachine(REQUEST);
  await fail(simulator, "PowerOnVM_Task", "NoPermission", { PrivilegeId: "VirtualMachine.Interact.PowerOn" });
  await assert.rejects(hypervisor.start(id), (error) => {
    return isFault(error, "REFUSED") && error.hint?.includes("VirtualMachine.Interact.PowerOn") === true;
  });
  await fail(simulator, "PowerOnVM_Task", "InsufficientMemoryResourcesFault", {});
  await assert.rejects(hypervisor.start(id), (error) => isFault(error, "MACHINE_NOT_STARTED"));
  assert.equal((await hypervisor.start(id)).power, "running");
  await fail(simulator, "PowerOffVM_Task", "TaskInProgress", {});
  await assert.rejects(hypervisor.powerOff(id), (error) => isFault(error, "HYPERVISOR_UNAVAILABLE") && error.retryable);
  assert.equal((await hypervisor.powerOff(id)).power, "off");
});

test("a removal that was cut short anywhere is finished by the next, and the disk's bytes are there after all of it", async () => {
  await using simulator = await startSimulator();
  const hypervisor = simulator.connect();
  const disk = await simulator.makeDisk("data", { sizeBytes: 2 ** 20 });
  const { id } = await hypervisor.createMachine({ ...REQUEST, disks: [disk] });
  await hypervisor.start(id);
  for (const step of ["PowerOffVM_Task", "ReconfigVM_Task", "Destroy_Task"]) {
    await fail(simulator, step, "TaskInProgress", {});
    await assert.rejects(hypervisor.destroy(id), (error) => isFault(error, "HYPERVISOR_UNAVAILABLE"));
    assert.equal((await hypervisor.inspect(id)).power, step === "PowerOffVM_Task" ? "running" : "off");
  }
  await hypervisor.destroy(id);
  await hypervisor.destroy(id);
  assert.ok(await isThere(simulator.bytesOf(disk)));
});

test("machines of others are listed, started and stopped, and never changed or destroyed", async () => {
  await using simulator = await startSimulator();
  const hypervisor = simulator.connect();
  await hypervisor.createMachine(REQUEST);
  const inventory = await hypervisor.inventory();
  const theirs = inventory.machines.find((one) => one.name === "DC0_H0_VM0");
  assert.ok(theirs !== undefined && theirs.disks.length > 0 && theirs.power === "running");
  assert.ok(theirs.networks.every((one) => one.name !== "" && one.mac !== ""));
  assert.deepEqual(
    inventory.networks.map((one) => one.name).filter((name) => name === "VM Network" || name === "DC0_DVPG0"),
    ["DC0_DVPG0", "VM Network"],
  );
  assert.ok(inventory.datastores.some((one) => one.name === simulator.datastore && one.freeBytes > 0));

  assert.equal((await hypervisor.powerOff(theirs.id)).power, "off");
  assert.equal((await hypervisor.start(theirs.id)).power, "running");
  const disk = await simulator.makeDisk("data", { sizeBytes: 2 ** 20 });
  for (const change of [
    () => hypervisor.destroy(theirs.id),
    () => hypervisor.attachDisk(theirs.id, disk),
    () => hypervisor.detachDisk(theirs.id, "data"),
  ])
    await assert.rejects(change(), (error) => isFault(error, "REFUSED"));
  assert.equal((await hypervisor.list()).length, 1);

  // A disk of theirs is not taken from them, though their machine may be off.
  await hypervisor.powerOff(theirs.id);
  const [first] = theirs.disks;
  assert.ok(first !== undefined);
  const stolen = { ...REQUEST, operationId: "op-2", disks: [{ diskId: "stolen", url: first.url }] };
  await assert.rejects(hypervisor.createMachine(stolen), (error) => isFault(error, "IMAGE_IN_USE"));
  const [ours] = await hypervisor.list();
  assert.ok(ours !== undefined);
  await assert.rejects(hypervisor.attachDisk(ours.id, { diskId: "stolen", url: first.url }), (error) =>
    isFault(error, "IMAGE_IN_USE"),
  );
});

test("a disk is made with its size when there is none, and its bytes are never made anew", async () => {
  await using simulator = await startSimulator();
  const hypervisor = simulator.connect();
  const { id } = await hypervisor.createMachine(REQUEST);
  const sizeBytes = 5 * 2 ** 20;
  const disk = { diskId: "data", url: `datastore://${simulator.datastore}/made.vmdk`, create: true, sizeBytes };
  await hypervisor.attachDisk(id, disk);
  const file = path.join(simulator.folder, "made-flat.vmdk");
  assert.equal((await stat(file)).size, sizeBytes);
  const found = (await hypervisor.inventory()).machines.find((one) => one.id === id);
  assert.deepEqual(
    found?.disks.map((one) => [one.url, one.sizeBytes]),
    [[disk.url, sizeBytes]],
  );

  await using handle = await open(file, "r+");
  await handle.write(Buffer.from("block 0 of data"), 0, 15, 0);
  await hypervisor.detachDisk(id, "data");
  await hypervisor.attachDisk(id, disk);
  const { buffer } = await handle.read(Buffer.alloc(15), 0, 15, 0);
  assert.equal(buffer.toString(), "block 0 of data");

  const huge = { ...disk, diskId: "huge", url: `datastore://${simulator.datastore}/huge.vmdk`, sizeBytes: 2 ** 60 };
  await assert.rejects(hypervisor.attachDisk(id, huge), (error) => isFault(error, "DISK_FULL"));
  const { sizeBytes: _, ...unknown } = huge;
  await assert.rejects(hypervisor.attachDisk(id, unknown), (error) => isFault(error, "CONFIG_INVALID"));
  const elsewhere = { diskId: "none", url: `datastore://${simulator.datastore}/none.vmdk` };
  await assert.rejects(hypervisor.attachDisk(id, elsewhere), (error) => isFault(error, "IMAGE_MISSING"));
  assert.deepEqual(
    (await hypervisor.inspect(id)).disks?.map((one) => one.diskId),
    ["data"],
  );
});

test("a machine goes into the network of its mode; a mode without a network, or a network that is not there, is refused", async () => {
  await using simulator = await startSimulator();
  const hypervisor = simulator.connect();
  for (const [mode, wanted] of [
    ["user", "VM Network"],
    ["isolated", "DC0_DVPG0"],
  ] as const) {
    const mac = mode === "user" ? "00:50:56:01:02:03" : undefined;
    const network = { mode, forwards: [], ...(mac === undefined ? {} : { mac }) };
    const { id } = await hypervisor.createMachine({ ...REQUEST, operationId: mode, network });
    const found = (await hypervisor.inventory()).machines.find((one) => one.id === id);
    assert.deepEqual(
      found?.networks.map((one) => one.name),
      [wanted],
    );
    if (mac !== undefined) assert.equal(found?.networks[0]?.mac, mac);
  }
  const none = simulator.connect({ networks: {} });
  await assert.rejects(none.createMachine({ ...REQUEST, operationId: "op-3" }), (error) =>
    isFault(error, "CONFIG_INVALID"),
  );
  const wrong = simulator.connect({ networks: { isolated: "DC0/network/nowhere" } });
  await assert.rejects(wrong.createMachine({ ...REQUEST, operationId: "op-3" }), (error) =>
    isFault(error, "NOT_FOUND"),
  );
  assert.deepEqual(await hypervisor.list({ operationId: "op-3" }), []);
});

test("a driver that is closed leaves no session behind", async () => {
  await using simulator = await startSimulator();
  {
    await using hypervisor = simulator.connect();
    await hypervisor.list();
  }
  assert.equal((await callsOf(simulator))["Logout"], 1);
});

test("a simulator whose reader goes ends, and its folder is all there was", async () => {
  const simulator = await startSimulator();
  await writeFile(path.join(simulator.folder, "written"), "x");
  await simulator[Symbol.asyncDispose]();
  assert.throws(() => process.kill(simulator.pid, 0));
  assert.equal(await isThere(simulator.folder), false);
});

async function callsOf(simulator: Simulator): Promise<Readonly<Record<string, number>>> {
  return JSON.parse(await simulator.control("calls")) as Record<string, number>;
}

async function fail(
  simulator: Simulator,
  task: string,
  fault: string,
  fields: Readonly<Record<string, string>>,
): Promise<void> {
  await simulator.control("fail", { task, fault, fields: JSON.stringify(fields) });
}
