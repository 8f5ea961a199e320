import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { FAULTS } from "#model/fault.ts";

test("docs/errors.md has a paragraph for every fault, with its exit code, and for nothing else", () => {
  const text = readFileSync(new URL("../../docs/errors.md", import.meta.url), "utf8");
  const sections = text.split(/^### /m).slice(1);
  const documented = new Map(sections.map((section) => [section.split(/\s/, 1)[0] ?? "", section.split("\n\n")]));
  assert.deepEqual([...documented.keys()].sort(), Object.keys(FAULTS).sort());
  for (const [code, { retryable, exit }] of Object.entries(FAULTS)) {
    const [, properties, remedy] = documented.get(code) ?? [];
    assert.equal(properties, `Exit code ${exit}, ${retryable ? "may pass by itself" : "needs a person"}.`, code);
    assert.ok(remedy !== undefined && remedy.length > 40, `${code} is explained`);
  }
});
