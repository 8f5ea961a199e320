/** Composition root of an export's process: a child of the master target, told everything over IPC, gone when that closes. */
import { setFlagsFromString } from "node:v8";
import type { JsonObject } from "#model/json.ts";
import { systemClock } from "../adapters/clock/system-clock.ts";
import { createLog } from "../adapters/log/pino-log.ts";
import { openChildChannel } from "../master-target/child-channel.ts";
import type { ExportRecord } from "../master-target/export-record.ts";
import { runExport, type RunningExport } from "../master-target/running-export.ts";
import { decodeKeys, keysFrom, openReplica, openStore, readBootId, type ChildSetup } from "./mover-setup.ts";

export interface ExportSetup extends ChildSetup {
  readonly record: ExportRecord;
  readonly folder: string;
  readonly overlayBytesMax: number;
  readonly commitIntervalMs?: number;
}

const FIGURES_EVERY_MS = 500;

// What is read passes through buffers outside the heap, and each of them brings the next full collection nearer: with V8's own growth these
// took 40 % of the processor time of reading, with this a third of that, at the same resident memory (bench/image-read.ts).
setFlagsFromString("--heap-growing-percent=400");

const log = createLog({ fields: { role: "export" } });
let running: RunningExport | undefined;

const figures = (): JsonObject => (running?.figures() ?? {}) as unknown as JsonObject; // Numbers and texts.

const channel = openChildChannel(process, {
  log,
  handlers: {
    async setUp(params) {
      const setup = params as unknown as ExportSetup; // Its other end is our parent, of the same version.
      const keys = keysFrom(new Map(decodeKeys(setup.keys)));
      const store = openReplica(openStore(setup.store), {
        root: setup.store.root,
        keys,
        expectedStoreId: setup.expectedStoreId,
      });
      running = await runExport({
        record: setup.record,
        folder: setup.folder,
        site: setup.site,
        store,
        overlayBytesMax: setup.overlayBytesMax,
        bootId: readBootId(),
        ...(setup.commitIntervalMs === undefined ? {} : { commitIntervalMs: setup.commitIntervalMs }),
        clock: systemClock,
        log: log.child({ operation: setup.record.operationId }),
        onChange: () => undefined, // Figures go out by the clock below.
      });
      const ticker = setInterval(() => channel.notify("figures", figures()), FIGURES_EVERY_MS);
      ticker.unref();
      return figures();
    },
    figures: async () => figures(),
    async takePoint(params) {
      if (running === undefined) throw new RangeError("A child is called before it is set up");
      const request = params as unknown as Parameters<RunningExport["takePoint"]>[0]; // As above.
      return (await running.takePoint(request)) as unknown as JsonObject; // Numbers.
    },
    async close(params) {
      await running?.close({ commit: params["commit"] === true });
      const last = figures();
      channel.notify("figures", last);
      return last;
    },
  },
});

// As after kill -9: what was acknowledged is in the overlay, and the next process goes on from there.
void channel.closed.then(() => process.exit(0));
for (const name of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(name, () => undefined);
