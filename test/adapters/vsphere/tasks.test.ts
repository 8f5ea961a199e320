import assert from "node:assert/strict";
import { test } from "node:test";
import { isFault } from "#model/fault.ts";
import { systemClock } from "../../../src/adapters/clock/system-clock.ts";
import { asFaults } from "../../../src/adapters/vsphere/faults.ts";
import type { Vim, VimSession } from "../../../src/adapters/vsphere/session.ts";
import { VimError } from "../../../src/adapters/vsphere/soap.ts";
import { runTask } from "../../../src/adapters/vsphere/tasks.ts";

const TASK = { type: "Task", value: "task-1" };
const MACHINE = { type: "VirtualMachine", value: "vm-7" };

test("a task's result is its result, and a task's fault is thrown as vCenter gave it", async () => {
  const done = run({ "info.state": "success", "info.result": MACHINE });
  assert.deepEqual(await done, MACHINE);
  const fault = { $type: "FileLocked", file: "[a] b.vmdk" } as const;
  const failed = run({ "info.state": "error", "info.error": { fault, localizedMessage: "Locked" } });
  await assert.rejects(failed, (error) => error instanceof VimError && error.fault.$type === "FileLocked");
});

test("a task that takes too long still runs, and the machine's question is what a person must answer", async () => {
  const asked = run({ "info.state": "running" }, { text: "Did you move it or copy it?" });
  await assert.rejects(asked, (error) => {
    assert.ok(isFault(error, "TIMED_OUT") && error.details["task"] === "task-1");
    assert.match(error.message, /Did you move it or copy it\?/);
    assert.match(error.hint ?? "", /Answer/);
    return true;
  });
  await assert.rejects(run({ "info.state": "running" }), (error) => {
    return isFault(error, "TIMED_OUT") && !error.message.includes("asks");
  });
});

test("each refusal of vCenter has a code by which a caller knows whether to come again, to look, or to call a person", async () => {
  const cases = [
    [{ $type: "NoPermission", privilegeId: "Network.Assign" }, "REFUSED"],
    [{ $type: "InvalidLogin" }, "CREDENTIALS_REJECTED"],
    [{ $type: "NoDiskSpace", datastore: "a", file: "b" }, "DISK_FULL"],
    [{ $type: "FileNotFound", file: "b" }, "IMAGE_MISSING"],
    [{ $type: "FileLocked", file: "b" }, "IMAGE_IN_USE"],
    [{ $type: "GenericVmConfigFault", reason: "Failed to lock the file" }, "IMAGE_IN_USE"],
    [{ $type: "GenericVmConfigFault", reason: "Something else" }, "HYPERVISOR_UNAVAILABLE"],
    [{ $type: "ManagedObjectNotFound" }, "NOT_FOUND"],
    [{ $type: "InvalidArgument", invalidProperty: "spec" }, "CONFIG_INVALID"],
    [{ $type: "TaskInProgress" }, "HYPERVISOR_UNAVAILABLE"],
    [{ $type: "MethodFault" }, "HYPERVISOR_UNAVAILABLE"],
  ] as const;
  for (const [fault, code] of cases) {
    const failing = asFaults("do it", () => Promise.reject(new VimError(fault, "")));
    await assert.rejects(failing, (error) => {
      assert.ok(isFault(error, code), `${fault.$type}: ${String(error)}`);
      assert.equal(error.details["vimFault"], fault.$type);
      return true;
    });
  }
  await assert.rejects(
    asFaults("do it", () => Promise.reject(new RangeError("a bug"))),
    RangeError,
  );
});

function run(info: Readonly<Record<string, unknown>>, question?: { readonly text: string }): Promise<unknown> {
  const values: Readonly<Record<string, unknown>> = {
    "info.entity": MACHINE,
    ...(question === undefined ? {} : { "runtime.question": question }),
  };
  const changeSet = Object.entries(info).map(([name, val]) => ({ name, op: "assign", val }));
  let told = false;
  const call = (
    method: string,
    request: { readonly specSet?: readonly [{ propSet: readonly [{ pathSet: string[] }] }] },
  ): Promise<unknown> => {
    if (method === "WaitForUpdatesEx") {
      if (told) return Promise.resolve(undefined);
      told = true;
      return Promise.resolve({ version: "1", filterSet: [{ objectSet: [{ kind: "enter", obj: TASK, changeSet }] }] });
    }
    if (method === "RetrievePropertiesEx") {
      const path = request.specSet?.[0].propSet[0].pathSet[0] ?? "";
      // Others of a task or machine have at least one value; only what is asked about is absent.
      const propSet = path in values ? [{ name: path, val: values[path] }] : [{ name: "currentSession", val: {} }];
      return Promise.resolve({ objects: [{ obj: TASK, propSet }] });
    }
    return Promise.resolve(TASK);
  };
  const vim = { content: { propertyCollector: TASK, sessionManager: TASK }, call } as unknown as Vim; // Scripted.
  const session: VimSession = { run: (work) => work(vim), [Symbol.asyncDispose]: () => Promise.resolve() };
  return runTask(() => Promise.resolve(TASK), { session, clock: systemClock, timeoutMs: 150, doing: "do it" });
}
