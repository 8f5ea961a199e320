/** Histories of workflows as files of test/histories, for the scripts that record them. */
import { mkdir, readdir, writeFile } from "node:fs/promises";
import path from "node:path";
import { historyToJSON } from "@temporalio/common/lib/proto-utils.js";
import type { TestTemporal } from "../test/support/temporal.ts";

const folder = path.join(import.meta.dirname, "../test/histories");

/** Files of one recording share a number; old ones are kept. */
export async function nextNumber(): Promise<number> {
  await mkdir(folder, { recursive: true });
  return 1 + Math.max(0, ...(await readdir(folder)).map((name) => Number(/^(\d+)-/.exec(name)?.[1] ?? 0)));
}

/** The workflow of this id and everything it started. A file says which workflow it was: replayed under another id it would fail misleadingly. */
export async function recordHistories({ client }: TestTemporal, root: string, name: string): Promise<void> {
  const ids: string[] = [];
  for await (const { workflowId } of client.workflow.list())
    if (workflowId === root || workflowId.startsWith(`${root}/`)) ids.push(workflowId);
  for (const workflowId of ids) {
    const history = await client.workflow.getHandle(workflowId).fetchHistory();
    const part = workflowId
      .slice(root.length)
      .split("/")
      .filter((word) => word !== "" && !/^(protect-|f1|t1)/.test(word))
      .join("-");
    const file = path.join(folder, `${name}${part === "" ? "" : `-${part}`}.json`);
    const events = JSON.parse(historyToJSON(history)) as unknown;
    await writeFile(file, `${JSON.stringify({ workflowId, history: events }, neutral)}\n`);
    console.log(path.relative(process.cwd(), file));
  }
}

/** Where it was recorded is nobody's business, and replay does not look at it. */
function neutral(key: string, value: unknown): unknown {
  if (key === "stackTrace") return "";
  return key === "identity" ? "recorded" : value;
}
