/** Plain JSON: all that may cross a boundary (Temporal, links, APIs). No bigint, no Map, no Uint8Array. */
export type JsonValue =
  string | number | boolean | null | readonly JsonValue[] | { readonly [key: string]: JsonValue | undefined };
export type JsonObject = { readonly [key: string]: JsonValue | undefined };
