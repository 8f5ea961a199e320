/**
 * XML as SOAP uses it, read strictly.
 *
 * What a general parser guesses (is one child a list? is "007" a number?) is decided by the schema alone, in soap.ts; so this one hands
 * over elements, attributes and text, and nothing else. Document types are refused: with them go entities that expand, and files
 * that are fetched.
 *
 * Invariants:
 * - prefixes of elements are dropped (SOAP servers choose them freely), those of attributes are kept: `type` and `xsi:type` differ;
 * - text is not trimmed; comments and processing instructions are passed over;
 * - depth is bounded; what is not well-formed is PROTOCOL_INVALID with the offset, never a partial tree.
 */
import { Fault } from "#model/fault.ts";

export interface XmlElement {
  /** Without prefix. */
  readonly name: string;
  /** By name as written, prefix and all. */
  readonly attributes: ReadonlyMap<string, string>;
  readonly children: readonly XmlElement[];
  /** The element's own text, without its children's. */
  readonly text: string;
}

interface Draft {
  readonly written: string;
  readonly name: string;
  readonly attributes: ReadonlyMap<string, string>;
  readonly children: XmlElement[];
  text: string;
}

const DEPTH_MAX = 200;
const TAG = /<([A-Za-z_][\w.:-]*)((?:\s+[A-Za-z_][\w.:-]*\s*=\s*(?:"[^"<]*"|'[^'<]*'))*)\s*(\/?)>/y;
const END_TAG = /<\/([A-Za-z_][\w.:-]*)\s*>/y;
const ATTRIBUTE = /([A-Za-z_][\w.:-]*)\s*=\s*(?:"([^"]*)"|'([^']*)')/g;
const NAMED: Readonly<Record<string, string>> = { lt: "<", gt: ">", amp: "&", quot: '"', apos: "'" };

/** The root element. Throws: PROTOCOL_INVALID. */
export function readXml(text: string): XmlElement {
  const open: Draft[] = [];
  let root: XmlElement | undefined;
  let at = text.startsWith("\ufeff") ? 1 : 0;

  const close = (draft: Draft): void => {
    const parent = open.at(-1);
    if (parent !== undefined) parent.children.push(draft);
    else root = draft;
  };
  while (at < text.length) {
    const here = open.at(-1);
    if (text[at] !== "<") {
      const end = text.indexOf("<", at);
      const raw = text.slice(at, end === -1 ? text.length : end);
      if (here !== undefined) here.text += decodeEntities(raw, at);
      else if (raw.trim() !== "") throw malformed("text outside the document", at);
      at += raw.length;
    } else if (text.startsWith("<!--", at)) at = after(text, "-->", at);
    else if (text.startsWith("<?", at)) at = after(text, "?>", at);
    else if (text.startsWith("<![CDATA[", at)) {
      const end = after(text, "]]>", at);
      if (here === undefined) throw malformed("text outside the document", at);
      here.text += text.slice(at + 9, end - 3);
      at = end;
    } else if (text.startsWith("<!", at)) throw malformed("a document type, which is refused", at);
    else if (text.startsWith("</", at)) {
      const match = matchAt(END_TAG, text, at);
      if (match === null || here === undefined || match[1] !== here.written)
        throw malformed(`an end tag that does not close "${here?.written ?? ""}"`, at);
      open.pop();
      close(here);
      at += match[0].length;
    } else {
      const match = matchAt(TAG, text, at);
      if (match === null) throw malformed("a broken tag", at);
      if (root !== undefined || open.length >= DEPTH_MAX) throw malformed("too many elements", at);
      const written = match[1] ?? "";
      const draft: Draft = {
        written,
        name: local(written),
        attributes: attributesOf(match[2] ?? "", at),
        children: [],
        text: "",
      };
      if (match[3] === "/") close(draft);
      else open.push(draft);
      at += match[0].length;
    }
  }
  if (root === undefined) throw malformed("an end before the document was complete", at);
  return root;
}

/** For text and for attribute values. Throws: CONFIG_INVALID for a character that XML cannot carry. */
export function escapeXml(text: string): string {
  // eslint-disable-next-line no-control-regex -- control characters are what is refused
  if (/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/.test(text) || !text.isWellFormed())
    throw new Fault("CONFIG_INVALID", `${JSON.stringify(text)} has a character that cannot be sent`);
  // A bare carriage return would arrive as a line feed; tab and line feed in an attribute as a space.
  return text.replace(/[&<>"'\r\n\t]/g, (letter) => `&#${letter.charCodeAt(0)};`);
}

/** A name without its prefix. */
export function local(name: string): string {
  return name.slice(name.indexOf(":") + 1);
}

function attributesOf(text: string, at: number): ReadonlyMap<string, string> {
  const attributes = new Map<string, string>();
  for (const [, name = "", double, single] of text.matchAll(ATTRIBUTE)) {
    if (attributes.has(name)) throw malformed(`the attribute "${name}" twice`, at);
    attributes.set(name, decodeEntities(double ?? single ?? "", at));
  }
  return attributes;
}

function decodeEntities(text: string, at: number): string {
  if (!text.includes("&")) return text;
  return text.replace(/&([^;&]{0,12});?/g, (whole, name: string) => {
    const code = /^#(?:x([0-9a-fA-F]{1,6})|(\d{1,7}))$/.exec(name);
    const point =
      code === null ? Number.NaN : Number.parseInt(code[1] ?? code[2] ?? "", code[1] === undefined ? 10 : 16);
    const character = point <= 0x10ffff ? String.fromCodePoint(point) : NAMED[name];
    if (character === undefined || !whole.endsWith(";")) throw malformed(`an unknown entity "${whole}"`, at);
    return character;
  });
}

function matchAt(pattern: RegExp, text: string, at: number): RegExpExecArray | null {
  pattern.lastIndex = at; // Sticky: matches here or not at all.
  return pattern.exec(text);
}

function after(text: string, mark: string, at: number): number {
  const found = text.indexOf(mark, at);
  if (found === -1) throw malformed(`no "${mark}"`, at);
  return found + mark.length;
}

function malformed(what: string, at: number): Fault {
  return new Fault("PROTOCOL_INVALID", `Expected XML, got ${what} at character ${at}`, { details: { at } });
}
