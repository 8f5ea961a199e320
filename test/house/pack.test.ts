import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";

const run = promisify(execFile);
const root = path.join(import.meta.dirname, "..", "..");
/** Without what npm sets for the script that runs us: a stranger's shell. */
const environment = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^npm_/i.test(name)));

test("the package, installed elsewhere, runs, and every module of it loads", { timeout: 300_000 }, async (context) => {
  const folder = await mkdtemp(path.join(tmpdir(), "leeward-pack-"));
  context.after(() => rm(folder, { recursive: true, force: true }));
  await run("npm", ["pack", "--pack-destination", folder], { cwd: root, env: environment });
  const [archive] = (await readdir(folder)).filter((name) => name.endsWith(".tgz"));
  assert.ok(archive !== undefined, "npm pack made an archive");

  // As npm lays it out: ours unpacked below node_modules, where Node strips no types, and its dependencies beside it.
  const modules = path.join(folder, "node_modules");
  const home = path.join(modules, "leeward");
  await mkdir(home, { recursive: true });
  await run("tar", ["-xzf", path.join(folder, archive), "-C", home, "--strip-components=1"]);
  const { dependencies, version } = JSON.parse(await readFile(path.join(home, "package.json"), "utf8")) as {
    readonly dependencies: Readonly<Record<string, string>>;
    readonly version: string;
  };
  for (const name of Object.keys(dependencies)) {
    await mkdir(path.dirname(path.join(modules, name)), { recursive: true });
    await symlink(path.join(root, "node_modules", name), path.join(modules, name));
  }

  assert.equal(existsSync(path.join(home, "src")), false);
  const launcher = path.join(home, "bin", "leeward.js");
  assert.equal((await run(process.execPath, [launcher, "--version"], { cwd: folder })).stdout.trim(), version);
  assert.match((await run(process.execPath, [launcher, "--help"], { cwd: folder })).stdout, /failover/);

  const built = (await readdir(path.join(home, "dist"), { recursive: true })).filter((name) => name.endsWith(".js"));
  assert.ok(built.length > 50);
  for (const name of built) {
    const text = await readFile(path.join(home, "dist", name), "utf8");
    assert.doesNotMatch(text, /["'](?:\.{1,2}|#model|#ports)\/[^"'\s]*\.ts["']/, `${name} names no TypeScript`);
  }
  // Loading checks every import. Programs (main, children, workers) would start; the libraries are what they are made of.
  const libraries = built.filter(
    (name) =>
      /^(model|ports|adapters|nbd|capture|data-mover|control|api|cli|embedded|demo)\//.test(name) &&
      !/(-main|-worker|-thread|-process|-child|main)\.js$/.test(name),
  );
  const script = `for (const name of ${JSON.stringify(libraries)}) await import(${JSON.stringify(`${home}/dist/`)} + name);process.exit(0);`;
  await run(process.execPath, ["--input-type=module", "-e", script], { cwd: folder });
});

test("an older Node is told in one sentence what is missing", async (context) => {
  const folder = await mkdtemp(path.join(tmpdir(), "leeward-old-"));
  context.after(() => rm(folder, { recursive: true, force: true }));
  // The launcher alone, with a version number that is too old: no npm package `node` is anywhere above it.
  await mkdir(path.join(folder, "bin"));
  const text = await readFile(path.join(root, "bin", "leeward.js"), "utf8");
  await writeFile(path.join(folder, "bin", "leeward.mjs"), text.replaceAll("process.versions.node", '"20.20.2"'));
  await assert.rejects(run(process.execPath, [path.join(folder, "bin", "leeward.mjs")]), (error) => {
    const { code, stderr } = error as unknown as { readonly code: number; readonly stderr: string };
    assert.equal(code, 1);
    assert.match(stderr, /^Leeward needs Node 24\.12 or later, and this is 20\.20\.2\. .*\n$/);
    return true;
  });
});
