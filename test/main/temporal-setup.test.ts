import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { test } from "node:test";
import { silentLog } from "../../src/adapters/log/pino-log.ts";
import { setUpTemporal } from "../../src/main/temporal-setup.ts";
import { cachedWorkflowBundle } from "../../src/main/workflow-bundle.ts";
import { SEARCH_ATTRIBUTES } from "../../src/workflows/messages.ts";
import { startTemporal } from "../support/temporal.ts";

test("the search attributes of the code are those of temporal/search-attributes.json", () => {
  const file = path.join(import.meta.dirname, "../../temporal/search-attributes.json");
  const { searchAttributes } = JSON.parse(readFileSync(file, "utf8")) as {
    readonly searchAttributes: readonly { readonly name: string; readonly type: string }[];
  };
  assert.deepEqual(Object.fromEntries(searchAttributes.map(({ name, type }) => [name, type])), SEARCH_ATTRIBUTES);
});

test("setting up a server creates namespace and attributes, and repeats safely", async (context) => {
  const temporal = await startTemporal();
  context.after(async () => await temporal.stop());
  await Promise.all([
    setUpTemporal(temporal.connection, "leeward"),
    setUpTemporal(temporal.connection, "leeward"),
  ]).catch(async () => {
    // A namespace that was made a moment ago is not seen everywhere at once; the worker tries until it works.
    for (let tries = 0; tries < 100; tries += 1) {
      try {
        await setUpTemporal(temporal.connection, "leeward");
        return;
      } catch (error) {
        if (tries === 99) throw error;
        await new Promise((resolve) => setTimeout(resolve, 200));
      }
    }
  });
  const { customAttributes } = await temporal.connection.operatorService.listSearchAttributes({ namespace: "leeward" });
  for (const name of Object.keys(SEARCH_ATTRIBUTES)) assert.ok(customAttributes[name] !== undefined, name);
  await setUpTemporal(temporal.connection, "leeward");
});

test("the bundle is made once per content, and read back fast", async (context) => {
  const folder = await mkdtemp(path.join(tmpdir(), "leeward-bundle-"));
  context.after(async () => await rm(folder, { recursive: true, force: true }));
  const first = await cachedWorkflowBundle(folder, silentLog);
  const begun = performance.now();
  const second = await cachedWorkflowBundle(folder, silentLog);
  context.diagnostic(`second: ${Math.round(performance.now() - begun)} ms`);
  assert.equal(first.fromCache, false);
  assert.deepEqual(second, { codePath: first.codePath, fromCache: true });
});
