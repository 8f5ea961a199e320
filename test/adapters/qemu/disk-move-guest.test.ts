/** The disks of a real guest move between our own taps while it writes, and whatever can die on the way dies. */
import assert from "node:assert/strict";
import { mkdtemp, rm, stat, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { test } from "node:test";
import { isFault } from "#model/fault.ts";
import { systemClock } from "../../../src/adapters/clock/system-clock.ts";
import type { ControlSocket } from "../../../src/adapters/qemu/control-socket.ts";
import { moveDisk } from "../../../src/adapters/qemu/disk-move.ts";
import { readRecord } from "../../../src/adapters/qemu/machine-file.ts";
import { createQemuHypervisor } from "../../../src/adapters/qemu/qemu-hypervisor.ts";
import { verifyLedger } from "../../../src/demo/ledger.ts";
import { createGuestImages } from "../../../src/embedded/guest.ts";
import { portOf, until, untilWriting } from "../../contract/hypervisor.contract.ts";
import { machineControl, qemuPid } from "../../support/guest-device.ts";
import { startTestTap } from "../../support/tap-process.ts";

const DISKS = ["system", "data"] as const;

test("a guest writes on while its disks move between taps and everything but it is killed, and its record is whole in the end", async (context) => {
  await using world = await openWorld();
  const { hypervisor, id, home, away } = world;
  const port = portOf(await hypervisor.start(id));
  const before = await untilWriting(port, 10);

  // Each end dies in mid-copy. To the guest, and to the mirror, that is a pause.
  for (const diskId of DISKS) await world.ask(diskId, "away");
  await away.kill();
  const atDeath = (await world.ask("system", "away")).copiedBytes;
  await sleep(1_000);
  await away.start();
  await until("copying goes on", async () => {
    const { state, copiedBytes } = await world.ask("system", "away");
    return state === "done" || copiedBytes > atDeath;
  });
  await home.kill();
  await sleep(1_000);
  await home.start();
  for (const diskId of DISKS) await world.move(diskId, "away");
  await home.kill(); // Nobody needs it any more.
  const after = await untilWriting(port, (await untilWriting(port, 0)).b + 5);
  assert.ok(after.ok);
  assert.equal(after.bootId, before.bootId, "the guest was not restarted");
  await home.start();

  const began = performance.now();
  await world.ask("data", "home");
  await world.untilReady();
  const copyMs = performance.now() - began;
  const heldMs = await world.timedHandOver("data", "home");
  context.diagnostic(
    `${world.sizes.data >> 20} MiB copied in ${copyMs.toFixed(0)} ms, then the guest was held for ${heldMs.toFixed(1)} ms`,
  );
  assert.ok(heldMs < 10_000, "also on a machine that is busy with other things");

  // QEMU dies when the record names the new disk and the guest is still attached to the old one.
  const last = await untilWriting(port, after.b + 5);
  await world.killInsteadOf("job-finalize", "system", "home");
  await until("off", async () => (await hypervisor.inspect(id)).power === "off");
  assert.deepEqual(
    (await readRecord(world.folder))?.disks.map(({ url }) => url),
    DISKS.map((diskId) => home.url(diskId)),
  );
  await away.kill();
  const again = await untilWriting(portOf(await hypervisor.start(id)), last.b);
  assert.ok(again.ok && again.foundAtBoot[0] >= last.a && again.foundAtBoot[1] >= last.b, JSON.stringify(again));
  assert.equal((await verifyLedger(portOf(await hypervisor.inspect(id)))).whole, true);
});

async function openWorld() {
  const root = await mkdtemp(path.join(tmpdir(), "leeward-moving-"));
  const images = await createGuestImages(root, { recordsPerSecond: 0 });
  const image = (side: "home" | "away", diskId: (typeof DISKS)[number]): string =>
    side === "home" ? images[diskId] : path.join(root, `${diskId}-away.img`);
  const sizes = { system: 0, data: 0 };
  for (const diskId of DISKS) {
    sizes[diskId] = (await stat(images[diskId])).size;
    await writeFile(image("away", diskId), "");
    await truncate(image("away", diskId), sizes[diskId]);
  }
  const tapOf = (side: "home" | "away") =>
    startTestTap(
      path.join(root, side),
      DISKS.map((diskId) => ({ diskId, image: image(side, diskId) })),
    );
  const home = await tapOf("home");
  const away = await tapOf("away");
  const hypervisor = createQemuHypervisor({
    stateFolder: path.join(root, "machines"),
    clock: systemClock,
    program: "qemu-system-x86_64",
  });
  const { id } = await hypervisor.createMachine({
    operationId: "op-1",
    name: "ledger",
    config: { cpus: 1, memoryMiB: 160, firmware: "bios" },
    disks: [
      { diskId: "system", url: home.url("system"), bootIndex: 1 },
      { diskId: "data", url: home.url("data") },
    ],
    network: { mode: "isolated", forwards: [{ hostPort: 0, guestPort: 8080 }] },
  });
  const folder = path.join(root, "machines", id);
  const request = (diskId: (typeof DISKS)[number], to: "home" | "away") => ({
    diskId,
    url: (to === "home" ? home : away).url(diskId),
    sizeBytes: sizes[diskId],
  });
  /** One call, over our own line to QEMU. */
  const direct = async (
    diskId: (typeof DISKS)[number],
    to: "home" | "away",
    wrap: (control: ControlSocket) => ControlSocket,
  ) => {
    using line = await machineControl(folder);
    const machine = { record: (await readRecord(folder))!, folder, control: wrap(line), clock: systemClock };
    return await moveDisk(machine, request(diskId, to));
  };
  const world = {
    hypervisor,
    id,
    folder,
    home,
    away,
    image,
    sizes,
    async ask(diskId: (typeof DISKS)[number], to: "home" | "away") {
      for (;;) {
        try {
          return await hypervisor.moveDisk!(id, request(diskId, to));
        } catch (error) {
          if (!isFault(error) || !error.retryable) throw error; // Otherwise as a workflow does: asked again.
          await sleep(200);
        }
      }
    },
    async move(diskId: (typeof DISKS)[number], to: "home" | "away") {
      await until(`"${diskId}" has moved to ${to}`, async () => (await world.ask(diskId, to)).state === "done");
    },
    async untilReady() {
      using line = await machineControl(folder);
      await until("ready", async () =>
        ((await line.execute("query-block-jobs")) as readonly { readonly ready: boolean }[]).every(
          ({ ready }) => ready,
        ),
      );
    },
    /** With the mirror ready, QEMU is killed instead of being told `command`. */
    async killInsteadOf(command: string, diskId: (typeof DISKS)[number], to: "home" | "away") {
      await world.ask(diskId, to);
      await world.untilReady();
      const killing = (control: ControlSocket): ControlSocket => ({
        async execute(name, options) {
          if (name === command) process.kill(await qemuPid(folder), "SIGKILL");
          return await control.execute(name, options);
        },
        [Symbol.dispose]: () => undefined,
      });
      await assert.rejects(direct(diskId, to, killing), (error) => isFault(error, "HYPERVISOR_UNAVAILABLE"));
    },
    async timedHandOver(diskId: (typeof DISKS)[number], to: "home" | "away") {
      let stoppedAt = 0;
      let heldMs = 0;
      const timing = (control: ControlSocket): ControlSocket => ({
        async execute(name, options) {
          if (name === "stop") stoppedAt = performance.now();
          const answer = await control.execute(name, options);
          if (name === "cont") heldMs = performance.now() - stoppedAt;
          return answer;
        },
        [Symbol.dispose]: () => undefined,
      });
      assert.equal((await direct(diskId, to, timing)).state, "done");
      return heldMs;
    },
    [Symbol.asyncDispose]: async () => {
      await hypervisor.destroy(id);
      await Promise.all([home.kill(), away.kill()]);
      await rm(root, { recursive: true, force: true });
    },
  };
  return world;
}
