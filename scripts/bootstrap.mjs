// Sets up this machine, then runs the real command under a Node that can.
//
//   node scripts/bootstrap.mjs [--for check|run|test|bench] [-- FILE [ARGUMENT …]]
//
// Plain JavaScript for Node 20 with nothing installed; everything after it is TypeScript on Node 24.
// Invariants:
// - a part that is there is not touched, wherever it came from; a second run starts the command at once;
// - what may not be installed is said in one sentence with the command that does, before anything long begins;
// - nothing here starts a server, and nothing is downloaded but from package registries (docs/decisions/0002).
import { spawn } from "node:child_process";
import { mkdirSync } from "node:fs";
import path from "node:path";
import { missingDebianPackages, installDebianPackages, whyNotDebian } from "./setup/debian.mjs";
import { buildGoTools, missingGoTools, whyNotGo } from "./setup/go.mjs";
import { buildGuest, guestIsBuilt, whyNotGuest } from "./setup/guest.mjs";
import { withSetupLock } from "./setup/lock.mjs";
import { findNode, installNpmPackages, npmIsCurrent } from "./setup/npm.mjs";
import { logFolder, readParts, root } from "./setup/places.mjs";
import { duration, runParts } from "./setup/progress.mjs";

/** What each kind of command needs beyond npm packages. */
const USES = {
  check: ["npm"],
  run: ["npm", "run"],
  test: ["npm", "run", "test"],
  bench: ["npm", "run", "test", "bench"],
};

const request = readArguments(process.argv.slice(2));
const began = Date.now();
if (missingParts().length > 0) await withSetupLock(setUp);
if (request.file !== undefined) runCommand(request.file, request.arguments);

async function setUp() {
  const parts = missingParts(); // Again: another set-up may have held the lock and done it.
  if (parts.length === 0) return;
  const obstacles = parts.flatMap((part) => part.obstacle ?? []);
  if (obstacles.length > 0) {
    process.stderr.write(`${obstacles.join("\n")}\nNothing was installed.\n`);
    process.exit(1);
  }
  mkdirSync(logFolder, { recursive: true });
  process.stderr.write("Setting up this machine, once:\n");
  if (!(await runParts(parts))) process.exit(1);
  process.stderr.write(`Set up in ${duration(Date.now() - began)}\n`);
}

/** The parts that are missing, each with what must be done before it, or why it cannot be done. */
function missingParts() {
  const uses = USES[request.for];
  const parts = readParts();
  const missing = [];
  const npmMissing = !npmIsCurrent();
  const debian = missingDebianPackages(parts, npmMissing ? uses : uses.filter((use) => use !== "npm"));
  if (debian.length > 0) {
    missing.push({
      id: "debian",
      name: `${debian.length} Debian packages`,
      what: debian.map((one) => one.name).join(", "),
      expectedSeconds: parts.debian.expectedSeconds,
      obstacle: whyNotDebian(debian),
      run: (log) => installDebianPackages(debian, log),
    });
  }
  const go = missingGoTools(parts, uses);
  if (go.length > 0) {
    missing.push({
      id: "go",
      name: `${go.map((tool) => tool.name).join(", ")} from source`,
      what: `${go.map((tool) => `${tool.name} ${tool.version}`).join(", ")}, with Go`,
      expectedSeconds: parts.go.expectedSeconds,
      obstacle: whyNotGo(parts, go),
      run: (log) => buildGoTools(go, log),
    });
  }
  if (npmMissing) {
    missing.push({
      id: "npm",
      after: ["debian"],
      name: "npm packages",
      expectedSeconds: parts.npm.expectedSeconds,
      run: installNpmPackages,
    });
  }
  if (uses.includes("run") && !guestIsBuilt()) {
    missing.push({
      id: "guest",
      after: ["debian", "npm", "go"],
      name: "The demo's machine",
      expectedSeconds: parts.guest.expectedSeconds,
      obstacle: whyNotGuest(),
      run: buildGuest,
    });
  }
  return missing;
}

function runCommand(file, commandArguments) {
  const node = findNode();
  if (node === undefined) {
    process.stderr.write(
      `No Node ${readParts().node.atLeast} or later was found, although the npm package \`node\` should have brought one\n`,
    );
    process.exit(1);
  }
  // In our process group: Ctrl-C in a terminal reaches the command itself; it decides, and we end with its code.
  const child = spawn(node, [path.join(root, file), ...commandArguments], { stdio: "inherit" });
  process.on("SIGINT", () => {});
  for (const signal of ["SIGTERM", "SIGHUP"]) process.on(signal, () => child.kill(signal));
  child.on("exit", (code, signal) => process.exit(code ?? (signal === "SIGINT" ? 130 : 1)));
}

function readArguments(words) {
  const separator = words.indexOf("--");
  const options = separator === -1 ? words : words.slice(0, separator);
  const command = separator === -1 ? [] : words.slice(separator + 1);
  const wanted = options[0] === "--for" ? options[1] : "run";
  if (wanted === undefined || !Object.hasOwn(USES, wanted) || (options.length !== 0 && options.length !== 2)) {
    process.stderr.write("Usage: node scripts/bootstrap.mjs [--for check|run|test|bench] [-- FILE [ARGUMENT …]]\n");
    process.exit(2);
  }
  return { for: wanted, file: command[0], arguments: command.slice(1) };
}
