/**
 * What our workflows need of a Temporal server: their namespace, and the typed columns of the lists. Done at every start; what is there
 * already is left alone. `temporal/search-attributes.json` is the same for servers that are set up by others; a test compares.
 */
import type { NativeConnection } from "@temporalio/worker";
import { Fault } from "#model/fault.ts";
import { SEARCH_ATTRIBUTES } from "../workflows/messages.ts";

const RETENTION_DAYS = 30;
/** temporal.api.enums.v1.IndexedValueType */
const TYPE_NUMBERS = { Keyword: 2, Int: 3, Bool: 5, Datetime: 6 } as const;
const ALREADY_EXISTS = 6;
const NOT_FOUND = 5;

/** Throws what the connection throws while the server is not there; a Fault when an attribute exists with another type. */
export async function setUpTemporal(connection: NativeConnection, namespace: string): Promise<void> {
  await ensureNamespace(connection, namespace);
  const { customAttributes } = await connection.operatorService.listSearchAttributes({ namespace });
  const missing: Record<string, number> = {};
  for (const [name, type] of Object.entries(SEARCH_ATTRIBUTES)) {
    const known = customAttributes?.[name];
    if (known === undefined || known === null) missing[name] = TYPE_NUMBERS[type];
    else if (known !== TYPE_NUMBERS[type]) {
      throw new Fault(
        "CONFIG_INVALID",
        `Search attribute "${name}" of namespace "${namespace}" has type ${known}, expected ${type}`,
        { hint: "Remove it with the temporal CLI, or use another namespace" },
      );
    }
  }
  if (Object.keys(missing).length === 0) return;
  try {
    await connection.operatorService.addSearchAttributes({ namespace, searchAttributes: missing });
  } catch (error) {
    // Another worker was faster.
    if (grpcCode(error) !== ALREADY_EXISTS) throw error;
  }
}

async function ensureNamespace(connection: NativeConnection, namespace: string): Promise<void> {
  try {
    await connection.workflowService.describeNamespace({ namespace });
    return;
  } catch (error) {
    if (grpcCode(error) !== NOT_FOUND) throw error;
  }
  try {
    await connection.workflowService.registerNamespace({
      namespace,
      description: "Leeward: replication, failover, drills",
      // google.protobuf.Duration; its type wants a 64-bit class where a number is accepted.
      workflowExecutionRetentionPeriod: { seconds: (RETENTION_DAYS * 86_400) as never },
    });
  } catch (error) {
    if (grpcCode(error) !== ALREADY_EXISTS) throw error;
  }
}

function grpcCode(error: unknown): number | undefined {
  const { code } = error as { readonly code?: unknown };
  return typeof code === "number" ? code : undefined;
}
