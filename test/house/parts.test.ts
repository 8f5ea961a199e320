import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import path from "node:path";
import { test } from "node:test";
import { ensureGuestTemplates } from "../../src/embedded/guest.ts";
import { cachedToolPath, findTool, lookForTool, readParts } from "../../src/embedded/tools.ts";
import { isFault } from "#model/fault.ts";

const root = new URL("../../", import.meta.url);

test("the list of parts names each package with its programs, and each Go tool is in its go.mod at that version", async () => {
  const parts = await readParts();
  for (const one of parts.debian.packages) {
    assert.ok(one.provides.length > 0 && one.what !== "" && ["run", "npm", "test"].includes(one.for), one.name);
  }
  for (const tool of parts.go.tools) {
    const module = await readFile(new URL(`${tool.module}/go.mod`, root), "utf8");
    const repository = tool.package.split("/").slice(0, 3).join("/");
    assert.ok(module.includes(`${repository} v${tool.version} `), `${tool.name} ${tool.version}`);
    assert.ok(module.includes(tool.package), tool.package);
  }
});

test("set-up puts a tool where the program looks for it", async () => {
  // @ts-expect-error -- plain JavaScript, because it runs before anything is installed
  const places = (await import("../../scripts/setup/places.mjs")) as { cachedToolPath: typeof cachedToolPath };
  for (const tool of (await readParts()).go.tools) assert.equal(places.cachedToolPath(tool), cachedToolPath(tool));
});

test("set-up and the program agree on where the demo's machine is built", async () => {
  // @ts-expect-error -- plain JavaScript, because it runs before anything is installed
  const { guestFolder } = (await import("../../scripts/setup/guest.mjs")) as { guestFolder: () => string };
  assert.equal(guestFolder(), path.dirname((await ensureGuestTemplates()).ledgerd));
});

test("a program that is not there is a fault that says how to get it", async () => {
  assert.equal(await lookForTool("no-such-program-anywhere"), undefined);
  await assert.rejects(
    findTool("no-such-program-anywhere"),
    (error) => isFault(error, "TOOL_MISSING") && error.hint !== undefined,
  );
});

test("package.json asks for the Node that set-up and the launcher look for", async () => {
  const { atLeast } = (await readParts()).node;
  const manifest = JSON.parse(await readFile(new URL("package.json", root), "utf8")) as {
    engines: { node: string };
    allowScripts: object;
  };
  assert.equal(manifest.engines.node, `>=${atLeast}`);
  assert.ok((await readFile(new URL("bin/leeward.js", root), "utf8")).includes(`[${atLeast.replace(".", ", ")}]`));
  const lock = JSON.parse(await readFile(new URL("package-lock.json", root), "utf8")) as {
    packages: Record<string, { hasInstallScript?: boolean }>;
  };
  const withScripts = Object.entries(lock.packages)
    .filter(([, one]) => one.hasInstallScript)
    .map(([place]) => place.replace(/^.*node_modules\//, ""));
  assert.deepEqual(
    Object.keys(manifest.allowScripts).sort(),
    [...new Set(withScripts)].sort(),
    "install scripts are approved one by one",
  );
});
