import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { apiAccessOf } from "../../src/main/api-access.ts";

test("two variables name control's API; one alone, or a token that cannot be read, is refused", async (t) => {
  const folder = await mkdtemp(join(tmpdir(), "leeward-api-"));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const file = join(folder, "api-token");
  await writeFile(file, "secret\n");
  const both = { LEEWARD_API: "http://127.0.0.1:8480", LEEWARD_API_TOKEN_FILE: file };
  assert.deepEqual(apiAccessOf(both), { url: "http://127.0.0.1:8480", token: "secret" });
  assert.equal(apiAccessOf({}), undefined);
  assert.throws(() => apiAccessOf({ LEEWARD_API: both.LEEWARD_API }), { code: "USAGE" });
  assert.throws(() => apiAccessOf({ LEEWARD_API_TOKEN_FILE: file }), { code: "USAGE" });
  assert.throws(() => apiAccessOf({ ...both, LEEWARD_API: "control" }), { code: "USAGE" });
  assert.throws(() => apiAccessOf({ ...both, LEEWARD_API_TOKEN_FILE: join(folder, "no") }), { code: "CONFIG_INVALID" });
});
