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

/** What is wrong with one object, and what that costs. */
export interface CheckFinding {
  /** `notice`: a person should know, and it costs no point. */
  readonly level: "damage" | "notice";
  readonly code: string;
  readonly kind: string;
  readonly key: string;
  readonly message: string;
  readonly disk?: string;
  readonly branch?: string;
  /** Blocks of 4096 bytes that are lost at some point; left out where that is not known or not the case. */
  readonly blocks?: readonly { readonly start: number; readonly length: number }[];
  /** Ids of the points that cannot be read whole. */
  readonly points: readonly string[];
  /** Ids of points that it may cost something; known only with keys. */
  readonly suspectPoints: readonly string[];
}

export interface StoreReport {
  readonly storeId: string | null;
  readonly endpoint: string;
  readonly bucket: string;
  readonly root: string;
  readonly ok: boolean;
  /** Of the containers, read to their end. */
  readonly readDataPercent: number;
  readonly readBytes: number;
  readonly findings: readonly CheckFinding[];
  readonly points: readonly {
    readonly group: string;
    readonly id: string;
    readonly cutAt: string;
    readonly name?: string;
    readonly state: "good" | "suspect" | "damaged" | "unreadable";
    readonly lostBytes: number;
  }[];
  readonly disks: readonly { readonly id: string; readonly keyHeld: boolean; readonly fault?: FaultJson }[];
}

export interface StoreFigures {
  readonly storeId: string | null;
  readonly endpoint: string;
  readonly bucket: string;
  readonly root: string;
  readonly objects: number;
  readonly bytes: number;
  readonly byKind: readonly {
    readonly kind: string;
    readonly disk: string;
    readonly objects: number;
    readonly bytes: number;
  }[];
  readonly disks: readonly {
    readonly id: string;
    readonly objects: number;
    readonly bytes: number;
    /** Null without the disk's key. */
    readonly plainBytes: number | null;
    readonly compressionRatio: number | null;
    readonly unreferencedBytes: number | null;
  }[];
  readonly groups: readonly {
    readonly id: string;
    readonly points: number;
    readonly newest: string | null;
    readonly newestAt: string | null;
    readonly oldestAt: string | null;
  }[];
  /** At the price that was given. */
  readonly monthly: number | null;
}

/** What reads the bucket without any control plane. */
export interface RescueCommands {
  probe(options: StoreChoice): Promise<unknown>;
  /** `readData`: percent of the containers to read to their end. */
  check(
    options: StoreChoice & { readonly readData: number },
    onProgress: (progress: CheckProgress) => void,
  ): Promise<StoreReport>;
  stats(options: StoreChoice & { readonly pricePerGb?: number }): Promise<StoreFigures>;
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

export interface CheckProgress {
  readonly disk: string;
  readonly readBytes: number;
  readonly bytesPerSecond: number;
}
