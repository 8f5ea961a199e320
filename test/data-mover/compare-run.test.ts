import assert from "node:assert/strict";
import { test } from "node:test";
import { splitRuns } from "#model/block-runs.ts";
import {
  MARK_BYTES,
  markBlocks,
  PIECE_BLOCKS,
  PIECE_OTHER,
  PIECE_SAME,
  PIECE_UNKNOWN,
  PIECE_ZERO,
} from "#model/comparison.ts";
import { DIGEST_BYTES } from "#model/frame-record.ts";
import { BLOCK_SIZE } from "#model/units.ts";
import { createFrameTools } from "../../src/agent/frame-tools.ts";
import { compareRun } from "../../src/data-mover/compare-run.ts";
import type { DiskImage } from "../../src/data-mover/image.ts";
import { createHistory, WINDOWS, type History, type State } from "./history-fixture.ts";
import { blockData } from "../support/format-samples.ts";

const SEED = process.env["LEEWARD_SEED"] ?? "comparison";
const { digest } = createFrameTools();
const salt = new Uint8Array(16).fill(3);

const END = WINDOWS.at(-1)!.start + WINDOWS.at(-1)!.blocks;

/** A block as a source holds it: the last one of the disk is partial, and zero behind its end. */
function blockOf(state: State, block: number): Uint8Array {
  const version = state.get(block) ?? 0;
  const plain = version === 0 ? new Uint8Array(BLOCK_SIZE) : blockData(block, 1, version);
  if (block === END - 1) plain.fill(0, BLOCK_SIZE - 1536);
  return plain;
}

async function compare(image: DiskImage, run: { readonly start: number; readonly count: number }, source: State) {
  const pieces = [...splitRuns([run], PIECE_BLOCKS)];
  const plains = pieces.map((piece) =>
    Buffer.concat(Array.from({ length: piece.count }, (_, index) => blockOf(source, piece.start + index))),
  );
  const digests = new Uint8Array(pieces.length * DIGEST_BYTES);
  plains.forEach((plain, index) => digest(digests.subarray(index * DIGEST_BYTES), plain));
  const answer = await compareRun(image, { run, digests, salt });
  let marksAt = 0;
  return pieces.map((piece, index) => {
    const state = answer.pieces[index]!;
    const own = markBlocks(plains[index]!, salt, digest);
    const theirs = answer.marks.subarray(marksAt, (marksAt += state === PIECE_OTHER ? own.length : 0));
    const differing = Array.from({ length: piece.count }, (_, block) => block).filter((block) => {
      const [from, to] = [block * MARK_BYTES, (block + 1) * MARK_BYTES];
      if (state === PIECE_OTHER) return Buffer.compare(own.subarray(from, to), theirs.subarray(from, to)) !== 0;
      if (state === PIECE_ZERO) return (source.get(piece.start + block) ?? 0) !== 0;
      return state === PIECE_UNKNOWN;
    });
    return { ...piece, state, differing: differing.map((block) => piece.start + block) };
  });
}

/** A run somewhere in the windows, often not at a piece's border. */
function randomRun({ random }: History) {
  const window = WINDOWS[random.below(WINDOWS.length)]!;
  const start = window.start + random.below(window.blocks);
  return { start, count: 1 + random.below(window.start + window.blocks - start) };
}

test(`exactly the blocks that differ are told apart, over random histories and branches (seed ${SEED})`, async () => {
  let same = 0;
  let other = 0;
  for (let round = 0; round < 15; round++) {
    const history = await createHistory(`${SEED}-${round}`);
    const { random } = history;
    for (let number = 0; number < 3 + random.below(8); number++) await history.commit("root");
    const branch = await history.fork(history.places[random.below(history.places.length)]!);
    await history.commit(branch);
    const { state, ...place } = history.places[random.below(history.places.length)]!;
    const image = await history.open(place);
    const source = new Map(random.below(2) === 0 ? state : history.places[random.below(history.places.length)]!.state);
    for (let turn = 0; turn < 12; turn++) {
      const run = randomRun(history);
      // A block or two that the source has otherwise.
      if (turn % 2 === 0) source.set(run.start + random.below(run.count), 1 + random.below(90_000));
      for (const piece of await compare(image, run, source)) {
        const expected = Array.from({ length: piece.count }, (_, index) => piece.start + index).filter(
          (block) => Buffer.compare(blockOf(source, block), blockOf(state, block)) !== 0,
        );
        assert.deepEqual(piece.differing, expected, `piece at ${piece.start}, state ${piece.state}`);
        assert.ok((piece.state === PIECE_SAME) === (expected.length === 0));
        if (expected.length === 0) same++;
        else other++;
      }
    }
  }
  assert.ok(same > 100 && other > 100, `${same} same, ${other} other`);
});

test("where nothing is damaged no data is read for pieces that the index knows", async () => {
  const history = await createHistory(`${SEED}-index`);
  for (let number = 0; number < 6; number++) await history.commit("root");
  const { state, ...place } = history.places.at(-1)!;
  const image = await history.open(place);
  const before = image.statistics.requests;
  let known = 0;
  for (const { start, blocks } of WINDOWS)
    for (const piece of await compare(image, { start, count: blocks }, state)) {
      assert.equal(piece.state, PIECE_SAME);
      known++;
    }
  const read = image.statistics.requests - before;
  assert.ok(read < known, `${read} requests for frames, ${known} pieces`);
});

test("what is damaged or gone is unknown, so that it is shipped; what is whole beside it is still compared", async () => {
  const history = await createHistory(`${SEED}-damage`);
  for (let number = 0; number < 8; number++) await history.commit("root");
  const { state, ...place } = history.places.at(-1)!;
  const keys = [...history.store.objects.keys()].filter((key) => /\/(segments|journal)\//.test(key));
  let unknown = 0;
  let same = 0;
  for (const key of keys) {
    const image = await history.open(place); // Opened before: it has the map, and meets the damage when it reads.
    const whole = history.store.objects.get(key)!;
    history.store.objects.delete(key);
    for (const { start, blocks } of WINDOWS)
      for (const piece of await compare(image, { start, count: blocks }, state)) {
        assert.ok(piece.state === PIECE_SAME || piece.state === PIECE_UNKNOWN, `state ${piece.state}`);
        if (piece.state === PIECE_SAME) same++;
        else unknown++;
      }
    history.store.objects.set(key, whole);
  }
  assert.ok(unknown > 0 && same > 0, `${unknown} unknown, ${same} same`);
});
