/**
 * Every change of a disk passes here, one at a time per block.
 *
 * A change waits while (a) the gate is held for a cut, (b) a change of one of its blocks is in flight, or came earlier and still waits,
 * (c) its regions have no durable intent bit. Then it is issued and counts as in flight until it settles.
 *
 * Invariants:
 * - two changes of one block are never in flight together, and are issued in the order in which they came;
 * - after `hold` has settled, nothing is in flight and nothing starts before `release`. So what was acknowledged before the hold settled
 *   is in the cut, and what is not in the cut was not acknowledged: that is the whole argument for a consistent group cut;
 * - when nothing stands in the way, `issue` runs before `pass` returns.
 */
export interface WriteGate {
  /** `issue` must add its blocks to the dirty set before anything else. What it returns or throws is what `pass` does. */
  pass(block: number, count: number, issue: () => void | Promise<void>): void | Promise<void>;
  /** Start nothing more; settles when nothing is in flight. */
  hold(): Promise<void>;
  release(): void;
}

export interface Coverage {
  /** Whether a change of these blocks may be issued now. */
  covers(block: number, count: number): boolean;
  /** Settles when it may be. */
  cover(block: number, count: number): Promise<void>;
}

interface Change {
  readonly block: number;
  readonly end: number;
  readonly issue: () => void | Promise<void>;
  readonly resolve: () => void;
  readonly reject: (reason: unknown) => void;
  covering: boolean;
}

interface Range {
  readonly block: number;
  readonly end: number;
}

export function createWriteGate(coverage: Coverage): WriteGate {
  const inFlight = new Set<Range>();
  const waiting: Change[] = [];
  let held = false;
  let whenIdle: (() => void)[] = [];

  function track(range: Range, settled: Promise<void>): Promise<void> {
    inFlight.add(range);
    return settled.finally(() => {
      inFlight.delete(range);
      if (inFlight.size === 0) {
        const idle = whenIdle;
        whenIdle = [];
        for (const resolve of idle) resolve();
      }
      advance();
    });
  }

  function advance(): void {
    for (let index = 0; index < waiting.length && !held;) {
      const change = waiting[index]!;
      if (!mayStart(change, index)) {
        index++;
        continue;
      }
      waiting.splice(index, 1);
      start(change);
    }
  }

  function mayStart(change: Change, index: number): boolean {
    if (overlapsAny(inFlight, change)) return false;
    for (let before = 0; before < index; before++) if (overlap(waiting[before]!, change)) return false;
    if (coverage.covers(change.block, change.end - change.block)) return true;
    if (!change.covering) {
      change.covering = true;
      coverage.cover(change.block, change.end - change.block).then(
        () => {
          change.covering = false;
          advance();
        },
        (fault: unknown) => {
          waiting.splice(waiting.indexOf(change), 1);
          change.reject(fault);
          advance();
        },
      );
    }
    return false;
  }

  function start(change: Change): void {
    let result: void | Promise<void>;
    try {
      result = change.issue();
    } catch (error) {
      change.reject(error);
      return;
    }
    if (result instanceof Promise) track(change, result).then(change.resolve, change.reject);
    else change.resolve();
  }

  return {
    pass(block, count, issue) {
      const range = { block, end: block + count };
      if (
        !held &&
        waiting.length === 0 &&
        (inFlight.size === 0 || !overlapsAny(inFlight, range)) &&
        coverage.covers(block, count)
      ) {
        const result = issue();
        return result instanceof Promise ? track(range, result) : result;
      }
      return new Promise((resolve, reject) => {
        waiting.push({ ...range, issue, resolve, reject, covering: false });
        advance();
      });
    },
    async hold() {
      held = true;
      if (inFlight.size > 0) await new Promise<void>((resolve) => whenIdle.push(resolve));
    },
    release() {
      held = false;
      advance();
    },
  };
}

function overlap(a: Range, b: Range): boolean {
  return a.block < b.end && b.block < a.end;
}

function overlapsAny(ranges: Iterable<Range>, range: Range): boolean {
  for (const other of ranges) if (overlap(other, range)) return true;
  return false;
}
