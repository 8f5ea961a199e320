/**
 * Builds dist/: the JavaScript that a package holds, since Node strips no types below node_modules.
 *
 * Every .ts of src/ loses its types and nothing else (`erasableSyntaxOnly` makes that enough), and what names a sibling `.ts` in
 * a string names its `.js` instead: imports, workers, forked children. Other files are copied. The tree is otherwise the same, so
 * paths relative to a file hold in both: "../../tools/parts.json" is the package's in either.
 */
import { cp, mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { stripTypeScriptTypes } from "node:module";
import path from "node:path";

const root = path.join(import.meta.dirname, "..");
const source = path.join(root, "src");
const target = path.join(root, "dist");

process.removeAllListeners("warning"); // Type stripping as a function is still announced as experimental.
await rm(target, { recursive: true, force: true });
let built = 0;
for (const entry of await readdir(source, { recursive: true, withFileTypes: true })) {
  if (!entry.isFile() || entry.name === "tsconfig.json" || entry.name.endsWith(".d.ts")) continue;
  const from = path.join(entry.parentPath, entry.name);
  const to = path.join(target, path.relative(source, from));
  await mkdir(path.dirname(to), { recursive: true });
  if (entry.name.endsWith(".ts")) {
    await writeFile(to.replace(/\.ts$/, ".js"), toJavaScript(await readFile(from, "utf8")));
    built++;
  } else {
    await cp(from, to);
  }
}
const manifest = { type: "module", imports: { "#model/*": "./model/*", "#ports/*": "./ports/*" } };
await writeFile(path.join(target, "package.json"), `${JSON.stringify(manifest, undefined, 2)}\n`);
process.stdout.write(`Built ${built} modules into dist/\n`);

function toJavaScript(text: string): string {
  const stripped = stripTypeScriptTypes(text, { mode: "strip" });
  return stripped.replace(/(["'])((?:\.{1,2}|#model|#ports)\/[^"'\s]*)\.ts\1/g, "$1$2.js$1");
}
