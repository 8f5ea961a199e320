/**
 * The three interfaces of a site, as methods of a link.
 *
 * A method travels as `<interface>.<method>` with one object of parameters. The hypervisor's methods take positional arguments;
 * they travel as `{args: [...]}`. This table is the one place that knows both shapes: the proxy (proxy.ts) and the server (serve.ts)
 * are made from it, so they cannot disagree.
 *
 * Invariants:
 * - every method of the port is in the table (the compiler checks it);
 * - `bound` is how long a caller waits for the answer. A call that waits by design gets what it waits for, and a margin.
 */
import type { Hypervisor } from "#ports/hypervisor.ts";
import type { MasterTarget } from "#ports/master-target.ts";
import type { ProcessServer } from "#ports/process-server.ts";

export type FieldType = "string" | "number" | "boolean" | "object" | "array";

export interface RelayMethod {
  /** Required parameters and their JSON types; for positional methods by position. Others pass unchecked. */
  readonly fields: Readonly<Record<string, FieldType>> | readonly FieldType[];
  /** How long the caller waits, ms. */
  readonly bound: (params: Readonly<Record<string, unknown>>) => number;
  /** Changes nothing. Everything else only the control plane of the newest term may ask of a master target. */
  readonly reads?: true;
}

const QUICK_MS = 15_000;
const STORE_MS = 120_000;
const MARGIN_MS = 10_000;

const quick = (): number => QUICK_MS;
const store = (): number => STORE_MS;
const number = (value: unknown): number =>
  typeof value === "number" && Number.isFinite(value) && value >= 0 ? value : 0;

export const MASTER_TARGET_METHODS: Readonly<Record<keyof MasterTarget, RelayMethod>> = {
  probeStore: { fields: {}, bound: store, reads: true },
  prepareGroup: {
    fields: {
      groupId: "string",
      operationId: "string",
      groupName: "string",
      sourceSite: "string",
      disks: "array",
      record: "string",
    },
    bound: store,
  },
  turn: {
    fields: { groupId: "string", operationId: "string", activeSite: "string", atLeastEpoch: "number" },
    bound: store,
  },
  observeGroup: {
    fields: { groupId: "string", cursor: "string", waitMs: "number" },
    bound: (params) => number(params["waitMs"]) + MARGIN_MS,
    reads: true,
  },
  listPoints: { fields: { groupId: "string" }, bound: store, reads: true },
  bookmark: { fields: { groupId: "string", operationId: "string", barrier: "number", name: "string" }, bound: store },
  expirePoints: { fields: { budgetMs: "number" }, bound: (params) => number(params["budgetMs"]) + STORE_MS },
  fence: { fields: { groupId: "string", operationId: "string", activeSite: "string" }, bound: store },
  openExport: { fields: { groupId: "string", operationId: "string", point: "string", mode: "string" }, bound: store },
  takePoint: {
    fields: { operationId: "string", requestId: "string", machine: "string", point: "string", waitMs: "number" },
    bound: (params) => STORE_MS + number(params["waitMs"]),
  },
  exportStatus: { fields: { operationId: "string" }, bound: quick, reads: true },
  closeExport: { fields: { operationId: "string", discard: "boolean" }, bound: store },
  listExports: { fields: {}, bound: quick, reads: true },
  recordGroup: { fields: { groupId: "string", revision: "number", record: "object" }, bound: store },
  readCatalog: { fields: {}, bound: store, reads: true },
  keepRecord: { fields: { collection: "string", name: "string", number: "number", record: "object" }, bound: store },
  readRecords: { fields: { collection: "string", newest: "number" }, bound: store, reads: true },
  keepControlKeys: { fields: { keys: "object" }, bound: store },
  releaseGroup: { fields: { groupId: "string", operationId: "string" }, bound: store },
};

export const PROCESS_SERVER_METHODS: Readonly<Record<keyof ProcessServer, RelayMethod>> = {
  putOrder: { fields: { signed: "object" }, bound: quick },
  inspectDisks: { fields: { machine: "string", sources: "array", groupId: "string" }, bound: quick },
  groupState: { fields: { groupId: "string" }, bound: quick },
  cutNow: {
    fields: { groupId: "string", operationId: "string", timeoutMs: "number" }, // And perhaps `detached`.
    bound: (params) => number(params["timeoutMs"]) + MARGIN_MS,
  },
  listAgents: { fields: {}, bound: quick },
};

/** What not every hypervisor has is asked of it where it is, not over a link. */
type RelayedHypervisorMethod = Exclude<
  keyof Hypervisor,
  "kind" | "capabilities" | "attachDisk" | "detachDisk" | "inventory"
>;

/** Parameters are `{args: [...]}`. */
export const HYPERVISOR_METHODS: Readonly<Record<RelayedHypervisorMethod, RelayMethod>> = {
  createMachine: { fields: ["object"], bound: () => 60_000 },
  start: { fields: ["string"], bound: () => 60_000 },
  shutdown: {
    fields: ["string", "object"],
    bound: (params) => {
      const options = (params["args"] as readonly unknown[] | undefined)?.[1] as
        { readonly timeoutMs?: unknown } | undefined;
      return number(options?.timeoutMs) + MARGIN_MS;
    },
  },
  powerOff: { fields: ["string"], bound: () => 30_000 },
  inspect: { fields: ["string"], bound: quick, reads: true },
  list: { fields: [], bound: quick, reads: true },
  moveDisk: { fields: ["string", "object"], bound: () => 60_000 },
  destroy: { fields: ["string"], bound: () => 30_000 },
};
