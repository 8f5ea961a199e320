/** A plan's document: what is wrong with it is said by line and column, and what is right means what it says. */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { format } from "prettier";
import { Fault, isFault } from "#model/fault.ts";
import { parsePlan } from "../../src/api/plan/parse-plan.ts";
import { planJsonSchema } from "../../src/api/plan/plan-json-schema.ts";

const samples = new URL("../../config/samples/", import.meta.url);
const sample = readFileSync(new URL("recovery-plan.yaml", samples), "utf8");

function refusalOf(source: string, known?: readonly string[]): Fault {
  try {
    parsePlan(source, known);
  } catch (error) {
    if (isFault(error, "PLAN_INVALID")) return error;
    throw error;
  }
  throw new Error("It was taken");
}

test("the sample is a plan: durations are milliseconds, what is left out has its default", () => {
  const plan = parsePlan(sample, ["orders-db", "shop", "search"]);
  assert.deepEqual(plan.objectives, { rtoMs: 900_000, rpoMs: 60_000 });
  assert.deepEqual(
    plan.boot.map((boot) => [boot.name, boot.pre.length, boot.groups.map(({ group }) => group), boot.post.length]),
    [
      ["data", 1, ["orders-db"], 0],
      ["front", 0, ["shop", "search"], 3],
    ],
  );
  const [hold] = plan.boot[0]!.pre;
  assert.deepEqual(hold?.call, { do: "script", script: "hold-orders", timeoutMs: 60_000 });
  assert.deepEqual(hold?.undo, { do: "script", script: "take-orders", timeoutMs: 60_000 });
  assert.deepEqual(
    hold?.modes,
    ["unplanned", "planned", "failback"],
    "a test touches nothing outside unless it is told to",
  );
  const [database] = plan.boot[0]!.groups;
  assert.deepEqual(database, {
    group: "orders-db",
    after: [],
    budgetMs: 600_000,
    onOverrun: "ask",
    retries: 0,
    onFailure: "ask",
    checks: [{ check: "tcp", port: 5432, withinMs: 300_000, onOverrun: "ask", retries: 0, onFailure: "ask" }],
  });
  assert.deepEqual(plan.boot[1]?.post[0]?.call, {
    do: "approval",
    question: "Does the shop look right?",
    remindEveryMs: 600_000,
  });
});

test("the schema that editors complete with is the one that plans are read with", async () => {
  const stored = readFileSync(new URL("../../docs/recovery-plan.schema.json", import.meta.url), "utf8");
  const made = await format(JSON.stringify(planJsonSchema()), { parser: "json", printWidth: 120 });
  assert.equal(stored, made, "run `node scripts/plan-schema.ts`");
});

test("every sample below invalid/ is refused at the place that its first line names", () => {
  const folder = new URL("invalid/", samples);
  const names = readdirSync(folder).filter((name) => name.startsWith("plan-"));
  assert.ok(names.length >= 8);
  for (const name of names) {
    const source = readFileSync(new URL(name, folder), "utf8");
    // "# 12:7 words of the message"
    const [, line, column, words = ""] =
      /^# (\d+):(\d+) (.+)\n/.exec(source) ?? assert.fail(`${name} says what is wrong`);
    const fault = refusalOf(source, ["db", "web"]);
    assert.equal(
      fault.message.slice(0, `Line ${line}, column ${column}: `.length),
      `Line ${line}, column ${column}: `,
      `${name}: ${fault.message}`,
    );
    assert.ok(fault.message.includes(words), `${name}: ${fault.message}`);
    assert.deepEqual([fault.details["line"], fault.details["column"]], [Number(line), Number(column)]);
  }
});

test("all findings are told at once, in the order of the document", () => {
  const fault = refusalOf(sample.replaceAll("hold-orders\n        undo", "hold\n        undo"), ["shop"]);
  assert.equal(fault.details["findings"], 3);
  assert.match(fault.message, /^Line 18, column 17: Script "hold" is not in the plan$/);
  assert.match(
    fault.hint ?? "",
    /hold-orders, take-orders\. Also line 21, .*"orders-db" is not protected; line 33, .*"search"/,
  );
});

test("a document that is no YAML, no map, too large or a bomb is refused, never a bug", () => {
  assert.match(refusalOf("boot: [").message, /^Line 1, column 8: No YAML/);
  assert.match(refusalOf("").message, /^Line 1, column 1: /);
  assert.match(refusalOf("- a\n- b\n").message, /^Line 1, column 1: /);
  assert.match(refusalOf(`plan: ${"x".repeat(300_000)}`).message, /at most 256 KiB/);
  const laughs = ["a: &a [x, x, x, x, x, x, x, x, x]"];
  for (let at = 0; at < 9; at += 1) {
    const [before, here] = ["abcdefghij"[at], "abcdefghij"[at + 1]];
    laughs.push(`${here}: &${here} [${Array(9).fill(`*${before}`).join(", ")}]`);
  }
  assert.match(refusalOf(laughs.join("\n")).message, /^Line 1, column 1: .*alias/i);
});

test("a sample cut short or with a letter changed anywhere is a plan or is refused with a place, never anything else", () => {
  for (let at = 0; at < sample.length; at += 7) {
    for (const source of [
      sample.slice(0, at),
      `${sample.slice(0, at)}?${sample.slice(at + 1)}`,
      `${sample.slice(0, at)}\n${sample.slice(at)}`,
    ]) {
      try {
        parsePlan(source);
      } catch (error) {
        assert.ok(isFault(error, "PLAN_INVALID"), `${at}: ${String(error)}`);
        assert.ok(Number(error.details["line"]) >= 1);
      }
    }
  }
});
