/**
 * An extent map as bytes: count, then for each extent its gap to the one before, length × 4 + type, and for data the ordinal of the
 * container and the frame relative to the frame after the last one.
 *
 * Source: docs/format.md, "Extent".
 */
import { EMPTY_MAP, type ExtentMap, extentMapBuilder, SOURCE_TRIM, SOURCE_ZERO } from "../extent-map.ts";
import type { ByteReader, ByteWriter } from "./byte-cursor.ts";
import { corrupt } from "./fields.ts";
import type { FrameDirectory } from "./frame-directory.ts";

const TYPE_DATA = 0;
const TYPE_ZERO = 1;
const TYPE_TRIM = 2;

/** `from`: the block that the first gap counts from. */
export function writeExtents(writer: ByteWriter, map: ExtentMap, from = 0): void {
  writer.varint(map.count);
  let end = from;
  let expected = 0;
  for (let index = 0; index < map.count; index++) {
    const source = map.source[index]!;
    const type = source === SOURCE_ZERO ? TYPE_ZERO : source === SOURCE_TRIM ? TYPE_TRIM : TYPE_DATA;
    writer.varint(map.start[index]! - end);
    writer.varint(map.length[index]! * 4 + type);
    if (type === TYPE_DATA) {
      writer.varint(source);
      writer.signed(map.frame[index]! - expected);
      expected = map.frame[index]! + 1;
    }
    end = map.start[index]! + map.length[index]!;
  }
}

/**
 * Inverse of `writeExtents` for extents inside `bounds` (blocks), of which each lies in its frame.
 * `directories`: by ordinal of the container. Throws OBJECT_CORRUPT.
 */
export function readExtents(
  reader: ByteReader,
  directories: { readonly [ordinal: number]: FrameRanges | undefined },
  bounds: { readonly start: number; readonly end: number },
): ExtentMap {
  const count = reader.count(2);
  if (count === 0) return EMPTY_MAP;
  const map = extentMapBuilder(count);
  let end = bounds.start;
  let expected = 0;
  for (let index = 0; index < count; index++) {
    const start = end + reader.varint();
    const shape = reader.varint();
    const type = shape % 4;
    const length = (shape - type) / 4;
    if (length < 1 || length > 0xffffffff || start + length > bounds.end)
      throw corrupt("Index", `extent ${index} lies outside the disk`);
    let source = type === TYPE_ZERO ? SOURCE_ZERO : SOURCE_TRIM;
    let frame = 0;
    if (type === TYPE_DATA) {
      source = reader.varint();
      frame = expected + reader.signed();
      expected = frame + 1;
      const directory = directories[source];
      if (directory === undefined || frame < 0 || frame >= directory.count)
        throw corrupt("Index", `extent ${index} names no frame`);
      const first = directory.block[frame]!;
      if (start < first || start + length > first + directory.blocks[frame]!)
        throw corrupt("Index", `extent ${index} is not in its frame`);
    } else if (type !== TYPE_ZERO && type !== TYPE_TRIM) {
      throw corrupt("Index", `extent ${index} has type ${type}`);
    }
    map.push(start, length, source, frame);
    end = start + length;
  }
  return map.finish();
}

/** Which blocks each frame of a container holds. */
export type FrameRanges = Pick<FrameDirectory, "count" | "block" | "blocks">;
