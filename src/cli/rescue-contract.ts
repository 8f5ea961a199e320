/** What the commands that read a store by themselves are asked for, and answer with: a part of the surface (docs/surface.md). */
import type { FaultJson } from "#model/fault.ts";

/** Which store; see docs/rescue.md. Everything may come from the file. */
export interface StoreChoice {
  readonly store?: string;
  readonly endpoint?: string;
  readonly region?: string;
  readonly bucket?: string;
  readonly root?: string;
  readonly credentials?: string;
  readonly keys?: string;
  readonly ca?: string;
}

/** Which point of which group. */
export interface PointChoice {
  readonly group: string;
  readonly point: string;
  /** A line of history other than the active one. */
  readonly branch?: string;
  /** Disks of the point; none: all. */
  readonly disk: readonly string[];
}

export interface RescuePoint {
  readonly id: string;
  readonly cutAt: string;
  readonly kind: string;
  readonly name?: string;
  readonly consistency: string;
  readonly reasonKept: string;
  readonly branch: string;
  readonly disks: readonly string[];
}

export interface RescueListing {
  readonly storeId: string;
  readonly endpoint: string;
  readonly bucket: string;
  readonly root: string;
  readonly groups: readonly {
    readonly id: string;
    readonly name: string;
    readonly activeSite: string | null;
    readonly activeBranch: string | null;
    readonly disks: readonly { readonly id: string; readonly machine: string; readonly fault?: FaultJson }[];
    readonly branches: readonly {
      readonly branch: string;
      readonly reason: string | null;
      readonly parent: string | null;
      readonly createdAt: string | null;
    }[];
    /** Newest first. */
    readonly points: readonly RescuePoint[];
  }[];
}

export interface RescueExport {
  readonly point: RescuePoint;
  readonly writable: boolean;
  readonly disks: readonly { readonly id: string; readonly sizeBytes: number; readonly url: string }[];
}

export interface RestoredDiskView {
  readonly id: string;
  readonly path: string;
  readonly sizeBytes: number;
  /** What is not zero. */
  readonly dataBytes: number;
}

export interface TransferProgress {
  readonly disk: string;
  readonly doneBytes: number;
  readonly totalBytes: number;
  readonly bytesPerSecond: number;
  /** Null: not known yet. */
  readonly etaMs: number | null;
}

/** What reads the bucket without any control plane. */
export interface RescueCommands {
  probe(options: StoreChoice): Promise<unknown>;
  list(options: StoreChoice & { readonly group?: string; readonly limit?: number }): Promise<RescueListing>;
  /** Serves until the program is told to stop; `serving` is called once it does. */
  export(
    options: StoreChoice & PointChoice & { readonly writable: boolean; readonly scratch?: string },
    serving: (opened: RescueExport) => void,
  ): Promise<void>;
  restore(
    options: StoreChoice & PointChoice & { readonly to: string; readonly yes: boolean },
    onProgress: (progress: TransferProgress) => void,
  ): Promise<{ readonly point: RescuePoint; readonly disks: readonly RestoredDiskView[] }>;
}
