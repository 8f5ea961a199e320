#!/usr/bin/env node
// Starts the program under a Node that can run it. This file itself must run on Node 20.
//
// A package holds built JavaScript (dist/); a clone runs the TypeScript of src/ as it is, because Node strips types itself.
// The Node is this process's own when it is new enough, else the one of the npm package `node`.
import { spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const AT_LEAST = [24, 12];
const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const built = join(root, "dist", "main", "leeward.js");
const source = join(root, "src", "main", "leeward.ts");
// In a clone the source wins: a dist/ there is a left-over of a build. A package has no src/.
const program = existsSync(source) ? source : built;

if (isNewEnough(process.versions.node)) {
  process.argv[1] = program;
  await import(pathToFileURL(program).href);
} else {
  const other = findNode();
  if (other === undefined) {
    process.stderr.write(
      `Leeward needs Node ${AT_LEAST.join(".")} or later, and this is ${process.versions.node}. ` +
        "Install one (https://nodejs.org), or run `npm ci` in a clone, which brings its own.\n",
    );
    process.exit(1);
  }
  // The child is in our process group: the terminal's Ctrl-C reaches it directly. Other signals are handed on.
  const child = spawn(other, [program, ...process.argv.slice(2)], { stdio: "inherit" });
  for (const signal of ["SIGTERM", "SIGHUP"]) process.on(signal, () => child.kill(signal));
  process.on("SIGINT", () => {});
  child.on("error", (error) => {
    process.stderr.write(`Could not start "${other}": ${error.message}\n`);
    process.exit(1);
  });
  child.on("exit", (code, signal) => {
    process.exit(code ?? (signal === "SIGINT" ? 130 : 1));
  });
}

function isNewEnough(version) {
  const [major = 0, minor = 0] = version.split(".").map(Number);
  return major > AT_LEAST[0] || (major === AT_LEAST[0] && minor >= AT_LEAST[1]);
}

/** The npm package `node`, beside us (a clone) or hoisted above us (an installed package). */
function findNode() {
  for (let folder = root; ; folder = dirname(folder)) {
    const home = join(folder, "node_modules", "node");
    if (
      existsSync(join(home, "bin", "node")) &&
      isNewEnough(JSON.parse(readFileSync(join(home, "package.json"), "utf8")).version)
    ) {
      return join(home, "bin", "node");
    }
    if (dirname(folder) === folder) return undefined;
  }
}
