/** Containers of a disk under a check: what is wrong with one becomes a finding, and which of its frames that costs. */
import type { SegmentReference } from "#model/format/commit-index.ts";
import { parseContainerId } from "#model/format/header.ts";
import { type DiskNames, segmentName } from "#model/format/object-names.ts";
import { type ContainerState, lookAtContainer } from "./check-container.ts";
import type { Findings, ObjectKind } from "./check-findings.ts";
import type { CheckRecords } from "./check-records.ts";
import type { StoreContext } from "./disk-context.ts";
import type { Keyring } from "./keyring.ts";

export interface DiskCheckOptions {
  readonly context: StoreContext;
  readonly diskId: string;
  readonly names: DiskNames;
  readonly storeId: string | undefined;
  readonly keyring: Keyring | undefined;
  readonly findings: Findings;
  readonly records: CheckRecords;
  /** Whether this container is read to its end. */
  readonly sample: (key: string) => boolean;
  readonly onRead: (bytes: number) => void;
}

export interface NamedSegments {
  readonly sizes: ReadonlyMap<string, number>;
  readonly unnamed: Set<string>;
}

export interface BadFrames {
  readonly frames: ReadonlySet<number> | "all" | "none";
  readonly finding: number | undefined;
}

export async function checkSegment(
  options: DiskCheckOptions,
  segment: SegmentReference,
  named: NamedSegments,
  branch: string,
): Promise<BadFrames> {
  const { context, names, diskId, findings } = options;
  const id = parseContainerId(segment.containerId)!; // The decoder let only such ids pass.
  const key = names.segment(id.term, id.counter);
  const size = named.sizes.get(key);
  const where = { kind: "segment" as const, key, diskId, branch };
  if (size === undefined)
    return {
      frames: "all",
      finding: findings.add({ ...where, code: "OBJECT_MISSING", message: "A commit names it, and it is not there" }),
    };
  named.unnamed.delete(key);
  const state = await lookAtContainer(context, lookOf(options, key, size));
  options.onRead(state.readBytes);
  const finding = addFaults(options, "segment", key, state, { diskId, branch });
  if (state.headFault !== undefined) return { frames: "all", finding };
  if (state.headSha256 === undefined || Buffer.compare(state.headSha256, segment.headSha256) !== 0)
    return {
      frames: "all",
      finding: findings.add({ ...where, code: "OBJECT_CORRUPT", message: "It is not the one that its commit names" }),
    };
  return { frames: state.badFrames, finding };
}

export function wrongSegment(
  { findings, diskId }: DiskCheckOptions,
  key: string,
  { header }: ContainerState,
): number | undefined {
  const id = header === undefined ? undefined : parseContainerId(header.containerId);
  if (header?.kind === "segment" && id !== undefined && key.endsWith(segmentName(id.term, id.counter)))
    return undefined;
  const message = `It is the ${header?.kind ?? "object"} with container id ${header?.containerId ?? "unknown"}`;
  return findings.add({ code: "OBJECT_CORRUPT", kind: "segment", key, message, diskId });
}

export function lookOf(options: DiskCheckOptions, key: string, size: number) {
  const { keyring, storeId, diskId } = options;
  return { key, size, whole: options.sample(key), keyring, storeId, diskId };
}

/** What is wrong with a container as a finding; what keeps it closed is found at the key. */
export function addFaults(
  { findings, names, diskId }: DiskCheckOptions,
  kind: ObjectKind,
  key: string,
  state: ContainerState,
  more: { readonly diskId?: string; readonly branch?: string } = { diskId },
): number | undefined {
  const fault = state.headFault ?? state.bodyFault;
  if (fault !== undefined) {
    const at = fault.details["key"];
    if (typeof at === "string" && at.startsWith(names.keys)) {
      const code = fault.code === "KEY_MISSING" ? "OBJECT_MISSING" : fault.code;
      return findings.add({ code, kind: "key", key: at, message: fault.message, diskId });
    }
    return findings.add({ code: fault.code, kind, key, message: fault.message, ...more });
  }
  if (state.badFrames.size > 0) {
    const which = [...state.badFrames].slice(0, 8).join(", ");
    const message = `${state.badFrames.size} of its frames do not hold (${which}${state.badFrames.size > 8 ? ", …" : ""})`;
    return findings.add({ code: "OBJECT_CORRUPT", kind, key, message, ...more });
  }
  const { footerFault } = state;
  if (footerFault !== undefined) {
    findings.add({
      code: footerFault.code,
      kind,
      key,
      message: `${footerFault.message}; what it holds can be read`,
      ...more,
    });
  }
  return undefined;
}
