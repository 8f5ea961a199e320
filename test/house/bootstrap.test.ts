import assert from "node:assert/strict";
import { spawn, type SpawnOptions } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { test, type TestContext } from "node:test";

const root = path.join(import.meta.dirname, "..", "..");
const bootstrap = path.join(root, "scripts", "bootstrap.mjs");

test("on a machine that is set up the command starts within a second, and its exit code is handed on", async (context) => {
  const file = await program(context, "process.stdout.write(process.argv.slice(2).join(' ')); process.exit(7);");
  const began = performance.now();
  const result = await run(["--for", "test", "--", path.relative(root, file), "--point", "latest"]);
  assert.deepEqual([result.code, result.output], [7, "--point latest"]);
  assert.ok(performance.now() - began < 2_000, "two seconds, on a machine that also runs other tests");
});

test("a termination is handed on to the command, which may end in its own way", async (context) => {
  const file = await program(
    context,
    "process.on('SIGTERM', () => process.exit(9)); process.stdout.write('ready'); setInterval(() => undefined, 1000);",
  );
  const result = await run(["--for", "check", "--", path.relative(root, file)], {}, (child, output) => {
    if (output === "ready") child.kill("SIGTERM");
  });
  assert.equal(result.code, 9);
});

test("where nothing may be installed, one sentence says what is missing and what brings it, and nothing is begun", async (context) => {
  const empty = await mkdtemp(path.join(tmpdir(), "leeward-bare-"));
  context.after(() => rm(empty, { recursive: true, force: true }));
  // No apt-get on PATH: not Debian's kin. Nothing in the cache either.
  const bare = { ...process.env, PATH: empty, LEEWARD_CACHE: empty };
  const result = await run(["--for", "run", "--", "scripts/test.ts"], { env: bare });
  assert.equal(result.code, 1);
  assert.match(
    result.output,
    /^Missing: .*redis-server \(Redis\).*install them with this system's package manager\.$/m,
  );
  assert.match(result.output, /^Nothing was installed\.$/m);
  assert.doesNotMatch(result.output, /Setting up/);
});

test("a wrong call is refused with the right one", async () => {
  const result = await run(["--for", "fun"]);
  assert.equal(result.code, 2);
  assert.match(result.output, /^Usage: node scripts\/bootstrap\.mjs/);
});

async function program(context: TestContext, text: string): Promise<string> {
  const folder = await mkdtemp(path.join(tmpdir(), "leeward-bootstrap-"));
  context.after(() => rm(folder, { recursive: true, force: true }));
  const file = path.join(folder, "program.mjs");
  await writeFile(file, text);
  return file;
}

function run(
  words: readonly string[],
  options: SpawnOptions = {},
  watch: (child: ReturnType<typeof spawn>, output: string) => void = () => undefined,
): Promise<{ readonly code: number | null; readonly output: string }> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [bootstrap, ...words], {
      cwd: root,
      ...options,
      stdio: ["ignore", "pipe", "pipe"],
    });
    let output = "";
    for (const stream of [child.stdout, child.stderr]) {
      stream?.setEncoding("utf8").on("data", (part: string) => {
        output += part;
        watch(child, output);
      });
    }
    child.on("error", reject);
    child.on("close", (code) => resolve({ code, output }));
  });
}
