/**
 * Who works on the store while it is collected. Each `yield` is one request: it happens at once, at a moment that the schedule chooses, and its
 * reply may be lost. Between two of them anything may happen to the others, and an actor may be gone for good.
 */
import {
  COLLECTOR_START,
  type CollectorEvent,
  type CollectorState,
  stepCollector,
} from "#model/collection/collector.ts";
import {
  checkSuccessor,
  floorOf,
  isOpenable,
  type Ledger,
  type LedgerAnchor,
  type Position,
  samePosition,
} from "#model/collection/ledger.ts";
import { beginBranch, BLOCKS, listing, newest, publish, readAt, readMaps, type Store } from "./collection-world.ts";

/** Steps of the protocol that a test takes away to see what breaks. */
export interface Teeth {
  /** A maker of anchors looks whether its maps are still there before it publishes them. */
  readonly makerLooks: boolean;
  /** A pin counts only once it is in a version. */
  readonly pinPublishes: boolean;
  /** The collector deletes only what a version has condemned. */
  readonly condemnFirst: boolean;
}

export const ALL_TEETH: Teeth = { makerLooks: true, pinPublishes: true, condemnFirst: true };

export interface Context {
  readonly store: Store;
  readonly below: (limit: number) => number;
  readonly teeth: Teeth;
  /** Positions that somebody reads under a pin that it believes to have. */
  readonly reading: Map<string, Position>;
}

/** "lost": it may have happened or not, and its sender cannot know. */
export type Request = { readonly run: () => unknown; readonly mayGetLost?: true };
export type Actor = Generator<Request, void, unknown>;

const ask = <Answer>(run: () => Answer): Request => ({ run });

function* change(
  context: Context,
  make: (ledger: Ledger) => Partial<Ledger> | undefined,
): Generator<Request, boolean, unknown> {
  for (;;) {
    const before = (yield ask(() => newest(context.store))) as Ledger;
    const changes = make(before);
    if (changes === undefined) return false;
    const after: Ledger = { ...before, ...changes, no: before.no + 1 };
    if (checkSuccessor(before, after) !== undefined) return false;
    const answer = yield { run: () => publish(context.store, after), mayGetLost: true };
    if (answer === "published") return true;
    if (answer === "lost" && (yield ask(() => context.store.ledgers[after.no] === after)) === true) return true;
  }
}

function* flatten(
  context: Context,
  ledger: Ledger,
  position: Position,
): Generator<Request, LedgerAnchor | undefined, unknown> {
  const { store } = context;
  const content = (yield ask(() => readAt(store, ledger, position))) as ReturnType<typeof readAt>;
  if (content === undefined) return undefined;
  const older = ledger.anchors.find(({ branch, seq }) => branch === position.branch && seq <= position.seq);
  const maps: string[] = [];
  for (const [half, from] of [0, BLOCKS / 2].entries()) {
    const part = content.slice(from, from + BLOCKS / 2);
    // A shard in which nothing changed is used again.
    const known = older && (yield ask(() => readMaps(store, older)));
    if (older && Array.isArray(known) && part.every((container, index) => container === known[from + index])) {
      maps.push(older.maps[half]!);
      continue;
    }
    const key = `map ${++store.counter}`;
    // Created once, whatever becomes of the replies.
    while (
      (yield { run: () => void store.objects.set(key, { kind: "map", from, content: part }), mayGetLost: true }) ===
      "lost"
    )
      if ((yield ask(() => store.objects.has(key))) === true) break;
    maps.push(key);
  }
  return { ...position, maps };
}

export function* maker(context: Context): Actor {
  const { store, below } = context;
  const branches = [...store.tips.keys()];
  const branch = branches[below(branches.length)]!;
  const tip = store.tips.get(branch)!;
  if (tip === 0) return;
  const position = { branch, seq: 1 + below(tip) };
  const ledger = (yield ask(() => newest(store))) as Ledger;
  const anchor = yield* flatten(context, ledger, position);
  if (anchor === undefined) return;
  // A process that is frozen for longer than a collector needs for a pass.
  if (below(4) === 0) for (let turns = below(150); turns > 0; turns--) yield ask(() => undefined);
  for (;;) {
    const before = (yield ask(() => newest(store))) as Ledger;
    if (before.anchors.some((one) => samePosition(one, anchor))) return;
    // After the version is read, and before its successor is written.
    const there = yield ask(() => !context.teeth.makerLooks || anchor.maps.every((map) => store.objects.has(map)));
    const after = { ...before, no: before.no + 1, anchors: [...before.anchors, anchor] };
    if (there !== true || checkSuccessor(before, after) !== undefined) return;
    const answer = yield { run: () => publish(store, after), mayGetLost: true };
    if (answer !== "taken") return;
  }
}

