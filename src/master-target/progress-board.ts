/**
 * The newest progress of each group: what the mover reports, what observers wait for, what Redis shows.
 *
 * A cursor is `{board}.{change}`: the board's own random id, and a count of changes. A cursor of an earlier board (we were restarted) is
 * never current, so such an observer is answered at once.
 */
import type { GroupProgress } from "#ports/replication.ts";

export interface ProgressBoard {
  /** Newer progress of a group. Observers are told unless it only repeats what is known. */
  put(progress: GroupProgress): void;
  /** Change what is known, when anything is. */
  patch(groupId: string, change: Partial<GroupProgress>): void;
  get(groupId: string): GroupProgress | undefined;
  /** The newest progress, as soon as its cursor differs from `cursor`, or after `waitMs`. Undefined when nothing is known by then. */
  observe(
    groupId: string,
    options: { readonly cursor: string; readonly waitMs: number },
  ): Promise<(GroupProgress & { readonly cursor: string }) | undefined>;
  drop(groupId: string): void;
}

interface Entry {
  progress: GroupProgress;
  change: number;
}

export function createProgressBoard(options: {
  readonly boardId: string;
  readonly publish: (progress: GroupProgress) => void;
}): ProgressBoard {
  const entries = new Map<string, Entry>();
  const waiting = new Map<string, Set<() => void>>();
  let changes = 0;

  const put = (progress: GroupProgress): void => {
    const entry = entries.get(progress.groupId);
    const changed = entry === undefined || !same(entry.progress, progress);
    entries.set(progress.groupId, { progress, change: changed ? ++changes : entry.change });
    options.publish(progress);
    if (changed) for (const wake of [...(waiting.get(progress.groupId) ?? [])]) wake();
  };
  const answer = (groupId: string): (GroupProgress & { readonly cursor: string }) | undefined => {
    const entry = entries.get(groupId);
    return entry && { ...entry.progress, cursor: `${options.boardId}.${entry.change}` };
  };

  return {
    put,
    patch(groupId, change) {
      const entry = entries.get(groupId);
      if (entry) put({ ...entry.progress, ...change });
    },
    get: (groupId) => entries.get(groupId)?.progress,
    async observe(groupId, { cursor, waitMs }) {
      const now = answer(groupId);
      if (now && now.cursor !== cursor) return now;
      const wakers = waiting.get(groupId) ?? new Set();
      waiting.set(groupId, wakers);
      let wake = (): void => undefined;
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, waitMs);
        wake = () => (clearTimeout(timer), resolve());
        wakers.add(wake);
      });
      wakers.delete(wake);
      return answer(groupId);
    },
    drop(groupId) {
      entries.delete(groupId);
    },
  };
}

/** Everything but the time of observation. */
function same(a: GroupProgress, b: GroupProgress): boolean {
  return JSON.stringify({ ...a, observedAtMs: 0 }) === JSON.stringify({ ...b, observedAtMs: 0 });
}
