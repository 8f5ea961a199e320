/**
 * What a person reads and what a script reads. `--json` prints exactly one JSON value on standard output; everything else (progress, hints, logs)
 * goes to standard error, so that a pipe only ever carries the answer.
 */
import { FAULTS, Fault } from "#model/fault.ts";

export interface Output {
  readonly json: boolean;
  readonly quiet: boolean;
  /** The answer: as JSON, or as the text that `human` makes of it. */
  answer<T>(value: T, human: (value: T) => string): void;
  /** A line of progress for a person. */
  say(line: string): void;
}

export function createOutput({ json, quiet }: { readonly json: boolean; readonly quiet: boolean }): Output {
  return {
    json,
    quiet,
    answer: (value, human) => {
      process.stdout.write(json ? `${JSON.stringify(value, null, 2)}\n` : `${human(value)}\n`);
    },
    say: (line) => {
      if (!quiet) process.stderr.write(`${line}\n`);
    },
  };
}

/** Failures whose answer stands on standard output already: JSON is one value, so it is not followed by another. */
const answered = new WeakSet<Fault>();

/** A failure that comes after an answer: it decides the exit code, and a person reads it. */
export function answeredFailure(fault: Fault): Fault {
  answered.add(fault);
  return fault;
}

/** The one JSON value of a command that failed. */
export function printFault(fault: Fault): void {
  process.stdout.write(`${JSON.stringify({ error: fault.toJSON() }, null, 2)}\n`);
}

/** Print what went wrong and what to do; returns the exit code (docs/surface.md). Anything that is not a Fault is a bug and shows its stack. */
export function reportFailure(error: unknown, { json }: { readonly json: boolean }): number {
  if (error instanceof Fault) {
    if (json && !answered.has(error)) printFault(error);
    process.stderr.write(`${error.code}: ${error.message}\n`);
    if (error.hint !== undefined) process.stderr.write(`  → ${error.hint}\n`);
    return FAULTS[error.code].exit;
  }
  const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
  if (json)
    process.stdout.write(`${JSON.stringify({ error: { code: "BUG", message: text.split("\n")[0] } }, null, 2)}\n`);
  process.stderr.write(`This is a bug in leeward, please report it:\n${text}\n`);
  return 1;
}

/** Columns aligned by their widest cell; the first row is the head. */
export function table(rows: readonly (readonly string[])[]): string {
  const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)));
  return rows
    .map((row) =>
      row
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}

/** 1536 → "1.5 KiB". */
export function size(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? value : value.toFixed(1)} ${units[unit]}`;
}

/** 4100 → "4.1 s"; 192000 → "3 min 12 s"; undefined → "–". */
export function duration(ms: number | null | undefined): string {
  if (ms === null || ms === undefined || !Number.isFinite(ms)) return "–";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const seconds = ms / 1000;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}
