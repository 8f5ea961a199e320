/**
 * A group on a real Temporal server over two fake sites: what the workflow tests share. Tests of one file run one after the other over
 * the same workers; whatever a test leaves running is terminated.
 */
import { randomUUID } from "node:crypto";
import { WithStartWorkflowOperation, WorkflowNotFoundError } from "@temporalio/client";
import { faultOfFailure } from "#model/failure.ts";
import type { Fault } from "#model/fault.ts";
import type { Activities } from "../../src/activities/contract.ts";
import type { Fleet } from "../../src/main/worker-fleet.ts";
import {
  CONTROL_QUEUE,
  groupSummary,
  groupWorkflowId,
  QUERIES,
  UPDATES,
  WORKFLOWS,
  type GroupStart,
  type GroupState,
  type OperationState,
  type OperationStarted,
  type ProtectRequest,
  type UpdateResults,
} from "../../src/workflows/messages.ts";
import { createFakeSites, DISK_BYTES, SOURCE, TARGET, type FakeSites } from "./fake-sites.ts";
import { startTemporal, type TestTemporal } from "./temporal.ts";

export const LIMITS = { windowMs: 1_000, answerMs: 2_000 } as const;

type Limits = NonNullable<GroupStart["limits"]>;

export interface Harness {
  readonly temporal: TestTemporal;
  /** A fresh world for the next test; what the last one left running is ended first. */
  world(options?: { readonly machineNames?: readonly string[] }): Promise<TestGroup>;
  stop(): Promise<void>;
}

export interface TestGroup {
  readonly groupId: string;
  readonly sites: FakeSites;
  request(more?: Partial<ProtectRequest>): ProtectRequest;
  protect(more?: Partial<ProtectRequest>, limits?: Limits): Promise<OperationStarted>;
  /** Protect, and wait until the first point exists. */
  protected(limits?: Limits): Promise<void>;
  update<Name extends keyof UpdateResults>(
    name: Name,
    request: { readonly operationId: string; readonly [field: string]: unknown },
  ): Promise<UpdateResults[Name]>;
  /** The fault that an update ends with. */
  refused(work: Promise<unknown>): Promise<Fault>;
  state(): Promise<GroupState>;
  until(what: string, holds: (state: GroupState) => boolean, timeoutMs?: number): Promise<GroupState>;
  ended(operationId: string, timeoutMs?: number): Promise<OperationState>;
}

export async function openHarness(): Promise<Harness> {
  const temporal = await startTemporal();
  let current: FakeSites | undefined;
  // The activities of whatever world is being tested.
  const activities = new Proxy({} as Activities, {
    ownKeys: () => Object.keys(names),
    getOwnPropertyDescriptor: () => ({ enumerable: true, configurable: true }),
    get: (_target, name: keyof Activities) => async (input: never) =>
      await (current!.activities[name] as (input: never) => Promise<unknown>)(input),
  });
  const fleet: Fleet = await temporal.work(activities, [TARGET, SOURCE]);
  fleet.ended.catch((error: unknown) => {
    console.error("a worker failed", error);
    process.exitCode = 1;
  });
  return {
    temporal,
    world: async (options = {}) => {
      await terminateAll(temporal);
      const groupId = `web-${randomUUID().slice(0, 8)}`;
      current = createFakeSites({
        groupId,
        ...options,
        isOpen: async (workflowId, runId) => await isOpen(temporal, workflowId, runId),
      });
      return openGroup(temporal, groupId, current, options.machineNames ?? ["web"]);
    },
    stop: async () => {
      await terminateAll(temporal);
      fleet.stop();
      await fleet.ended;
      await temporal.stop();
    },
  };
}

const names = createFakeSites({ groupId: "names" }).activities;

export async function terminateAll(temporal: TestTemporal): Promise<void> {
  for await (const one of temporal.client.workflow.list({ query: "ExecutionStatus = 'Running'" })) {
    try {
      await temporal.client.workflow.getHandle(one.workflowId).terminate("the test has ended");
    } catch (error) {
      if (!(error instanceof WorkflowNotFoundError)) throw error;
    }
  }
}

export async function isOpen(temporal: TestTemporal, workflowId: string, runId: string): Promise<boolean> {
  const { status } = await temporal.client.workflow.getHandle(workflowId, runId).describe();
  return status.name === "RUNNING";
}

export function openGroup(
  temporal: TestTemporal,
  groupId: string,
  sites: FakeSites,
  machineNames: readonly string[],
): TestGroup {
  const { client } = temporal;
  const handle = () => client.workflow.getHandle(groupWorkflowId(groupId));
  const group: TestGroup = {
    groupId,
    sites,
    request: (more = {}) => ({
      operationId: `protect-${groupId}`,
      by: "tester",
      groupId,
      name: groupId,
      policy: { intervalMs: 1_000, rpoThresholdMs: 15_000, compressAt: "agent" },
      sourceSite: SOURCE,
      targetSite: TARGET,
      machines: machineNames.map((name) => ({
        name,
        config: { cpus: 1, memoryMiB: 128, firmware: "bios" },
        disks: [
          { diskId: `${name}-0`, source: `tap:/${name}.img`, sizeBytes: DISK_BYTES, sectorBytes: 512, bootIndex: 0 },
        ],
        forwards: [{ guestPort: 80, hostPort: 0 }],
      })),
      ...more,
    }),
    protect: async (more = {}, limits = LIMITS) => {
      const request = group.request(more);
      return await client.workflow.executeUpdateWithStart<
        (start: GroupStart) => Promise<GroupState>,
        OperationStarted,
        [ProtectRequest]
      >(UPDATES.protect, {
        args: [request],
        updateId: request.operationId,
        startWorkflowOperation: new WithStartWorkflowOperation(WORKFLOWS.protectionGroup, {
          workflowId: groupWorkflowId(groupId),
          taskQueue: CONTROL_QUEUE,
          args: [{ groupId, limits }],
          workflowIdConflictPolicy: "USE_EXISTING",
          staticSummary: groupSummary(request),
        }),
      });
    },
    protected: async (limits) => {
      await group.protect({}, limits);
      await group.until("protected", (state) => state.phase === "protected");
    },
    update: async (name, request) =>
      await handle().executeUpdate(UPDATES[name], {
        args: [{ by: "tester", ...request }],
        updateId: request.operationId,
      }),
    refused: async (work) => {
      try {
        await work;
      } catch (error) {
        const fault = faultOfFailure(error);
        if (fault === undefined) throw error;
        return fault;
      }
      throw new Error("It was not refused");
    },
    state: async () => await handle().query<GroupState>(QUERIES.state),
    until: async (what, holds, timeoutMs = 20_000) => {
      const end = Date.now() + timeoutMs;
      for (;;) {
        const state = await group.state();
        if (holds(state)) return state;
        if (Date.now() > end)
          throw new Error(`Not "${what}" within ${timeoutMs} ms: ${JSON.stringify(state, null, 1)}`);
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    },
    ended: async (operationId, timeoutMs) => {
      const state = await group.until(
        `${operationId} ended`,
        (one) =>
          one.operations.some((operation) => operation.operationId === operationId && operation.state !== "running"),
        timeoutMs,
      );
      return state.operations.find((operation) => operation.operationId === operationId)!;
    },
  };
  return group;
}
