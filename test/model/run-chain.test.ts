/** The chain of runs: any change of any record is found with the records alone; and the page that people read. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";
import type { JsonObject } from "#model/json.ts";
import { reportPage } from "#model/plan/report-page.ts";
import { differences, verifyChain, type ChainLink } from "#model/plan/run-chain.ts";
import { digestOfRecord, timesOf, type RunReport } from "#model/plan/run-report.ts";

const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

function report(at: number, more: Partial<RunReport> = {}): RunReport {
  return {
    plan: "shop",
    planVersion: 3,
    mode: "test",
    direction: "out",
    operationId: `shop.drill.${at}`,
    by: "alice",
    drill: true,
    startedAtMs: 1_800_000_000_000 + at * 86_400_000,
    endedAtMs: 1_800_000_060_000 + at * 86_400_000,
    state: "done",
    objectives: { rtoMs: 60_000, rpoMs: 5_000 },
    predicted: { rtoMs: 40_000, rpoMs: 1_000, runs: at },
    rtoMs: 40_000 + at * 1_000,
    rpoMs: 7_000,
    steps: [
      {
        id: "data/stop",
        what: "script stop",
        state: "done",
        attempts: 1,
        budgetMs: 1_000,
        tookMs: 200,
        evidence: "exit 0: <b>bold</b> & more",
      },
      {
        id: "data/db",
        what: "test failover of db",
        state: "done",
        attempts: 1,
        budgetMs: 60_000,
        expectedMs: 30_000,
        tookMs: 30_000 + at * 20_000,
      },
    ],
    leftOut: [{ step: "data/sure", why: "not in mode test" }],
    decisions: [],
    groups: [],
    left: [],
    ...more,
  };
}

function chain(length: number): ChainLink[] {
  const links: ChainLink[] = [];
  for (let number = 1; number <= length; number += 1) {
    const before = links.at(-1);
    const previous = before === undefined ? "" : digestOfRecord(before.record, sha256);
    const record = JSON.parse(JSON.stringify({ version: 1, previous, report: report(number) })) as JsonObject;
    links.push({ number, record });
  }
  return links;
}

test("a chain holds from its beginning, and from anywhere in it; its digest is the newest record's", () => {
  const links = chain(5);
  const verdict = verifyChain(links, sha256);
  assert.deepEqual([verdict.whole, verdict.findings, verdict.from], [true, [], 1]);
  assert.equal(verdict.digest, digestOfRecord(links[4]!.record, sha256));
  assert.deepEqual(verifyChain(links.slice(2), sha256), { ...verdict, from: 3 });
  assert.deepEqual(verifyChain([], sha256).findings, ["There is no record"]);
});

test("a record that was changed anywhere, left out, put in or swapped is found", () => {
  const links = chain(5);
  const paths: (readonly string[])[] = [];
  const walk = (value: unknown, path: readonly string[]): void => {
    if (typeof value === "object" && value !== null)
      for (const [key, one] of Object.entries(value)) walk(one, [...path, key]);
    else paths.push(path);
  };
  walk(links[2]!.record, []);
  assert.ok(paths.length > 25);
  for (const path of paths) {
    const copy = structuredClone(links) as { number: number; record: Record<string, unknown> }[];
    let at: Record<string, unknown> = copy[2]!.record;
    for (const key of path.slice(0, -1)) at = at[key] as Record<string, unknown>;
    const key = path.at(-1)!;
    at[key] = typeof at[key] === "number" ? Number(at[key]) + 1 : `${String(at[key])}!`;
    assert.equal(verifyChain(copy as unknown as ChainLink[], sha256).whole, false, path.join("."));
  }
  assert.equal(verifyChain(links.toSpliced(2, 1), sha256).whole, false);
  assert.equal(
    verifyChain(
      links.toSpliced(2, 1).map((one, at) => ({ ...one, number: at + 1 })),
      sha256,
    ).whole,
    false,
    "renumbered",
  );
  assert.equal(verifyChain([links[0]!, links[2]!, links[1]!, links[3]!], sha256).whole, false);
});

test("what differs from the last one is what changed by a quarter and a second, what is new or gone, and what ended otherwise", () => {
  const [first, second] = [report(0), report(1)];
  assert.deepEqual(differences(second, first), [{ step: "data/db", what: "20.0 s longer" }]);
  assert.deepEqual(differences(first, second), [{ step: "data/db", what: "20.0 s shorter" }]);
  const [stop, db] = second.steps;
  assert.deepEqual(
    differences(
      {
        ...second,
        steps: [
          { ...stop!, state: "failed" },
          { ...stop!, id: "front/new" },
        ],
      },
      first,
    ),
    [
      { step: "data/stop", what: "done before, failed now" },
      { step: "front/new", what: "new" },
      { step: "data/db", what: "gone" },
    ],
  );
  assert.ok(db);
});

test("times come from steps of that mode that went well at once", () => {
  const retried = report(2, { steps: [{ ...report(2).steps[1]!, attempts: 2 }] });
  const planned = report(3, { mode: "planned" });
  assert.deepEqual(timesOf([report(1), retried, planned, report(0)], "test"), {
    "data/stop": [200, 200],
    "data/db": [50_000, 30_000],
  });
});

test("the page says what was promised and met, escapes what machines said, and needs nothing from elsewhere", () => {
  const page = reportPage({
    number: 2,
    report: report(1),
    before: { number: 1, report: report(0) },
    digest: "ab".repeat(32),
  });
  assert.match(page, /^<!doctype html>/);
  assert.match(
    page,
    /Time to recover \(RTO\)<\/td><td class="n">41 s<\/td><td class="n">40 s<\/td><td class="n">(60 s|1 min[^<]*)<\/td><td><span class="met">met/,
  );
  assert.match(page, /Age of the data \(RPO\).*<span class="missed">missed/);
  assert.match(page, /exit 0: &lt;b&gt;bold&lt;\/b&gt; &amp; more/);
  assert.match(page, /data\/db<\/td><td>20\.0 s longer/);
  assert.match(page, /data\/sure: not in mode test/);
  assert.doesNotMatch(page, /<script|src=|href=|url\(/);
  assert.match(reportPage({ number: 1, report: report(0), digest: "" }), /It is the first/);
});
