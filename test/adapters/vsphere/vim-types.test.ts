import assert from "node:assert/strict";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { test } from "node:test";
import { GENERATED, generateVimTypes } from "../../../scripts/vim-types.ts";

test("the types of the wire are those that their list generates", async (context) => {
  const folder = await mkdtemp(path.join(tmpdir(), "leeward-vim-"));
  context.after(() => rm(folder, { recursive: true, force: true }));
  await generateVimTypes(folder);
  for (const name of GENERATED) {
    const kept = new URL(`../../../src/adapters/vsphere/${name}`, import.meta.url);
    assert.equal(
      await readFile(kept, "utf8"),
      await readFile(path.join(folder, name), "utf8"),
      `${name}: run \`node scripts/vim-types.ts\``,
    );
  }
});
