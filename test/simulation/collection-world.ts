/**
 * A disk's store for the simulation of collection: objects, the ledger's versions, and what is known about both by somebody who sees everything.
 * The disk has a few blocks; a commit says for some of them which container holds them now.
 */
import {
  checkSuccessor,
  floorOf,
  isOpenable,
  type Ledger,
  type LedgerAnchor,
  type Listing,
  type Position,
} from "#model/collection/ledger.ts";

export const BLOCKS = 6;

/** By block: the container that holds it; undefined: never written. */
export type Content = readonly (string | undefined)[];

type StoredObject =
  | {
      readonly kind: "commit";
      readonly branch: string;
      readonly seq: number;
      readonly writes: ReadonlyMap<number, string>;
      readonly names: readonly string[];
    }
  | { readonly kind: "segment" | "tombstone" }
  | { readonly kind: "map"; readonly from: number; readonly content: Content };

export interface Store {
  readonly objects: Map<string, StoredObject>;
  readonly ledgers: Ledger[];
  nowMs: number;
  term: number;
  /** What every position ever was; nothing that runs looks here. */
  readonly truth: Map<string, Content>;
  readonly parents: Map<string, Position | undefined>;
  readonly tips: Map<string, number>;
  counter: number;
}

export const nameOf = ({ branch, seq }: Position): string => `${branch}/${seq}`;
export const newest = (store: Store): Ledger => store.ledgers.at(-1)!;

export function createStore(): Store {
  const ledger: Ledger = {
    no: 0,
    floors: {},
    parents: { root: undefined },
    anchors: [],
    points: [],
    pins: [],
    condemned: [],
  };
  return {
    objects: new Map(),
    ledgers: [ledger],
    nowMs: 1e9,
    term: 0,
    truth: new Map([["root/0", Array.from({ length: BLOCKS }, () => undefined)]]),
    parents: new Map([["root", undefined]]),
    tips: new Map([["root", 0]]),
    counter: 0,
  };
}

/** One commit at the tip: its own object holds some blocks, a segment of its own some others. */
export function commit(store: Store, branch: string, blocks: readonly number[]): void {
  const seq = store.tips.get(branch)! + 1;
  const key = `commit ${branch}/${seq}`;
  const segment = `segment ${++store.counter}`;
  const writes = new Map(blocks.map((block, index) => [block, index % 2 === 0 ? key : segment]));
  const inSegment = [...writes.values()].includes(segment);
  if (inSegment) store.objects.set(segment, { kind: "segment" });
  store.objects.set(key, { kind: "commit", branch, seq, writes, names: inSegment ? [key, segment] : [key] });
  const before = store.truth.get(`${branch}/${seq - 1}`)!;
  store.truth.set(
    `${branch}/${seq}`,
    before.map((container, block) => writes.get(block) ?? container),
  );
  store.tips.set(branch, seq);
}

export function beginBranch(store: Store, branch: string, parent: Position): void {
  store.parents.set(branch, parent);
  store.tips.set(branch, 0);
  store.truth.set(`${branch}/0`, store.truth.get(nameOf(parent))!);
}

/** Create the next version, if it is the next. */
export function publish(store: Store, ledger: Ledger): "published" | "taken" {
  if (ledger.no !== newest(store).no + 1) return "taken";
  const wrong = checkSuccessor(newest(store), ledger);
  if (wrong !== undefined) throw new Error(`A version was published that may not follow: ${wrong}`);
  store.ledgers.push(ledger);
  return "published";
}

export function listing(store: Store): Listing {
  const commits: Listing["commits"][number][] = [];
  const maps: Listing["maps"][number][] = [];
  for (const [key, object] of store.objects) {
    if (object.kind === "commit") commits.push({ key, branch: object.branch, seq: object.seq, names: object.names });
    if (object.kind === "map")
      maps.push({ key, names: [...new Set(object.content.filter((container) => container !== undefined))] });
  }
  const segments = [...store.objects].flatMap(([key, { kind }]) => (kind === "segment" ? [key] : []));
  return { commits, maps, segments };
}

/** What a reader finds who goes by `ledger`; undefined when something that it needs is not there. */
export function readAt(store: Store, ledger: Ledger, position: Position): Content | undefined {
  const { branch, seq } = position;
  const anchor = ledger.anchors
    .filter((one) => one.branch === branch && one.seq <= seq)
    .reduce<LedgerAnchor | undefined>(
      (best, one) => (best !== undefined && best.seq > one.seq ? best : one),
      undefined,
    );
  let content: Content | undefined;
  if (anchor !== undefined) content = readMaps(store, anchor);
  else {
    const parent = store.parents.get(branch);
    content = parent === undefined ? Array.from({ length: BLOCKS }, () => undefined) : readAt(store, ledger, parent);
  }
  for (let next = (anchor?.seq ?? 0) + 1; content !== undefined && next <= seq; next++) {
    const object = store.objects.get(`commit ${branch}/${next}`);
    content =
      object?.kind === "commit" ? content.map((container, block) => object.writes.get(block) ?? container) : undefined;
  }
  return content;
}

/** Two maps a disk: blocks of the first half and of the second. */
export function readMaps(store: Store, anchor: LedgerAnchor): Content | undefined {
  const content: (string | undefined)[] = [];
  for (const key of anchor.maps) {
    const map = store.objects.get(key);
    if (map?.kind !== "map") return undefined;
    map.content.forEach((container, index) => (content[map.from + index] = container));
  }
  return content;
}

/** Whatever the newest version promises can be read, and is what it was. Throws with what is not. */
export function assertPromises(store: Store): void {
  const ledger = newest(store);
  const promised: Position[] = [...ledger.points, ...ledger.pins];
  for (const [branch, tip] of store.tips) {
    for (let seq = floorOf(ledger, branch) + 1; seq <= tip; seq++) promised.push({ branch, seq });
    if (tip > 0 && !store.objects.has(`commit ${branch}/${tip}`))
      throw new Error(`The newest commit of ${branch} is gone`);
    if (tip === 0) promised.push({ branch, seq: 0 });
  }
  for (const position of promised) {
    if (!isOpenable(ledger, position)) throw new Error(`${nameOf(position)} is promised and not openable`);
    const content = readAt(store, ledger, position);
    store.truth.get(nameOf(position))!.forEach((container, block) => {
      if (content?.[block] !== container) throw new Error(`Block ${block} of ${nameOf(position)} is not what it was`);
      if (container !== undefined && !store.objects.has(container))
        throw new Error(`${container}, which block ${block} of ${nameOf(position)} needs, was deleted`);
    });
  }
}
