/**
 * Sections of an index: `id varint, length varint, payload`, one behind the other. Ids below 128 are critical: a reader that does not know
 * one refuses. From 128 on they may be skipped. No id appears twice.
 *
 * Source: docs/format.md, "Index".
 */
import { Fault } from "../fault.ts";
import { byteReader, type ByteReader, byteWriter, type ByteWriter } from "./byte-cursor.ts";
import { corrupt } from "./fields.ts";

const FIRST_OPTIONAL = 128;

export type Sections = ReadonlyMap<number, Uint8Array>;

export function section(writer: ByteWriter, id: number, fill: (payload: ByteWriter) => void): void {
  const payload = byteWriter();
  fill(payload);
  writer.varint(id);
  writer.varint(payload.length);
  writer.bytes(payload.view());
}

/** `known`: the critical sections that the caller reads. Throws OBJECT_CORRUPT, FORMAT_UNSUPPORTED. */
export function readSections(reader: ByteReader, known: readonly number[]): Sections {
  const sections = new Map<number, Uint8Array>();
  while (reader.remaining > 0) {
    const id = reader.varint();
    const payload = reader.bytes(reader.varint());
    if (sections.has(id)) throw corrupt("Index", `section ${id} appears twice`);
    if (id < FIRST_OPTIONAL && !known.includes(id)) {
      throw new Fault("FORMAT_UNSUPPORTED", `The index has section ${id}, which this program does not know`, {
        hint: "Read it with the version of Leeward that wrote it, or a newer one.",
      });
    }
    sections.set(id, payload);
  }
  return sections;
}

/** A critical section: it must be there, and nothing may be left over. */
export function readWhole<Value>(sections: Sections, id: number, read: (reader: ByteReader) => Value): Value {
  const payload = sections.get(id);
  if (payload === undefined) throw corrupt("Index", `section ${id} is missing`);
  const reader = byteReader(payload, "Index");
  const value = read(reader);
  if (reader.remaining > 0) throw corrupt("Index", `section ${id} has bytes left over`);
  return value;
}

/** An optional section: a later minor version may append to it. */
export function readLeading<Value>(sections: Sections, id: number, read: (reader: ByteReader) => Value): Value {
  return read(byteReader(sections.get(id)!, "Index"));
}
