import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { FAULTS } from "#model/fault.ts";

const file = new URL("../../docs/errors.md", import.meta.url);

test("docs/errors.md has a paragraph for every fault, with its exit code, and for nothing else", () => {
  assert.ok(existsSync(file));
  const sections = readFileSync(file, "utf8").split(/^### /m).slice(1);
  const documented = new Map(sections.map((section) => [section.split(/\s/, 1)[0] ?? "", section]));
  assert.deepEqual([...documented.keys()].sort(), Object.keys(FAULTS).sort());
  for (const [code, { retryable, exit }] of Object.entries(FAULTS)) {
    const section = documented.get(code) ?? "";
    assert.ok(section.includes(`Exit code ${exit}`), `${code}: "Exit code ${exit}"`);
    assert.equal(
      /\bretried\b|\bretry\b/i.test(section.split("\n").slice(0, 3).join(" ")),
      retryable,
      `${code}: says whether it is worth a retry`,
    );
    assert.ok(section.split("\n\n")[1] !== undefined, `${code}: a paragraph`);
  }
});
