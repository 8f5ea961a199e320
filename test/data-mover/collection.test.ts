import assert from "node:assert/strict";
import { test } from "node:test";
import type { DiskContext } from "../../src/data-mover/disk-context.ts";
import { addAnchor, diskLedger, readVersion, withLedger } from "../../src/data-mover/disk-ledger.ts";
import { anchorAt } from "../../src/data-mover/anchor-maker.ts";
import { collectionMemory } from "../../src/data-mover/collection-listing.ts";
import { collectDisk } from "../../src/data-mover/collector.ts";
import { makeAnchors } from "../../src/data-mover/anchor-maker.ts";
import type { MapAccess } from "../../src/data-mover/map-access.ts";
import { readNewestManifest } from "../../src/data-mover/manifests.ts";
import { STORE_ID } from "../support/format-samples.ts";
import { copyChanged } from "../simulation/mutations.ts";
import { createHistory, firstDifference, type History } from "./history-fixture.ts";

/** The disk as another process has it. */
function processOf(history: History, store: DiskContext["store"] = history.store): MapAccess {
  const access = { disk: { ...history.disk, store }, keyring: { ...history.access.keyring }, storeId: STORE_ID };
  return { ...access, disk: withLedger(access) };
}

/** Everything up to `seq` goes but what is kept. */
function collect(
  history: History,
  seq: number,
  kept: readonly { branch: string; seq: number }[] = [],
  access = processOf(history),
) {
  return collectDisk(access, {
    kept,
    windowFrom: { root: seq },
    holder: "test",
    memory: collectionMemory(),
    graceMs: 0,
    paceMs: 0,
  });
}

async function historyOf(commits: number, seed = "collection"): Promise<History> {
  const history = await createHistory(seed);
  for (let number = 0; number < commits; number++) await history.commit("root");
  return history;
}

test("Maps that were collected before their anchor was published are not published; without the look for them, they would be", async () => {
  for (const removed of [false, true]) {
    const history = await historyOf(12, "frozen maker");
    const maker = processOf(history);
    await makeAnchors(maker, history.tip("root"), { limits: { commits: 6, extents: 1e6 } });
    const anchor = (await anchorAt(maker, history.places[8]!))!;
    assert.ok(anchor.maps.length > 0);
    // The maker is frozen here, for longer than a collector needs.
    await collect(history, 0);
    const changes = removed
      ? [
          { file: "disk-ledger.ts", find: "if (there.includes(false)) return undefined;", replace: "void there;" },
          {
            file: "disk-ledger.ts",
            find: "    { condemned: true },\n  );",
            replace: "    { condemned: false },\n  );",
          },
        ]
      : [];
    await using copy = await copyChanged(["disk-ledger.ts"], changes);
    const code = (await import(new URL("disk-ledger.ts", copy.folder).href)) as {
      readonly addAnchor: typeof addAnchor;
    };
    assert.equal(await code.addAnchor(processOf(history), anchor), removed);
  }
});

test("A position that expired cannot be pinned, begun at or anchored any more, and one that is pinned stays", async () => {
  const history = await historyOf(20);
  const access = processOf(history);
  await makeAnchors(access, history.tip("root"), { limits: { commits: 5, extents: 1e6 } });
  const ledger = diskLedger(access);
  const [gone, held, pinned] = [history.places[1]!, history.places[2]!, history.places[3]!];
  const late = (await anchorAt(access, gone))!;
  await ledger.pin({ id: "export/a", holder: "mt" }, pinned);
  const made = await collect(history, 18, [held]);
  assert.equal(made.flattened, 2);
  await assert.rejects(ledger.pin({ id: "export/b", holder: "mt" }, gone), { code: "POINT_NOT_FOUND" });
  await assert.rejects(ledger.beginBranch("x-1", gone), { code: "POINT_NOT_FOUND" });
  assert.equal(await addAnchor(access, late), false);
  await ledger.beginBranch("x-2", held);
  for (const place of [held, pinned, history.places[18]!]) {
    const image = await history.open(place);
    assert.equal(await firstDifference(image, place.state), undefined);
  }
});

