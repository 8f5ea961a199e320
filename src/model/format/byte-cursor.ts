/**
 * Writing and reading bytes in order: varints (LEB128, little groups first, at most 2^53 − 1), names and plain bytes.
 * The writer grows; the reader never passes its end and throws OBJECT_CORRUPT instead.
 */
import { corrupt } from "./fields.ts";
import { utf8Bytes, utf8Text } from "./utf8.ts";

export interface ByteWriter {
  readonly length: number;
  byte(value: number): void;
  varint(value: number): void;
  /** A whole number of either sign: 0, −1, 1, −2, … become 0, 1, 2, 3, … */
  signed(value: number): void;
  bytes(data: Uint8Array): void;
  /** Its length, then its UTF-8. */
  text(value: string): void;
  /** A view of what was written; valid until the next write. */
  view(): Uint8Array;
}

export function byteWriter(capacity = 1024): ByteWriter {
  let data = new Uint8Array(capacity);
  let length = 0;
  const room = (more: number): void => {
    if (length + more <= data.length) return;
    const larger = new Uint8Array(Math.max(data.length * 2, length + more));
    larger.set(data.subarray(0, length));
    data = larger;
  };
  const writer: ByteWriter = {
    get length() {
      return length;
    },
    byte(value) {
      room(1);
      data[length++] = value;
    },
    varint(value) {
      if (!Number.isSafeInteger(value) || value < 0) throw new RangeError(`Varint ${value}`);
      room(8);
      let rest = value;
      while (rest >= 0x80) {
        data[length++] = (rest % 0x80) | 0x80;
        rest = Math.floor(rest / 0x80);
      }
      data[length++] = rest;
    },
    signed(value) {
      writer.varint(value < 0 ? -2 * value - 1 : 2 * value);
    },
    bytes(more) {
      room(more.length);
      data.set(more, length);
      length += more.length;
    },
    text(value) {
      const encoded = utf8Bytes(value);
      writer.varint(encoded.length);
      writer.bytes(encoded);
    },
    view: () => data.subarray(0, length),
  };
  return writer;
}

export interface ByteReader {
  readonly remaining: number;
  byte(): number;
  varint(): number;
  signed(): number;
  /** A view, not a copy. */
  bytes(length: number): Uint8Array;
  text(): string;
  /** A count of items of which each takes at least `least` bytes, so that no length is believed that cannot be true. */
  count(least: number): number;
}

/** `subject` names what is read, for messages. */
export function byteReader(data: Uint8Array, subject: string): ByteReader {
  let at = 0;
  const reader: ByteReader = {
    get remaining() {
      return data.length - at;
    },
    byte() {
      if (at >= data.length) throw corrupt(subject, "it ends too early");
      return data[at++]!;
    },
    varint() {
      let value = 0;
      let weight = 1;
      for (;;) {
        const byte = reader.byte();
        value += (byte & 0x7f) * weight;
        if (!Number.isSafeInteger(value)) throw corrupt(subject, "a number is too large");
        if (byte < 0x80) return value;
        weight *= 0x80;
        if (weight > 2 ** 49) throw corrupt(subject, "a number is too long");
      }
    },
    signed() {
      const value = reader.varint();
      return value % 2 === 1 ? -(value + 1) / 2 : value / 2;
    },
    bytes(length) {
      if (length > data.length - at) throw corrupt(subject, "it ends too early");
      at += length;
      return data.subarray(at - length, at);
    },
    text() {
      const encoded = reader.bytes(reader.varint());
      try {
        return utf8Text(encoded);
      } catch {
        // URIError says nothing but that it is not UTF-8.
        throw corrupt(subject, "a text is not UTF-8");
      }
    },
    count(least) {
      const count = reader.varint();
      if (count * least > data.length - at) throw corrupt(subject, "a count is beyond its end");
      return count;
    },
  };
  return reader;
}
