/** What an object of a replica store is, by its name alone. Source: docs/format.md, "Names". */
import type { ObjectKind } from "./check-findings.ts";

const ID = "[A-Za-z0-9][A-Za-z0-9._-]*";
const NUMBER = "[0-9a-f]{16}";

const OF_DISK: readonly (readonly [ObjectKind, RegExp])[] = [
  ["disk-claim", new RegExp(`^epochs/${NUMBER}$`)],
  ["key", new RegExp(`^keys/${ID}$`)],
  ["origin", new RegExp(`^branches/${ID}/origin\\.json$`)],
  ["commit", new RegExp(`^branches/${ID}/journal/${NUMBER}$`)],
  ["segment", /^segments\/[0-9a-f]{8}-[0-9a-f]{12}$/],
  ["manifest", new RegExp(`^manifests/${NUMBER}$`)],
  ["map", new RegExp(`^maps/[0-9a-f]{4}/${ID}$`)],
  ["collection", new RegExp(`^(?:tombstones/${ID}/${ID}|gc/${NUMBER})$`)],
  ["reserved", /^(?:packs|containers)\/./],
];

const OF_GROUP: readonly (readonly [ObjectKind, RegExp])[] = [
  ["group-claim", new RegExp(`^epochs/${NUMBER}$`)],
  ["barrier", new RegExp(`^barriers/${NUMBER}$`)],
  ["point", new RegExp(`^points/[0-9]{13}-${NUMBER}$`)],
];

/** `path` is the key without the root. */
export function kindOfObject(path: string): { readonly kind: ObjectKind; readonly diskId: string } {
  if (path === "store.json") return { kind: "store", diskId: "" };
  const [first, id = "", ...rest] = path.split("/");
  if (first === "disks") return { kind: kindOf(OF_DISK, rest), diskId: id };
  if (first === "groups") return { kind: kindOf(OF_GROUP, rest), diskId: "" };
  if (first === "scratch") return { kind: "scratch", diskId: "" };
  return {
    kind: first === "catalog" || first === "evidence" || first === "control" ? "catalog" : "unknown",
    diskId: "",
  };
}

function kindOf(kinds: typeof OF_DISK, rest: readonly string[]): ObjectKind {
  const path = rest.join("/");
  return kinds.find(([, pattern]) => pattern.test(path))?.[0] ?? "unknown";
}
