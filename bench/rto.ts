/** RTO of an unplanned failover (order to ledger answering) against a local boot of the same guest, in turn, in one run. */
import { randomUUID } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { createQemuHypervisor } from "../src/adapters/qemu/qemu-hypervisor.ts";
import { systemClock } from "../src/adapters/clock/system-clock.ts";
import { findTool } from "../src/embedded/tools.ts";
import { ledgerStatus } from "../src/demo/ledger.ts";
import { serveGuestDisks } from "../test/support/guest-disks.ts";
import { FORWARDS, GUEST, startProtectedGuest } from "../test/support/protected-guest.ts";
import { median, startBenchSystem, verdict } from "./system.ts";

const { values } = parseArgs({ options: { runs: { type: "string", default: "3" } } });

const local: number[] = [];
const recovered: number[] = [];
for (let round = 0; round < Number(values.runs); round += 1) {
  local.push(await localBoot());
  recovered.push(await failover());
  console.error(`run ${round + 1}: local ${local.at(-1)?.toFixed(2)} s, failover ${recovered.at(-1)?.toFixed(2)} s`);
}
verdict(
  "RTO / local boot",
  median(recovered) / median(local),
  { atMost: 2 },
  `${median(recovered).toFixed(1)} s, local ${median(local).toFixed(1)} s`,
);

async function localBoot(): Promise<number> {
  await using disks = await serveGuestDisks();
  const folder = mkdtempSync(join(tmpdir(), "lw-boot-"));
  const hypervisor = createQemuHypervisor({
    stateFolder: folder,
    clock: systemClock,
    program: await findTool("qemu-system-x86_64"),
  });
  try {
    const bornAt = performance.now();
    const machine = await hypervisor.createMachine({
      operationId: randomUUID(),
      name: "local",
      config: GUEST,
      disks: disks.disks,
      network: { mode: "isolated", forwards: FORWARDS },
    });
    const started = await hypervisor.start(machine.id);
    await answering(started.forwards[0]?.hostPort ?? 0);
    const seconds = (performance.now() - bornAt) / 1000;
    await hypervisor.destroy(machine.id);
    return seconds;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function failover(): Promise<number> {
  await using system = await startBenchSystem();
  const { client } = system;
  await startProtectedGuest({ client, folder: join(system.state, "..") }, { name: "rto", intervalMs: 1_000 });
  await sleep(5_000);
  await system.leeward("site", "lose", "primary", "--yes");
  const bornAt = performance.now();
  const { operationId } = await client.failover("rto", { mode: "unplanned", sourceLost: true });
  for (;;) {
    const operation = await client.operation(operationId);
    if (operation.state === "failed") throw new Error(`The failover failed: ${JSON.stringify(operation.fault)}`);
    const port = operation.machines?.[0]?.forwards[0]?.hostPort;
    if (port !== undefined) {
      await answering(port);
      return (performance.now() - bornAt) / 1000;
    }
    await sleep(50);
  }
}

async function answering(port: number): Promise<void> {
  for (const deadline = performance.now() + 120_000; performance.now() < deadline; await sleep(50)) {
    const status = await ledgerStatus(port, 500).catch(() => undefined); // Not up yet.
    if (status?.ok === true) return;
  }
  throw new Error(`No ledger at port ${port} within two minutes`);
}
