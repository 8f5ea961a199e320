/** The demo's path end to end: what `npm run demo` shows must hold in `npm test`. */
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { runLeeward } from "../support/system.ts";

test(
  "the demo loses a site, every check holds, and it ends with the report of a drill",
  { timeout: 480_000 },
  async (t) => {
    const state = mkdtempSync(join(tmpdir(), "lw-demo-"));
    t.after(() => {
      if (process.env["LEEWARD_KEEP"] === undefined) rmSync(state, { recursive: true, force: true });
    });
    const answer = await runLeeward(["--state", state, "demo", "--json"]);
    assert.equal(answer.code, 0, answer.stderr.slice(-6000));
    const report = JSON.parse(answer.stdout) as {
      ok: boolean;
      checks: { name: string; held: boolean }[];
      steps: unknown[];
      drill: { verdict: string; html: string; json: string };
    };
    assert.equal(report.ok, true);
    assert.deepEqual(
      report.checks.filter((check) => !check.held),
      [],
    );
    assert.ok(report.checks.length >= 16);
    assert.equal(report.drill.verdict, "done");
    assert.match(readFileSync(report.drill.html, "utf8"), /Drill of demo: <span class="done">/);
    const verified = await runLeeward(["drill", "verify", report.drill.json]);
    assert.equal(verified.code, 0, verified.stderr);
  },
);
