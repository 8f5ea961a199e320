/**
 * SOAP as vCenter speaks it: a table (vim-schema.ts, generated) says which fields a type has, in which order, and of what kind.
 *
 * Invariants:
 * - fields are written in the order of the wire, whatever order an object has them in; a field that the type lacks is a bug and throws,
 *   because vCenter refuses it while the simulator does not;
 * - whether a field is a list comes from the table, never from how many elements came;
 * - where an heir may stand, `$type` names the type: written as xsi:type, and present on everything that was read with one;
 * - a type that is not in the table is read as the declared one (an heir has its fields), with its own name as `$type`.
 *
 * Source: vSphere Web Services SDK programming guide, "XML"; types from govmomi, vim25/types.
 */
import { Fault } from "#model/fault.ts";
import { RETURNS, SCHEMA } from "./vim-schema.ts";
import type { VimMethods } from "./vim-methods.ts";
import type { AnyMethodFault, Reference } from "./vim-types.ts";
import { escapeXml, local, readXml, type XmlElement } from "./xml.ts";

export type VimMethod = keyof VimMethods;

/** vCenter's own words for what went wrong. Mapped to a Fault in faults.ts, where the caller's purpose is known. */
export class VimError extends Error {
  override readonly name = "VimError";
  readonly fault: AnyMethodFault;

  constructor(fault: AnyMethodFault, message: string) {
    super(message === "" ? fault.$type : message);
    this.fault = fault;
  }
}

interface Field {
  readonly name: string;
  readonly kind: string;
  readonly many: boolean;
}

const fieldsByType = new Map<string, readonly Field[]>();
const INT_MAX = 2 ** 31 - 1;

/** The envelope of a call. Throws RangeError for a field or type that is not in the table: a bug. */
export function encodeCall<M extends VimMethod>(method: M, request: VimMethods[M]["request"]): string {
  const type = `${method.replace(/_Task$/, "")}Request`;
  return (
    '<?xml version="1.0" encoding="UTF-8"?>' +
    '<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" xmlns:xsd="http://www.w3.org/2001/XMLSchema" ' +
    'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body>' +
    `<${method} xmlns="urn:vim25">${encodeFields(type, request)}</${method}>` +
    "</soapenv:Body></soapenv:Envelope>"
  );
}

/** What a call returned. Throws: VimError when it is a SOAP fault; PROTOCOL_INVALID when it is no answer to this call. */
export function decodeAnswer<M extends VimMethod>(method: M, text: string): VimMethods[M]["returns"] {
  const envelope = readXml(text);
  const answer = envelope.children.find((one) => one.name === "Body")?.children[0];
  if (envelope.name !== "Envelope" || answer === undefined)
    throw new Fault("PROTOCOL_INVALID", `Expected a SOAP envelope, got <${envelope.name}>`);
  if (answer.name === "Fault") throw vimError(answer);
  if (answer.name !== `${method}Response`)
    throw new Fault("PROTOCOL_INVALID", `Expected <${method}Response>, got <${answer.name}>`);
  const value = answer.children.find((one) => one.name === "returnval");
  const kind = RETURNS[method];
  // The table and the types are generated from one list.
  return (value === undefined || kind === "" ? undefined : decodeValue(value, kind)) as VimMethods[M]["returns"];
}

function vimError(answer: XmlElement): VimError {
  const said = answer.children.find((one) => one.name === "faultstring")?.text ?? "";
  const detail = answer.children.find((one) => one.name === "detail")?.children[0];
  if (detail === undefined) return new VimError({ $type: "MethodFault" }, said);
  const type = typeAttribute(detail) ?? detail.name.replace(/Fault$/, "");
  return new VimError(decodeObject(detail, type, "MethodFault") as AnyMethodFault, said);
}

function encodeFields(type: string, value: object): string {
  const fields = fieldsOf(type);
  if (fields === undefined) throw new RangeError(`There is no type "${type}" in the table`);
  for (const name of Object.keys(value)) {
    if (name !== "$type" && !fields.some((field) => field.name === name))
      throw new RangeError(`"${type}" has no field "${name}"`);
  }
  return fields
    .map(({ name, kind, many }) => {
      const inner = (value as Readonly<Record<string, unknown>>)[name];
      if (inner === undefined) return "";
      if (!many) return encodeValue(name, kind, inner);
      return (inner as readonly unknown[]).map((one) => encodeValue(name, kind, one)).join("");
    })
    .join("");
}

