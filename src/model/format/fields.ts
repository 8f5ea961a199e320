/** Reading and writing the fixed fields that the headers share. All numbers little-endian; every writer checks its bounds. */
import { Fault } from "../fault.ts";

export const MAX_U48 = 2 ** 48 - 1;

export function setU48(view: DataView, at: number, value: number, name: string): void {
  if (!Number.isSafeInteger(value) || value < 0 || value > MAX_U48)
    throw new RangeError(`${name} does not fit 48 bits: ${value}`);
  view.setUint32(at, value % 2 ** 32, true);
  view.setUint16(at + 4, Math.floor(value / 2 ** 32), true);
}

export function getU48(view: DataView, at: number): number {
  return view.getUint32(at, true) + view.getUint16(at + 4, true) * 2 ** 32;
}

export function setU32(view: DataView, at: number, value: number, name: string): void {
  if (!Number.isInteger(value) || value < 0 || value > 0xffffffff)
    throw new RangeError(`${name} does not fit 32 bits: ${value}`);
  view.setUint32(at, value, true);
}

/** Bytes as lower-case hex. */
export function toHex(data: Uint8Array): string {
  let text = "";
  for (const byte of data) text += byte.toString(16).padStart(2, "0");
  return text;
}

/** Inverse of `toHex` for exactly `length` bytes; RangeError for anything else. */
export function fromHex(text: string, length: number, name: string): Uint8Array {
  if (text.length !== length * 2 || !/^[0-9a-f]*$/.test(text))
    throw new RangeError(`${name} must be ${length * 2} hex digits, got "${text}"`);
  return Uint8Array.from({ length }, (_, index) => Number.parseInt(text.slice(index * 2, index * 2 + 2), 16));
}

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;

export function isUuid(text: string): boolean {
  return UUID.test(text);
}

export function uuidToBytes(text: string, name: string): Uint8Array {
  if (!isUuid(text)) throw new RangeError(`${name} must be a UUID in lower case, got "${text}"`);
  return fromHex(text.replaceAll("-", ""), 16, name);
}

export function uuidFromBytes(data: Uint8Array): string {
  const hex = toHex(data);
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}

const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]*$/;

/** A name that is safe in an object key: letters, digits, and `.`, `_`, `-` inside; at most `limit` characters. */
export function isName(text: string, limit: number): boolean {
  return text.length >= 1 && text.length <= limit && NAME.test(text);
}

/** Text in a field of fixed length, zero padded. */
export function setName(target: Uint8Array, at: number, limit: number, text: string, name: string): void {
  if (!isName(text, limit))
    throw new RangeError(`${name} must be 1 to ${limit} letters, digits or ". _ -", got "${text}"`);
  for (let index = 0; index < limit; index++) target[at + index] = index < text.length ? text.charCodeAt(index) : 0;
}

/** Undefined when the field does not hold a name with nothing but zeroes behind it. */
export function getName(source: Uint8Array, at: number, limit: number): string | undefined {
  const field = source.subarray(at, at + limit);
  const end = field.indexOf(0);
  const text = String.fromCharCode(...(end < 0 ? field : field.subarray(0, end)));
  if (end >= 0 && field.subarray(end).some((byte) => byte !== 0)) return undefined;
  return isName(text, limit) ? text : undefined;
}

/** OBJECT_CORRUPT with what was seen. `subject` names the part: "Header", "Index", … */
export function corrupt(subject: string, what: string): Fault {
  return new Fault("OBJECT_CORRUPT", `${subject} is damaged: ${what}`);
}
