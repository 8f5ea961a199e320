/** Composition root of `leeward store …`: commands that look at a store without any control plane. */
import { isFault, Fault } from "#model/fault.ts";
import { systemClock } from "../adapters/clock/system-clock.ts";
import type { CheckProgress, RescueCommands, StoreChoice, StoreFigures, StoreReport } from "../cli/rescue-contract.ts";
import type { Finding } from "../data-mover/check-findings.ts";
import type { CheckedPoint } from "../data-mover/check-group.ts";
import { checkStore, type StoreCheck } from "../data-mover/store-check.ts";
import { probeStore } from "../data-mover/store-probe.ts";
import { createTransferRate } from "../data-mover/transfer-rate.ts";
import { openStoreContext, readHeldKeys, readStoreAccess, type StoreAccess } from "./store-access.ts";

export function createStoreCommands(stop: AbortSignal): Pick<RescueCommands, "probe" | "check" | "stats"> {
  return {
    /** Is this S3 safe to keep a replica in? Throws STORE_UNSAFE, STORE_DENIED, STORE_UNAVAILABLE. Writes only below `{root}/scratch/`. */
    async probe(options) {
      const access = readStoreAccess(options);
      const context = openStoreContext(access, stop);
      try {
        await probeStore(context);
      } finally {
        await context.store.close();
      }
      return { endpoint: access.settings.endpoint, bucket: access.settings.bucket, safe: true };
    },
    async check({ readData, ...options }, onProgress) {
      const { access, found } = await look(options, { stop, readData, onProgress: checkMeter(onProgress) });
      return reportOf(access, found, readData);
    },
    async stats({ pricePerGb, ...options }) {
      const { access, found } = await look(options, { stop, readData: 0 });
      return figuresOf(access, found, pricePerGb);
    },
  };
}

async function look(
  options: StoreChoice,
  how: {
    readonly stop: AbortSignal;
    readonly readData: number;
    readonly onProgress?: (progress: { readonly doneBytes: number; readonly diskId: string }) => void;
  },
): Promise<{ readonly access: StoreAccess; readonly found: StoreCheck }> {
  const access = readStoreAccess(options);
  const keys = await readHeldKeys(access);
  const context = openStoreContext(access, how.stop);
  try {
    const { readData, onProgress } = how;
    const found = await checkStore(context, { readData, ...(keys && { keys }), ...(onProgress && { onProgress }) });
    if (found.objectCount > 0) return { access, found };
    throw new Fault("NOT_FOUND", `There is no replica store under "${access.root}"`, {
      hint: "Check endpoint, bucket and root.",
    });
  } catch (error) {
    if (how.stop.aborted && !isFault(error))
      throw new Fault("INTERRUPTED", "Interrupted; nothing was changed", { cause: error });
    throw error;
  } finally {
    await context.store.close();
  }
}

function checkMeter(onProgress: (progress: CheckProgress) => void) {
  const rate = createTransferRate();
  let before = 0;
  return ({ doneBytes, diskId }: { readonly doneBytes: number; readonly diskId: string }): void => {
    const now = systemClock.monotonic();
    rate.add(doneBytes - before, now);
    before = doneBytes;
    onProgress({ disk: diskId, readBytes: doneBytes, bytesPerSecond: rate.perSecond(now) });
  };
}

function placeOf({ settings, root }: StoreAccess, { storeId }: StoreCheck) {
  return { storeId: storeId ?? null, endpoint: settings.endpoint, bucket: settings.bucket, root };
}

function reportOf(access: StoreAccess, found: StoreCheck, readData: number): StoreReport {
  return {
    ...placeOf(access, found),
    ok: found.findings.every(({ level }) => level === "notice"),
    readDataPercent: readData,
    readBytes: found.readBytes,
    findings: found.findings.map(findingView),
    points: found.points.map(({ groupId, id, cutAtMs, name, state, lostBytes }) => ({
      group: groupId,
      id,
      cutAt: new Date(cutAtMs).toISOString(),
      ...(name === undefined ? {} : { name }),
      state,
      lostBytes,
    })),
    disks: found.disks.map(({ diskId, closed }) => ({
      id: diskId,
      keyHeld: closed === undefined,
      ...(closed === undefined ? {} : { fault: closed.toJSON() }),
    })),
  };
}

function findingView({ diskId, ...finding }: Finding): StoreReport["findings"][number] {
  return { ...finding, ...(diskId === undefined ? {} : { disk: diskId }) };
}

function figuresOf(access: StoreAccess, found: StoreCheck, pricePerGb: number | undefined): StoreFigures {
  const groups = [...new Set(found.points.map(({ groupId }) => groupId))];
  return {
    ...placeOf(access, found),
    objects: found.objectCount,
    bytes: found.storedBytes,
    byKind: found.objects.map(({ kind, diskId, count, bytes }) => ({ kind, disk: diskId, objects: count, bytes })),
    disks: found.disks.map(({ diskId, closed, plainBytes, packedBytes, unreferencedBytes }) => {
      const own = found.objects.filter((one) => one.diskId === diskId);
      return {
        id: diskId,
        objects: sum(own.map(({ count }) => count)),
        bytes: sum(own.map(({ bytes }) => bytes)),
        plainBytes: closed === undefined ? plainBytes : null,
        compressionRatio: closed === undefined && packedBytes > 0 ? plainBytes / packedBytes : null,
        unreferencedBytes: unreferencedBytes ?? null,
      };
    }),
    groups: groups.map((id) =>
      groupFigures(
        id,
        found.points.filter(({ groupId }) => groupId === id),
      ),
    ),
    monthly: pricePerGb === undefined ? null : (found.storedBytes / 1e9) * pricePerGb,
  };
}

/** Points newest first. */
function groupFigures(id: string, points: readonly CheckedPoint[]): StoreFigures["groups"][number] {
  const readable = points.filter(({ state }) => state === "good" || state === "suspect");
  const time = (point: CheckedPoint | undefined): string | null =>
    point === undefined ? null : new Date(point.cutAtMs).toISOString();
  return {
    id,
    points: readable.length,
    newest: readable[0]?.id ?? null,
    newestAt: time(readable[0]),
    oldestAt: time(readable.at(-1)),
  };
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((total, number) => total + number, 0);
}
