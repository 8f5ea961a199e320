/**
 * CRC32C (Castagnoli, reflected, polynomial 0x1EDC6F41): guards the fixed headers and footers of the replica format against
 * damage. It is no protection against an attacker; the AEAD is.
 *
 * Source: RFC 3720, appendix B.4; check value crc32c("123456789") = 0xE3069283.
 */
const TABLE = new Uint32Array(256);
for (let value = 0; value < 256; value++) {
  let rest = value;
  for (let bit = 0; bit < 8; bit++) rest = rest & 1 ? (rest >>> 1) ^ 0x82f63b78 : rest >>> 1;
  TABLE[value] = rest;
}

/** CRC32C of `data`, as an unsigned 32-bit number. `before` continues an earlier result. */
export function crc32c(data: Uint8Array, before = 0): number {
  let rest = ~before;
  for (const byte of data) rest = TABLE[(rest ^ byte) & 0xff]! ^ (rest >>> 8);
  return ~rest >>> 0;
}
