/** A guest that runs at the primary site from disks that are replicated, with its ledger counting; and the end of what is done with it. */
import assert from "node:assert/strict";
import { join } from "node:path";
import type { Machine } from "#ports/hypervisor.ts";
import type { ApiClient, GroupView, OperationState } from "../../src/api/contract.ts";
import { ledgerStatus } from "../../src/demo/ledger.ts";
import { createGuestImages } from "../../src/embedded/guest.ts";
import { until } from "./system.ts";

export const GUEST = { cpus: 1, memoryMiB: 160, firmware: "bios" } as const;
export const FORWARDS = [{ guestPort: 8080, hostPort: 0 }];
/** Records that its ledger has when it is handed over. */
const RECORDS = 20;

export interface ProtectedGuest {
  /** Its two disk images. */
  readonly files: readonly [string, string];
  readonly view: GroupView;
  readonly source: Machine;
  /** Where its ledger answers. */
  readonly port: number;
}

/** Protects the guest's images as group `name`, waits for the first point, and starts the machine on their taps. */
export async function startProtectedGuest(
  { client, folder }: { readonly client: ApiClient; readonly folder: string },
  { name, intervalMs }: { readonly name: string; readonly intervalMs: number },
): Promise<ProtectedGuest> {
  const images = await createGuestImages(join(folder, "images"));
  const files = [images.system, images.data] as const;
  await client.protect({
    name,
    disks: files.map((file) => `tap:${file}`),
    policy: { intervalMs },
    config: GUEST,
    forwards: FORWARDS,
  });
  const view = await until("the first point", 180_000, async () => {
    const group = await client.group(name);
    return group.phase === "protected" && group.disks.every((disk) => disk.tapUrl !== undefined) && group;
  });
  const source = await client.createMachine("primary", {
    operationId: "source",
    name,
    config: GUEST,
    disks: view.disks.map((disk, index) => ({
      diskId: disk.id,
      url: disk.tapUrl ?? "",
      ...(index === 0 ? { bootIndex: 1 } : {}),
    })),
    network: { mode: "isolated", forwards: FORWARDS },
    start: true,
  });
  const port = source.forwards[0]?.hostPort ?? 0;
  await until("the ledger at the source", 120_000, async () => (await ledgerStatus(port)).b > RECORDS);
  return { files, view, source, port };
}

/** The operation when it has ended, and as it should. */
export async function ended(client: ApiClient, operationId: string, timeoutMs = 300_000): Promise<OperationState> {
  const operation = await until(`the end of ${operationId}`, timeoutMs, async () => {
    const state = await client.operation(operationId, { waitMs: 1_000 });
    // Its steps are what a person needs to see if this never ends.
    if (state.state === "running") throw new Error(JSON.stringify(state));
    return state;
  });
  assert.equal(operation.state, "done", JSON.stringify(operation));
  return operation;
}
