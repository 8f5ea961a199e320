/**
 * A site's interfaces as handlers of a link: what the process server and the master target give to `dial` so that `control` can
 * ask them. Parameters come from the wire, so their required fields are checked here: PROTOCOL_INVALID, before the method is called.
 */
import { Fault } from "#model/fault.ts";
import { TERM_FIELD } from "#model/control-term.ts";
import type { JsonObject, JsonValue } from "#model/json.ts";
import type { Hypervisor } from "#ports/hypervisor.ts";
import type { Handler, Handlers } from "#ports/link.ts";
import type { MasterTarget } from "#ports/master-target.ts";
import type { ProcessServer } from "#ports/process-server.ts";
import {
  HYPERVISOR_METHODS,
  MASTER_TARGET_METHODS,
  PROCESS_SERVER_METHODS,
  type FieldType,
  type RelayMethod,
} from "./methods.ts";

type HypervisorMethod = (...args: unknown[]) => Promise<JsonValue | undefined>;

/** Called before anything that changes something, with the term that stands beside the parameters. Throws CONTROL_SUPERSEDED. */
export type TermCheck = (term: unknown) => Promise<void>;

export function serveMasterTarget(masterTarget: MasterTarget, checkTerm?: TermCheck): Handlers {
  return serveObject("masterTarget", MASTER_TARGET_METHODS, masterTarget, checkTerm);
}

export function serveProcessServer(processServer: ProcessServer): Handlers {
  return serveObject("processServer", PROCESS_SERVER_METHODS, processServer);
}

export function serveHypervisor(hypervisor: Hypervisor, checkTerm?: TermCheck): Handlers {
  const handlers: Record<string, Handler> = {};
  for (const [name, method] of Object.entries<RelayMethod>(HYPERVISOR_METHODS)) {
    handlers[`hypervisor.${name}`] = async (params) => {
      const args = params["args"];
      if (!Array.isArray(args))
        throw new Fault("PROTOCOL_INVALID", `hypervisor.${name}: expected "args" to be an array`);
      Object.entries(method.fields).forEach(([at, type]) =>
        check(`hypervisor.${name}`, `args[${at}]`, args[Number(at)], type),
      );
      if (method.reads !== true) await checkTerm?.(params[TERM_FIELD]);
      // By name from a table that is checked against the port; the arguments were checked above.
      const work = (hypervisor as unknown as Record<string, HypervisorMethod | undefined>)[name];
      if (work === undefined)
        throw new Fault("REFUSED", `The hypervisor "${hypervisor.kind}" has no "${name}"`, {
          hint: "Use a hypervisor that has it",
        });
      return await work(...args);
    };
  }
  return handlers;
}

function serveObject(
  prefix: string,
  table: Readonly<Record<string, RelayMethod>>,
  target: object,
  checkTerm?: TermCheck,
): Handlers {
  const handlers: Record<string, Handler> = {};
  for (const [name, method] of Object.entries(table)) {
    handlers[`${prefix}.${name}`] = async ({ [TERM_FIELD]: term, ...params }) => {
      Object.entries(method.fields).forEach(([field, type]) => check(`${prefix}.${name}`, field, params[field], type));
      if (method.reads !== true) await checkTerm?.(term);
      // By name from a table that is checked against the port; the parameters were checked above.
      return await (target as Record<string, (params: JsonObject) => Promise<JsonValue | undefined>>)[name]!(params);
    };
  }
  return handlers;
}

function check(method: string, field: string, value: unknown, type: FieldType): void {
  const seen = Array.isArray(value) ? "array" : value === null ? "null" : typeof value;
  if (seen !== type)
    throw new Fault("PROTOCOL_INVALID", `${method}: expected "${field}" to be of type ${type}, got ${seen}`, {
      details: { method, field },
    });
}
