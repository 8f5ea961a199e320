import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { test } from "node:test";

const root = path.join(import.meta.dirname, "..");
const source = path.join(root, "src");
const LINES_WATCHED = 400;
const LINES_MAX = 600;

interface Rule {
  /** Folder or file below src/ → whether `import type` only. */
  readonly inside: ReadonlyMap<string, "values" | "types">;
  /** Packages, or undefined for anything. */
  readonly outside: readonly string[] | undefined;
}

interface Import {
  readonly from: string;
  readonly specifier: string;
  readonly typesOnly: boolean;
}

const rules = readRules(readFileSync(path.join(root, "ARCHITECTURE.md"), "utf8"));
const modules = filesBelow(source).filter((file) => file.endsWith(".ts"));

test("every module imports only what the table in ARCHITECTURE.md allows", () => {
  const violations = modules.flatMap(importsOf).filter((one) => !isAllowed(one));
  assert.deepEqual(
    violations.map((one) => `${one.from} imports ${one.typesOnly ? "type " : ""}${one.specifier}`),
    [],
  );
});

test("every folder of src/ has a row in the table", () => {
  const folders = readdirSync(source, { withFileTypes: true }).filter((entry) => entry.isDirectory());
  assert.deepEqual(
    folders.map((entry) => entry.name).filter((name) => !rules.has(name)),
    [],
  );
});

test("the table forbids what it is there to forbid", () => {
  const forbidden: readonly Import[] = [
    { from: "model/units.ts", specifier: "node:crypto", typesOnly: false },
    { from: "model/units.ts", specifier: "#ports/clock.ts", typesOnly: true },
    { from: "workflows/failover.ts", specifier: "node:fs", typesOnly: false },
    { from: "workflows/failover.ts", specifier: "../activities/points.ts", typesOnly: false },
    { from: "agent/agent.ts", specifier: "../data-mover/writer.ts", typesOnly: false },
    { from: "cli/status.ts", specifier: "../main/leeward.ts", typesOnly: false },
  ];
  assert.deepEqual(forbidden.filter(isAllowed), []);
  assert.ok(isAllowed({ from: "workflows/failover.ts", specifier: "../activities/points.ts", typesOnly: true }));
});

test("files are kebab-case and named for one idea", () => {
  const below = ["src", "test", "scripts"].flatMap((folder) => filesBelow(path.join(root, folder)));
  const badlyNamed = below.filter((file) => {
    const name = path.basename(file);
    if (!/\.(ts|mjs|js)$/.test(name)) return false;
    return (
      !/^[a-z0-9]+(-[a-z0-9]+)*(\.[a-z]+)*\.(ts|mjs|js)$/.test(name) ||
      /^(index|utils?|helpers?|common|misc)\./.test(name)
    );
  });
  assert.deepEqual(
    badlyNamed.map((file) => path.relative(root, file)),
    [],
  );
});

test("modules stay small enough to read", (context) => {
  const lengths = modules.map((file) => ({
    file: path.relative(root, file),
    lines: readFileSync(file, "utf8").split("\n").length,
  }));
  for (const one of lengths.filter(({ lines }) => lines > LINES_WATCHED))
    context.diagnostic(`${one.file} has ${one.lines} lines: look for the noun hiding in it`);
  assert.deepEqual(
    lengths.filter(({ lines }) => lines > LINES_MAX),
    [],
  );
});

function isAllowed({ from, specifier, typesOnly }: Import): boolean {
  const folder = from.split("/")[0] ?? "";
  const rule = rules.get(folder);
  if (rule === undefined) return true; // Another test asks for the row.
  const target = specifier.startsWith("#")
    ? specifier.slice(1)
    : specifier.startsWith(".")
      ? path.posix.join(path.posix.dirname(from), specifier)
      : undefined;
  if (target === undefined) return rule.outside === undefined || rule.outside.includes(specifier);
  const targetFolder = target.split("/")[0] ?? "";
  if (targetFolder === folder || (rule.inside.has("everything") && targetFolder !== "..")) return true;
  const allowed = rule.inside.get(target) ?? rule.inside.get(targetFolder);
  return allowed === "values" || (allowed === "types" && typesOnly);
}

/** Rows of the table under "Who may import whom". */
function readRules(text: string): ReadonlyMap<string, Rule> {
  const section = text.slice(text.indexOf("## Who may import whom"), text.indexOf("## Invariants"));
  const rows = section
    .split("\n")
    .filter((line) => line.startsWith("|"))
    .slice(2);
  assert.ok(rows.length >= 17, "the table is there");
  return new Map(
    rows.map((row) => {
      const [folder = "", inside = "", outside = ""] = row
        .split("|")
        .slice(1)
        .map((cell) => cell.trim());
      const names = inside === "nothing" ? [] : inside.split(", ");
      const entries = names.map(
        (name) => [name.replace(" (types)", ""), name.endsWith("(types)") ? "types" : "values"] as const,
      );
      return [
        folder,
        {
          inside: new Map(entries),
          outside: outside === "anything" ? undefined : outside === "nothing" ? [] : outside.split(", "),
        },
      ];
    }),
  );
}

function importsOf(file: string): readonly Import[] {
  const text = readFileSync(file, "utf8");
  const from = path.relative(source, file).split(path.sep).join("/");
  const statements = text.matchAll(/^(?:import|export)\s+(type\s+)?(?:[^"';]*?\sfrom\s+)?"([^"]+)"/gm);
  const dynamic = text.matchAll(/\bimport\(\s*"([^"]+)"/g);
  return [
    ...[...statements].map((match) => ({ from, specifier: match[2] ?? "", typesOnly: match[1] !== undefined })),
    ...[...dynamic].map((match) => ({ from, specifier: match[1] ?? "", typesOnly: false })),
  ];
}

function filesBelow(folder: string): readonly string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => path.join(entry.parentPath, entry.name));
}
