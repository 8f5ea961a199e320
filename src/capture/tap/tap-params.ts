/** What a control connection hands the tap, checked by hand: the tap starts in the time a machine waits for its disk, and a schema library does not. */
import { Fault } from "#model/fault.ts";
import type { TapConfig, TapDiskConfig, TapRequest } from "./tap-protocol.ts";

export type Params = Readonly<Record<string, unknown>>;

export function object(value: unknown): Params {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw invalid("params", value, "an object");
  return value as Params;
}

export function text(values: Params, name: string): string {
  const value = values[name];
  if (typeof value !== "string" || value === "") throw invalid(name, value, "a text");
  return value;
}

export function texts(values: Params, name: string): string[] {
  const value = values[name];
  if (!Array.isArray(value) || !value.every((item) => typeof item === "string"))
    throw invalid(name, value, "a list of texts");
  return value;
}

export function whole(values: Params, name: string): number {
  const value = values[name];
  if (typeof value !== "number" || !Number.isSafeInteger(value) || value < 0)
    throw invalid(name, value, "a whole number");
  return value;
}

export function diskConfig(values: Params): TapDiskConfig {
  return {
    diskId: text(values, "diskId"),
    image: text(values, "image"),
    socket: text(values, "socket"),
    stateDir: text(values, "stateDir"),
    ...(values["name"] === undefined ? {} : { name: text(values, "name") }),
  };
}

/** The head of a request; throws PROTOCOL_INVALID for anything else. */
export function request(header: unknown): TapRequest {
  const values = object(header);
  return { id: whole(values, "id"), method: text(values, "method"), params: values["params"] };
}

/** Throws CONFIG_INVALID, naming the value. */
export function tapConfig(value: unknown): TapConfig {
  try {
    const values = object(value);
    const disks = values["disks"];
    if (!Array.isArray(disks)) throw invalid("disks", disks, "a list of disks");
    return {
      controlSocket: text(values, "controlSocket"),
      disks: disks.map((disk) => diskConfig(object(disk))),
      ...(values["frozenBytesMax"] === undefined ? {} : { frozenBytesMax: whole(values, "frozenBytesMax") }),
      ...(values["logFile"] === undefined ? {} : { logFile: text(values, "logFile") }),
    };
  } catch (cause) {
    throw new Fault(
      "CONFIG_INVALID",
      `The tap's configuration is wrong: ${cause instanceof Error ? cause.message : String(cause)}`,
      { cause },
    );
  }
}

function invalid(name: string, value: unknown, expected: string): Fault {
  return new Fault(
    "PROTOCOL_INVALID",
    `"${name}" is "${String(JSON.stringify(value)).slice(0, 80)}", expected ${expected}`,
  );
}
