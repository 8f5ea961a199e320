/**
 * For which life of a process server a group's cycles were made. Numbers are unique within one life only: one that was cut off from the store, or
 * started from an old copy of its files, may give a number that another has committed with other contents.
 */
export interface CycleOwners {
  set(groupId: string, cycle: number, life: string): void;
  /** Undefined when it is not known (any more): then the cycle is nobody's. */
  get(groupId: string, cycle: number): string | undefined;
}

/** More cycles than a tap keeps cuts. */
const CYCLES_MAX = 10_000;

export function createCycleOwners(): CycleOwners {
  const lives = new Map<string, string>();
  return {
    set(groupId, cycle, life) {
      const key = `${groupId}/${cycle}`;
      lives.delete(key); // To the end of the row: the oldest goes first.
      lives.set(key, life);
      for (const oldest of lives.keys()) {
        if (lives.size <= CYCLES_MAX) break;
        lives.delete(oldest);
      }
    },
    get: (groupId, cycle) => lives.get(`${groupId}/${cycle}`),
  };
}
