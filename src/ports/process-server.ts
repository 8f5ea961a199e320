/** What `control` and the worker ask of a site's process server, over the connection that it dialled. Idempotent; plain JSON. */
import type { DiskReport, SignedOrder } from "./replication.ts";

export interface ProcessServer {
  /** Keep and obey. An order with a lower version than the kept one is ignored (the kept version is returned). */
  putOrder(params: { readonly signed: SignedOrder }): Promise<{ readonly version: number }>;

  /** Disks of a source as the machine's agent sees them: exists, size, in use. IMAGE_MISSING, IMAGE_INVALID, DISK_ALREADY_PROTECTED, AGENT_UNREACHABLE. */
  inspectDisks(params: {
    readonly machine: string;
    readonly sources: readonly string[];
    readonly groupId: string;
  }): Promise<readonly { readonly source: string; readonly sizeBytes: number; readonly sectorBytes: number }[]>;

  groupState(params: { readonly groupId: string }): Promise<SourceState>;

  /**
   * Cut now, and resolve once the barrier is committed at the target. NO_POINT while a sweep is running. With `detached`, only a cut counts at which no
   * client had any of the disks attached: nothing that was ever written is missing from it. TIMED_OUT names the disks that still are.
   */
  cutNow(params: {
    readonly groupId: string;
    readonly operationId: string;
    readonly timeoutMs: number;
    readonly detached?: boolean;
  }): Promise<{ readonly barrier: number; readonly cutAtMs: number }>;

  listAgents(params: Record<string, never>): Promise<
    readonly {
      readonly machine: string;
      readonly connected: boolean;
      readonly bootId: string;
      readonly disks: readonly DiskReport[];
    }[]
  >;
}

export interface SourceState {
  readonly groupId: string;
  readonly orderVersion: number;
  readonly state: "idle" | "connecting" | "seeding" | "live" | "bitmap" | "paused" | "fenced" | "stopped" | "failed";
  readonly fault?: { readonly code: string; readonly message: string; readonly hint?: string };
  readonly disks: readonly DiskReport[];
  readonly spoolBytes: number;
  readonly lastCutAtMs: number;
  /** While seeding: how far the sweep is, its mean rate since it began, and when it will end if that holds. */
  readonly sync?: {
    readonly totalBytes: number;
    readonly remainingBytes: number;
    readonly bytesPerSecond: number;
    readonly etaMs: number;
  };
  /** Of what the running or the last sweep read: what was compared with the replica, and what the replica had already. Undefined: nothing was. */
  readonly compared?: { readonly comparedBytes: number; readonly sameBytes: number };
}
