/** The groups that this master target receives, kept in its state folder: a cache of what the store's catalog and claims say. */
import { join } from "node:path";
import { Fault } from "#model/fault.ts";
import { formatStateFile, parseStateFile } from "#model/state-file.ts";
import type { DurableFiles } from "#ports/durable-files.ts";
import type { GroupDisk } from "#ports/master-target.ts";

export interface RegisteredGroup {
  readonly groupId: string;
  readonly groupName: string;
  readonly sourceSite: string;
  /** Whose process server replicated it to here before: one that comes back and offers it is told that it was fenced. */
  readonly formerSite?: string;
  /** Where the group's machines run: the source site, until it is fenced for another. */
  readonly activeSite: string;
  /** The branch that the source writes. */
  readonly branch: string;
  readonly groupEpoch: number;
  readonly disks: readonly GroupDisk[];
  readonly operationId: string;
  readonly record: string;
  /** Not received any more; its points can still be exported. */
  readonly released: boolean;
}

export interface GroupRegister {
  /** What the store said of itself; undefined before the first group. */
  readonly storeId: string | undefined;
  list(): readonly RegisteredGroup[];
  find(groupId: string): RegisteredGroup | undefined;
  /** Throws NOT_FOUND. */
  get(groupId: string): RegisteredGroup;
  /** Durable when it settles. */
  put(group: RegisteredGroup, storeId: string): Promise<void>;
}

interface Stored {
  readonly storeId: string | undefined;
  readonly groups: readonly RegisteredGroup[];
}

export async function openGroupRegister(stateDir: string, files: DurableFiles): Promise<GroupRegister> {
  const path = join(stateDir, "groups.json");
  const hint = "Restore it from a copy, or move it away: groups are prepared again from the store";
  const kept = parseStateFile({ path, text: await files.read(path), hint });
  let stored = (kept ?? { storeId: undefined, groups: [] }) as Stored; // Nobody else writes it.
  let saving: Promise<void> = Promise.resolve();
  return {
    get storeId() {
      return stored.storeId;
    },
    list: () => stored.groups,
    find: (groupId) => stored.groups.find((group) => group.groupId === groupId),
    get(groupId) {
      const group = stored.groups.find((one) => one.groupId === groupId);
      if (group) return group;
      throw new Fault("NOT_FOUND", `Group "${groupId}" is not known to this master target`, {
        details: { groupId },
        hint: "Run `leeward group list` for the groups there are.",
      });
    },
    put(group, storeId) {
      const done = saving.then(async () => {
        const next: Stored = {
          storeId,
          groups: [...stored.groups.filter((one) => one.groupId !== group.groupId), group],
        };
        await files.write(path, formatStateFile(next));
        stored = next;
      });
      saving = done.catch(() => undefined); // Its caller has the error.
      return done;
    },
  };
}
