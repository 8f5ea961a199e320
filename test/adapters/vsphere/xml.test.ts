import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { escapeXml, readXml, type XmlElement } from "../../../src/adapters/vsphere/xml.ts";
import { isFault } from "#model/fault.ts";

interface Plain {
  readonly name: string;
  readonly attributes: Readonly<Record<string, string>>;
  readonly text: string;
  readonly children: readonly Plain[];
}

const name = fc.stringMatching(/^[A-Za-z_][A-Za-z0-9_.-]{0,8}$/);
/** What XML can carry; a carriage return too, since it is escaped. */
const text = fc.string({ unit: fc.constantFrom(..."ab é😀<>&'\"\t\n\r]007-") }).filter((one) => one.isWellFormed());
const { tree } = fc.letrec<{ tree: Plain }>((tie) => ({
  tree: fc.record(
    {
      name,
      attributes: fc.dictionary(name, text, { maxKeys: 3, noNullPrototype: true }),
      text,
      children: fc.oneof({ maxDepth: 3 }, fc.constant([]), fc.array(tie("tree"), { maxLength: 3 })),
    },
    { noNullPrototype: true },
  ),
}));

test("what was written is read again: names, attributes, text with every escape, children in order", () => {
  fc.assert(
    fc.property(tree, fc.boolean(), (wanted, prefixed) => {
      const root = readXml(`<?xml version="1.0"?><!-- < & -->\n${write(wanted, prefixed ? "ns1:" : "")}\n`);
      assert.deepEqual(plain(root), wanted);
    }),
    { numRuns: 300 },
  );
});

test("a document that was cut short anywhere is refused, never read in part", () => {
  const whole = '<a x="1"><b>text &amp; more</b><c/><![CDATA[ <raw> ]]></a>';
  assert.equal(readXml(whole).text, " <raw> ");
  for (let length = 0; length < whole.length; length++) {
    assert.throws(
      () => readXml(whole.slice(0, length)),
      (error) => isFault(error, "PROTOCOL_INVALID"),
      whole.slice(0, length),
    );
  }
});

test("whatever bytes come, the answer is a tree or a fault", () => {
  const piece = fc.constantFrom(
    "<a>",
    "</a>",
    "<a/>",
    "&lt;",
    "&",
    "<",
    ">",
    "<!DOCTYPE a>",
    "<![CDATA[",
    "]]>",
    "<!--",
    "x",
    '"',
  );
  fc.assert(
    fc.property(fc.array(piece, { maxLength: 12 }), (pieces) => {
      try {
        readXml(pieces.join(""));
      } catch (error) {
        assert.ok(isFault(error, "PROTOCOL_INVALID"), String(error));
      }
    }),
    { numRuns: 1_000 },
  );
});

test("document types, unknown entities, a second root, an attribute twice, and endless depth are refused", () => {
  for (const bad of [
    '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
    "<a>&nbsp;</a>",
    "<a>&#x110000;</a>",
    "<a>a & b</a>",
    "<a/><b/>",
    "<a/>text",
    '<a x="1" x="2"/>',
    "<a><b></a></b>",
    "<a>".repeat(1_000),
  ]) {
    assert.throws(
      () => readXml(bad),
      (error) => isFault(error, "PROTOCOL_INVALID"),
      bad,
    );
  }
});

test("a character that XML cannot carry is refused before it is sent", () => {
  for (const bad of ["a\u0000b", "\u001b[0m", "\ud800", "\uffff"])
    assert.throws(
      () => escapeXml(bad),
      (error) => isFault(error, "CONFIG_INVALID"),
    );
});

function write(one: Plain, prefix: string): string {
  const attributes = Object.entries(one.attributes).map(([key, value]) => ` ${key}="${escapeXml(value)}"`);
  const inner = `${escapeXml(one.text)}${one.children.map((child) => write(child, prefix)).join("")}`;
  return `<${prefix}${one.name}${attributes.join("")}>${inner}</${prefix}${one.name}>`;
}

function plain(element: XmlElement): Plain {
  return {
    name: element.name,
    attributes: Object.fromEntries(element.attributes),
    text: element.text,
    children: element.children.map(plain),
  };
}
