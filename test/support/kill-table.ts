/** docs/kill-matrix.md as data: what a kill of a role at a step of a move may lead to. The document is the only place where that stands. */
import { readFileSync } from "node:fs";
import type { MOVE_STEPS } from "#model/move-steps.ts";

export type Move = keyof typeof MOVE_STEPS;

export const ROLES = [
  "worker",
  "master target",
  "process server",
  "S3",
  "Redis",
  "Temporal",
  "control",
  "frozen mover",
] as const;
export type Role = (typeof ROLES)[number];

/** `on or ended`: it may also fail, say why, and leave everything as it was. */
export type Outcome = "on" | "on or ended";
const OUTCOMES: readonly string[] = ["on", "on or ended"] satisfies readonly Outcome[];

export interface Row {
  readonly step: string;
  readonly outcomes: Readonly<Record<Role, Outcome>>;
  readonly why: string;
}

export type KillTable = ReadonlyMap<string, readonly Row[]>;

/** Throws when a table is not of the form that the document promises. */
export function readKillTable(): KillTable {
  const text = readFileSync(new URL("../../docs/kill-matrix.md", import.meta.url), "utf8");
  const sections = text.split(/^## /m).slice(1);
  return new Map(sections.map((section) => [section.split("\n", 1)[0] ?? "", rowsOf(section)]));
}

function rowsOf(section: string): readonly Row[] {
  const [head = [], , ...rows] = section
    .split("\n")
    .filter((line) => line.startsWith("|"))
    .map((line) =>
      line
        .split("|")
        .slice(1, -1)
        .map((cell) => cell.trim()),
    );
  const wanted = ["step", ...ROLES, "why"];
  if (head.join() !== wanted.join()) throw new Error(`Columns "${head.join()}", expected "${wanted.join()}"`);
  return rows.map((cells) => {
    const [step = "", ...rest] = cells;
    const why = rest.at(ROLES.length) ?? "";
    const outcomes = Object.fromEntries(ROLES.map((role, index) => [role, outcomeOf(rest[index], `${step}, ${role}`)]));
    return { step, outcomes: outcomes as Record<Role, Outcome>, why }; // One for each role, as just made.
  });
}

function outcomeOf(cell: string | undefined, where: string): Outcome {
  if (cell === undefined || !OUTCOMES.includes(cell))
    throw new Error(`Cell "${cell}" at ${where}, expected one of "${OUTCOMES.join('", "')}"`);
  return cell as Outcome; // Just looked up.
}