/** Pins a position, reads it for a while, and lets it go; sometimes a branch begins there meanwhile. */
export function* pinner(context: Context): Actor {
  const { store, below, reading } = context;
  const branches = [...store.tips.keys()];
  const branch = branches[below(branches.length)]!;
  const position = { branch, seq: below(store.tips.get(branch)! + 1) };
  const id = `pin ${++store.counter}`;
  const pinned = context.teeth.pinPublishes
    ? yield* change(context, (before) =>
        isOpenable(before, position) ? { pins: [...before.pins, { id, ...position }] } : undefined,
      )
    : (yield ask(() => isOpenable(newest(store), position))) === true;
  if (!pinned) return;
  reading.set(id, position);
  for (let reads = below(12); reads > 0; reads--) yield ask(() => undefined);
  if (below(3) === 0 && store.tips.size < 5) {
    const child = `b${++store.counter}`;
    yield ask(() => beginBranch(store, child, position));
    yield* change(context, (before) => ({ parents: { ...before.parents, [child]: position } }));
  }
  reading.delete(id);
  yield* change(context, (before) => ({ pins: before.pins.filter((pin) => pin.id !== id) }));
}

export function* collector(context: Context, options: { readonly graceMs: number; readonly keepShare: number }): Actor {
  const { store, below, teeth } = context;
  const tombstoneName = `tombstone ${++store.counter}`;
  const settings = { graceMs: options.graceMs, tombstoneName, batch: 1 + below(20) };
  const windows = new Map<string, number>();
  let state: CollectorState = COLLECTOR_START;
  let event: CollectorEvent = { type: "started", newestTerm: (yield ask(() => store.term)) as number };
  for (let round = 0; round < 400; round++) {
    const { next, effect } = stepCollector(state, event, settings);
    state = next;
    if (effect === undefined) return;
    switch (effect.do) {
      case "claim": {
        const answer = yield {
          run: () => (store.term < effect.term ? ((store.term = effect.term), "mine") : store.term),
          mayGetLost: true,
        };
        // Lost: some number is ours or nobody's; take another.
        event =
          answer === "mine"
            ? { type: "claimed", term: effect.term }
            : { type: "claim-taken", newestTerm: answer === "lost" ? effect.term : Number(answer) };
        break;
      }
      case "read":
        event = yield* look(context, options.keepShare, windows);
        break;
      case "flatten": {
        const anchor = yield* flatten(context, (yield ask(() => newest(store))) as Ledger, effect.position);
        event = anchor === undefined ? { type: "failed" } : { type: "flattened", anchor };
        break;
      }
      case "publish": {
        const answer = yield { run: () => publish(store, effect.ledger), mayGetLost: true };
        const landed =
          answer === "published" ||
          (answer === "lost" && (yield ask(() => store.ledgers[effect.ledger.no] === effect.ledger)) === true);
        event = { type: landed ? "published" : "publish-taken" };
        break;
      }
      case "bury":
        yield {
          run: () => void store.objects.set(effect.condemned.tombstone, { kind: "tombstone" }),
          mayGetLost: true,
        };
        if (!teeth.condemnFirst)
          for (const key of effect.condemned.keys) yield ask(() => void store.objects.delete(key));
        event = { type: "buried" };
        break;
      case "delete":
        for (const key of effect.keys) yield { run: () => void store.objects.delete(key), mayGetLost: true };
        event = { type: "deleted" };
        break;
      case "forget":
        yield { run: () => void store.objects.delete(effect.tombstone), mayGetLost: true };
        event = { type: "forgotten" };
        break;
    }
  }
}

/** Several requests, as in the world: what is listed may be older or newer than the version that is read. */
function* look(
  context: Context,
  keepShare: number,
  windows: Map<string, number>,
): Generator<Request, CollectorEvent, unknown> {
  const { store, below } = context;
  const newestTerm = (yield ask(() => store.term)) as number;
  const ledger = (yield ask(() => newest(store))) as Ledger;
  const listed = (yield ask(() => listing(store))) as ReturnType<typeof listing>;
  const kept: Position[] = [];
  for (const { branch, seq } of [...listed.commits, ...ledger.points])
    if (seq % 10 < keepShare && isOpenable(ledger, { branch, seq })) kept.push({ branch, seq });
  for (const branch of Object.keys(ledger.parents)) {
    const tip = Math.max(0, ...listed.commits.filter((one) => one.branch === branch).map(({ seq }) => seq));
    if (!windows.has(branch)) windows.set(branch, Math.max(floorOf(ledger, branch), tip - below(6)));
  }
  const nowMs = (yield ask(() => store.nowMs)) as number;
  const view = { ledger, listing: listed, newestTerm, nowMs, kept, windowFrom: Object.fromEntries(windows) };
  return { type: "seen", view };
}
