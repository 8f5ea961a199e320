/**
 * UTF-8 for the pure middle, where `TextEncoder` and `TextDecoder` do not exist: they are no part of the language. For small records.
 */

/** Throws URIError for text with a lone surrogate, which JSON.stringify never yields. */
export function utf8Bytes(text: string): Uint8Array {
  const escaped = encodeURIComponent(text);
  const data = new Uint8Array(escaped.length);
  let length = 0;
  for (let at = 0; at < escaped.length; at++) {
    if (escaped[at] === "%") {
      data[length++] = Number.parseInt(escaped.slice(at + 1, at + 3), 16);
      at += 2;
    } else {
      data[length++] = escaped.charCodeAt(at);
    }
  }
  return data.slice(0, length);
}

const PERCENT = 0x25;

/** Throws URIError for bytes that are not UTF-8. */
export function utf8Text(data: Uint8Array): string {
  let escaped = "";
  for (const byte of data) {
    const plain = byte < 0x80 && byte !== PERCENT;
    escaped += plain ? String.fromCharCode(byte) : `%${byte.toString(16).padStart(2, "0")}`;
  }
  return decodeURIComponent(escaped);
}
