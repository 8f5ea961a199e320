/**
 * Reads what a peer sent, field by field. A peer is never trusted about the shape of its words: what does not fit is PROTOCOL_INVALID, and
 * names the field.
 */
import { Fault } from "./fault.ts";

export type Fields = Readonly<Record<string, unknown>>;

export function readObject(value: unknown, name: string): Fields {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw unexpected(name, "an object", value);
  return value as Fields;
}

/** A string that is not empty, of at most 4096 characters. */
export function readText(fields: Fields, name: string): string {
  const value = fields[name];
  if (typeof value !== "string" || value === "" || value.length > 4096) throw unexpected(name, "a text", value);
  return value;
}

/** Bytes as base64, in whatever length the link carries. Decoding is the caller's; what is no base64 there has another length then. */
export function readBase64(fields: Fields, name: string): string {
  const value = fields[name];
  if (typeof value === "string" && /^[A-Za-z0-9+/]*={0,2}$/.test(value)) return value;
  throw unexpected(name, "base64", value);
}

/** A name that may become part of a path or a key: letters, digits, dot, dash, underscore; begins with a letter or digit. */
export function readName(fields: Fields, name: string): string {
  const value = readText(fields, name);
  if (!/^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/.test(value))
    throw unexpected(name, "a name of letters, digits, dots, dashes and underscores", value);
  return value;
}

/** A whole number, not negative. */
export function readWhole(fields: Fields, name: string): number {
  const value = fields[name];
  if (typeof value !== "number" || !Number.isSafeInteger(value) || value < 0)
    throw unexpected(name, "a whole number", value);
  return value;
}

/** Any finite number that is not negative. */
export function readNumber(fields: Fields, name: string): number {
  const value = fields[name];
  if (typeof value !== "number" || !Number.isFinite(value) || value < 0) throw unexpected(name, "a number", value);
  return value;
}

export function readBoolean(fields: Fields, name: string): boolean {
  const value = fields[name];
  if (typeof value !== "boolean") throw unexpected(name, "true or false", value);
  return value;
}

export function readChoice<T extends string>(fields: Fields, name: string, choices: readonly T[]): T {
  const value = fields[name];
  const found = choices.find((choice) => choice === value);
  if (found === undefined) throw unexpected(name, `one of ${choices.join(", ")}`, value);
  return found;
}

export function readList<T>(fields: Fields, name: string, readItem: (item: Fields) => T): T[] {
  const value = fields[name];
  if (!Array.isArray(value)) throw unexpected(name, "a list", value);
  return value.map((item, index) => readItem(readObject(item, `${name}[${index}]`)));
}

export function readTexts(fields: Fields, name: string): string[] {
  const value = fields[name];
  if (!Array.isArray(value) || !value.every((item) => typeof item === "string"))
    throw unexpected(name, "a list of texts", value);
  return value;
}

export function readWholes(fields: Fields, name: string): number[] {
  const value = fields[name];
  if (!Array.isArray(value) || !value.every((item) => Number.isSafeInteger(item) && item >= 0))
    throw unexpected(name, "a list of whole numbers", value);
  return value;
}

function unexpected(name: string, expected: string, value: unknown): Fault {
  return new Fault(
    "PROTOCOL_INVALID",
    `Expected "${name}" to be ${expected}, got ${JSON.stringify(value)?.slice(0, 100) ?? "nothing"}`,
    { details: { field: name } },
  );
}