function encodeValue(tag: string, kind: string, value: unknown): string {
  if (kind === "any") return encodeAny(tag, value);
  if (kind === "ref") return encodeReference(tag, value as Reference);
  if (fieldsOf(kind) === undefined) return `<${tag}>${escapeXml(String(value))}</${tag}>`;
  const type = (value as { readonly $type?: string }).$type ?? kind;
  return `<${tag}${type === kind ? "" : ` xsi:type="${type}"`}>${encodeFields(type, value as object)}</${tag}>`;
}

/** Where anything may stand, the type is always said. */
function encodeAny(tag: string, value: unknown): string {
  switch (typeof value) {
    case "string":
      return `<${tag} xsi:type="xsd:string">${escapeXml(value)}</${tag}>`;
    case "boolean":
      return `<${tag} xsi:type="xsd:boolean">${value}</${tag}>`;
    case "number":
      if (!Number.isSafeInteger(value)) throw new RangeError(`"${tag}" is ${value}, expected a safe integer`);
      return `<${tag} xsi:type="xsd:${Math.abs(value) > INT_MAX ? "long" : "int"}">${value}</${tag}>`;
    default:
      throw new RangeError(`"${tag}" cannot hold ${typeof value}`);
  }
}

function encodeReference(tag: string, { type, value }: Reference, attribute = ""): string {
  return `<${tag}${attribute} type="${escapeXml(type)}">${escapeXml(value)}</${tag}>`;
}

function decodeValue(element: XmlElement, declared: string): unknown {
  const said = typeAttribute(element);
  const kind = declared === "any" ? (said ?? "") : declared;
  switch (kind) {
    case "ref":
    case "ManagedObjectReference":
      return { type: element.attributes.get("type") ?? "", value: element.text } satisfies Reference;
    case "string":
    case "dateTime":
    case "base64Binary":
      return element.text;
    case "boolean":
      return element.text === "true" || element.text === "1";
    case "long":
    case "int":
    case "short":
    case "byte":
      return decodeInteger(element);
    case "double":
    case "float":
      return Number(element.text);
    default:
  }
  if (kind.startsWith("ArrayOf")) return element.children.map((one) => decodeValue(one, elementKind(kind.slice(7))));
  // An enumeration, or a type that is not in the table: its text, or what can be told of it without one.
  if (fieldsOf(kind) === undefined && said === undefined && element.children.length === 0) return element.text;
  if (fieldsOf(kind) === undefined && declared === "any")
    return element.children.length === 0 ? element.text : decodeLoosely(element);
  return decodeObject(element, said ?? kind, kind);
}

function decodeObject(element: XmlElement, type: string, declared: string): object {
  const fields = fieldsOf(type) ?? fieldsOf(declared) ?? [];
  const object: Record<string, unknown> = { $type: type };
  for (const child of element.children) {
    const field = fields.find((one) => one.name === child.name);
    if (field === undefined) continue; // Not one that we use.
    const value = decodeValue(child, field.kind);
    if (field.many) ((object[field.name] ??= []) as unknown[]).push(value);
    else object[field.name] = value;
  }
  return object;
}

/** Of a type that the table lacks: text by field, for messages. */
function decodeLoosely(element: XmlElement): object {
  return Object.fromEntries(
    element.children.map((one) => [one.name, one.children.length === 0 ? one.text : decodeLoosely(one)]),
  );
}

function decodeInteger(element: XmlElement): number {
  const number = Number(element.text);
  if (!/^[+-]?\d+$/.test(element.text) || !Number.isSafeInteger(number))
    throw new Fault("PROTOCOL_INVALID", `<${element.name}> is "${element.text}", expected an integer below 2^53`);
  return number;
}

function elementKind(name: string): string {
  const plain: Readonly<Record<string, string>> = {
    ManagedObjectReference: "ref",
    String: "string",
    Int: "int",
    Long: "long",
    Short: "short",
    Byte: "byte",
    AnyType: "any",
  };
  return plain[name] ?? name;
}

function typeAttribute(element: XmlElement): string | undefined {
  for (const [name, value] of element.attributes) if (name.endsWith(":type")) return local(value);
  return undefined;
}

/** Of the type and its bases, bases first, as on the wire; undefined for a type that is not in the table. */
function fieldsOf(type: string): readonly Field[] | undefined {
  const known = fieldsByType.get(type);
  if (known !== undefined) return known;
  const row = Object.hasOwn(SCHEMA, type) ? SCHEMA[type] : undefined;
  if (row === undefined) return undefined;
  const [base, own] = row;
  const fields = own
    .split(" ")
    .filter((word) => word !== "")
    .map((word) => {
      const [name = "", kind = ""] = word.split(":");
      return { name, kind: kind.replace("[]", ""), many: kind.endsWith("[]") };
    });
  const all = [...((base === "" ? undefined : fieldsOf(base)) ?? []), ...fields];
  fieldsByType.set(type, all);
  return all;
}
