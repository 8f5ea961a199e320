/** What changed from one version of a plan to the next, in the words of the document: one line for each place. */
import type { JsonValue } from "../json.ts";

export interface PlanChange {
  /** "boot.database.groups.db.budgetMs" */
  readonly at: string;
  readonly was?: JsonValue;
  readonly is?: JsonValue;
}

/** Both as plain JSON. Lists whose entries have a name (or name a group) are compared entry by entry, others as a whole. */
export function planChanges(before: JsonValue, after: JsonValue, at = ""): readonly PlanChange[] {
  if (JSON.stringify(before) === JSON.stringify(after)) return [];
  const [was, is] = [membersOf(before), membersOf(after)];
  if (was === undefined || is === undefined) return [{ at, was: before, is: after }];
  const names = [...new Set([...was.keys(), ...is.keys()])];
  const changes = names.flatMap((name): readonly PlanChange[] => {
    const here = at === "" ? name : `${at}.${name}`;
    const [old, now] = [was.get(name), is.get(name)];
    if (old === undefined) return now === undefined ? [] : [{ at: here, is: now }];
    return now === undefined ? [{ at: here, was: old }] : planChanges(old, now, here);
  });
  // Nothing in them differs: their order does.
  return changes.length > 0 ? changes : [{ at, was: [...was.keys()], is: [...is.keys()] }];
}

function membersOf(value: JsonValue): ReadonlyMap<string, JsonValue> | undefined {
  if (typeof value !== "object" || value === null) return undefined;
  if (!Array.isArray(value)) {
    return new Map(Object.entries(value).flatMap(([key, one]) => (one === undefined ? [] : [[key, one] as const])));
  }
  const named = (value as readonly JsonValue[]).map((entry) => [nameOf(entry), entry] as const);
  return named.every((pair): pair is readonly [string, JsonValue] => pair[0] !== undefined)
    ? new Map(named)
    : undefined;
}

function nameOf(entry: JsonValue): string | undefined {
  if (typeof entry !== "object" || entry === null || Array.isArray(entry)) return undefined;
  const { name, group } = entry as { readonly name?: JsonValue; readonly group?: JsonValue };
  const found = name ?? group;
  return typeof found === "string" ? found : undefined;
}