test("A floor says where commits begin, and nothing of what is on the disk: with its maps gone the disk is refused, not served without what was before", async () => {
  const history = await historyOf(20);
  const access = processOf(history);
  await makeAnchors(access, history.tip("root"), { limits: { commits: 5, extents: 1e6 } });
  await collect(history, 18);
  for (const key of [...history.store.objects.keys()].filter((one) => one.includes("/maps/")))
    history.store.objects.delete(key);
  const { state, ...tip } = history.places.at(-1)!;
  history.store.objects.delete(history.disk.names.commit("root", 2));
  await assert.rejects(async () => firstDifference(await history.open(tip), state), { code: "CHAIN_BROKEN" });
});

test("An image that was opened before a pass reads on after it, by the anchor that took the place of its own; without a pin it is refused", async () => {
  for (const pinned of [true, false]) {
    const history = await historyOf(60);
    const access = processOf(history);
    await makeAnchors(access, history.tip("root"), { limits: { commits: 5, extents: 1e6 } });
    const { state, ...place } = history.places[12]!;
    if (pinned) await diskLedger(access).pin({ id: "export/a", holder: "mt" }, place);
    const image = await history.open(place, { mapBytes: 1 });
    for (let pass = 0; pass < 3; pass++) await collect(history, 58);
    const { anchors } = await readNewestManifest(processOf(history));
    assert.ok(!anchors.some(({ seq }) => seq === 10), "its anchor is gone");
    if (pinned) assert.equal(await firstDifference(image, state), undefined);
    else await assert.rejects(firstDifference(image, state), { code: "CHAIN_BROKEN" });
  }
});

test("Killed at any request, and begun anew, a collector ends with the same objects, and what is kept can be read at every moment", async () => {
  const prepare = async (): Promise<History> => {
    const history = await historyOf(16, "killed");
    await makeAnchors(processOf(history), history.tip("root"), { limits: { commits: 5, extents: 1e6 } });
    return history;
  };
  const kept = { branch: "root", seq: 3 };
  const whole = await prepare();
  for (let pass = 0; pass < 3; pass++) await collect(whole, 14, [kept]);
  const containers = ({ store }: History) =>
    [...store.objects.keys()].filter((key) => /journal|segments/.test(key)).sort();
  for (let killed = 1; ; killed += 7) {
    const history = await prepare();
    let left = killed;
    const dying = new Proxy(history.store, {
      get(target, name) {
        const own: unknown = Reflect.get(target, name);
        if (typeof own !== "function" || name === "entries") return own;
        return (...given: unknown[]): unknown => {
          if (left-- <= 0) throw new Error("Killed");
          return (own as (...given: unknown[]) => unknown).apply(target, given);
        };
      },
    });
    const ended = await collect(history, 14, [kept], processOf(history, dying)).catch((error: Error) => error);
    const place = history.places.find(({ seq }) => seq === kept.seq)!;
    assert.equal(
      await firstDifference(await history.open(place), place.state),
      undefined,
      `killed at request ${killed}`,
    );
    for (let pass = 0; pass < 3; pass++) await collect(history, 14, [kept]);
    assert.deepEqual(containers(history), containers(whole), `killed at request ${killed}`);
    if (ended instanceof Error) continue;
    assert.ok(killed > 50, `${killed} requests`);
    return;
  }
});

test("A pass that is cancelled ends at its next request, and deletes nothing more", async () => {
  const history = await historyOf(16);
  await makeAnchors(processOf(history), history.tip("root"), { limits: { commits: 5, extents: 1e6 } });
  const stop = new AbortController();
  const access = processOf(history);
  const cancelled = collectDisk(
    { ...access, disk: { ...access.disk, signal: stop.signal } },
    {
      kept: [],
      windowFrom: { root: 14 },
      holder: "test",
      memory: collectionMemory(),
      graceMs: 0,
      onStep: (step) => void (step === "delete" && stop.abort()),
    },
  );
  const before = history.store.objects.size;
  await assert.rejects(cancelled, { name: "AbortError" });
  assert.ok(history.store.objects.size >= before, "nothing is gone");
  const { ledger } = await readVersion(processOf(history), { condemned: true });
  assert.ok(ledger.condemned.length > 0);
});
