/**
 * JSON records: how the small objects of a store become bytes, and how bytes are believed again, member by member.
 *
 * Every record is one JSON object in UTF-8 with `"format": 1`. Unknown members are ignored, a higher format is refused.
 */
import { Fault } from "../fault.ts";
import type { JsonObject } from "../json.ts";
import { utf8Bytes, utf8Text } from "./utf8.ts";

export const RECORD_FORMAT = 1;

export function encodeRecord(record: object): Uint8Array {
  return utf8Bytes(JSON.stringify({ format: RECORD_FORMAT, ...record }));
}

/** JSON with sorted members and no white space: equal values give equal text. */
export function canonicalJson(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join(",")}]`;
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  const members = Object.entries(value).filter(([, member]) => member !== undefined);
  members.sort(([a], [b]) => (a < b ? -1 : 1));
  return `{${members.map(([name, member]) => `${JSON.stringify(name)}:${canonicalJson(member)}`).join(",")}}`;
}

/** `formatMost`: of a kind of record that has later formats, the newest that is known. */
export function decodeRecord(data: Uint8Array, key: string, formatMost: number = RECORD_FORMAT): JsonObject {
  let value: unknown;
  try {
    value = JSON.parse(utf8Text(data));
  } catch (cause) {
    throw damagedRecord(key, "it is not JSON", cause);
  }
  const json = memberObject(value, key, "record");
  const format = json["format"];
  if (typeof format !== "number" || !Number.isSafeInteger(format) || format < 1)
    throw damagedRecord(key, "it names no format");
  if (format > formatMost) {
    throw new Fault(
      "FORMAT_UNSUPPORTED",
      `Object "${key}" has format ${format}, and this program reads format ${formatMost}`,
      {
        details: { key },
        hint: "Read it with the version of Leeward that wrote it, or a newer one.",
      },
    );
  }
  return json;
}

export function memberObject(value: unknown, key: string, what: string): JsonObject {
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw damagedRecord(key, `its ${what} is not an object`);
  return value as JsonObject; // Whatever JSON.parse returned for an object.
}

export function recordFields(json: JsonObject, key: string) {
  return {
    number(name: string, least = 0): number {
      const value = json[name];
      if (typeof value !== "number" || !Number.isSafeInteger(value) || value < least) {
        throw damagedRecord(key, `"${name}" is not a whole number from ${least}`);
      }
      return value;
    },
    text(name: string, check: (text: string) => boolean = (text) => text !== ""): string {
      const value = json[name];
      if (typeof value !== "string" || value.length > 4096 || !check(value))
        throw damagedRecord(key, `"${name}" has an impossible value`);
      return value;
    },
    list<Item>(name: string, item: (value: unknown) => Item | undefined): Item[] {
      const value = json[name];
      if (!Array.isArray(value)) throw damagedRecord(key, `"${name}" is not a list`);
      return value.map((entry) => {
        const made = item(entry);
        if (made === undefined) throw damagedRecord(key, `"${name}" holds an impossible value`);
        return made;
      });
    },
  };
}

export function damagedRecord(key: string, what: string, cause?: unknown): Fault {
  return new Fault("OBJECT_CORRUPT", `Object "${key}" is damaged: ${what}`, { details: { key }, cause });
}
