import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { FAULTS } from "#model/fault.ts";
import { HEALTH_CODES } from "#model/health-codes.ts";

test("docs/errors.md has a paragraph for every fault, with its exit code, and for nothing else", () => {
  const text = readFileSync(new URL("../../docs/errors.md", import.meta.url), "utf8");
  const [faults = ""] = text.split("\n## Health reasons");
  const sections = faults.split(/^### /m).slice(1);
  const documented = new Map(sections.map((section) => [section.split(/\s/, 1)[0] ?? "", section.split("\n\n")]));
  assert.deepEqual([...documented.keys()].sort(), Object.keys(FAULTS).sort());
  for (const [code, { retryable, exit }] of Object.entries(FAULTS)) {
    const [, properties, remedy] = documented.get(code) ?? [];
    assert.equal(properties, `Exit code ${exit}, ${retryable ? "may pass by itself" : "needs a person"}.`, code);
    assert.ok(remedy !== undefined && remedy.length > 40, `${code} is explained`);
  }
});

test("docs/errors.md has a row for every health reason, with its level, and for nothing else", () => {
  const text = readFileSync(new URL("../../docs/errors.md", import.meta.url), "utf8");
  const [, reasons = ""] = text.split("\n## Health reasons");
  const rows = [...reasons.matchAll(/^\| `([A-Z_]+)` +\| +([^|]*?) +\| +([^|]*?) +\|$/gm)];
  assert.deepEqual(rows.map(([, code]) => code).sort(), [...HEALTH_CODES].sort());
  for (const [, code, level = "", says = ""] of rows) {
    assert.match(level, /^(unknown|warning|critical)/, code);
    assert.ok(says.length > 5, code);
  }
});
