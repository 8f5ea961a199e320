import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { isFault } from "#model/fault.ts";
import { datastorePathOf, urlOfDatastorePath } from "../../../src/adapters/vsphere/datastore-path.ts";
import { attachSpec, detachSpec, vmNameOf } from "../../../src/adapters/vsphere/machine-spec.ts";
import { viewOf, type MachineView } from "../../../src/adapters/vsphere/machine-view.ts";
import type { AnyVirtualDevice } from "../../../src/adapters/vsphere/vim-types.ts";

const REFERENCE = { type: "VirtualMachine", value: "vm-7" };
const ID = "1b6d5c1e-0000-8000-a000-000000000001";

test("a datastore's file is the same in both spellings, whatever it is called", () => {
  const part = fc.string({ unit: fc.constantFrom(..."aZ0 é%?#&+_-"), minLength: 1, maxLength: 12 });
  fc.assert(
    fc.property(part, fc.array(part, { minLength: 1, maxLength: 3 }), (store, parts) => {
      const file = `[${store}] ${parts.join("/")}.vmdk`;
      assert.equal(datastorePathOf(urlOfDatastorePath(file)), file);
    }),
  );
});

test("a disk's URL that leads out of its datastore, or to none, is refused", () => {
  for (const url of [
    "datastore://a/../b.vmdk",
    "datastore://a/%2e%2e/b.vmdk",
    "datastore://a//b.vmdk",
    "datastore:///b.vmdk",
    "datastore://a/b.img",
    "datastore://a/%zz.vmdk",
    "datastore://%5Ba/b.vmdk",
    "file:///a.vmdk",
  ])
    assert.throws(
      () => datastorePathOf(url),
      (error) => isFault(error, "CONFIG_INVALID"),
      url,
    );
  assert.throws(
    () => datastorePathOf("nbd://127.0.0.1/a.vmdk"),
    (error) => isFault(error, "REFUSED"),
  );
});

test("a clone carries every mark of ours, and is not ours", () => {
  assert.equal(view({ "leeward.op": "op-1", "leeward.id": ID }).ours, true);
  assert.equal(view({ "leeward.op": "op-1", "leeward.id": ID.replace("1", "2") }).ours, false);
  assert.equal(view({}).ours, false);
});

test("a snapshot moves the machine to another file, and the disk is still the one at the base", () => {
  const { disks, machine } = view(
    { "leeward.op": "op-1", "leeward.id": ID, "leeward.disks": '{"data":"[a] b/b.vmdk"}' },
    { parent: true },
  );
  assert.deepEqual(disks[0]?.files, ["[a] b/b-000001.vmdk", "[a] b/b.vmdk"]);
  assert.deepEqual(machine.disks, [{ diskId: "data", url: "datastore://a/b/b.vmdk" }]);
});

test("a disk gets the first free place beside the controller's own, and no disk is left out silently", () => {
  let now = view({ "leeward.op": "op-1", "leeward.id": ID });
  const units: number[] = [];
  for (let at = 0; at < 14; at++) {
    const spec = attachSpec(now, { diskId: `d${at}`, url: `datastore://a/d${at}.vmdk` });
    const device = spec.deviceChange?.[0]?.device;
    assert.ok(device?.unitNumber !== undefined);
    units.push(device.unitNumber);
    now = { ...now, devices: [...now.devices, device] };
  }
  assert.deepEqual(units, [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15]);
  assert.throws(
    () => attachSpec(now, { diskId: "one too many", url: "datastore://a/x.vmdk" }),
    (error) => isFault(error, "CONFIG_INVALID"),
  );
});

test("detaching never asks vCenter to touch a file", () => {
  const now = view({ "leeward.op": "op-1", "leeward.id": ID, "leeward.disks": '{"data":"[a] b/b.vmdk"}' });
  const spec = detachSpec(now, now.disks);
  assert.deepEqual(
    spec.deviceChange?.map(({ operation, fileOperation }) => [operation, fileOperation]),
    [["remove", undefined]],
  );
  assert.deepEqual(
    spec.extraConfig?.map(({ key, value }) => [key, value]),
    [["leeward.disks", "{}"]],
  );
});

test("a machine's name in vCenter is bounded, has no letter that vCenter escapes, and ends with its own id", () => {
  fc.assert(
    fc.property(fc.string({ unit: "binary", maxLength: 120 }), (name) => {
      const made = vmNameOf(name, ID);
      assert.ok(
        made.length <= 80 && made.isWellFormed() && made.endsWith("-leeward-1b6d5c1e") && !/[%/\\]/.test(made),
        made,
      );
    }),
  );
});

function view(options: Readonly<Record<string, string>>, { parent = false } = {}): MachineView {
  const base = { $type: "VirtualDiskFlatVer2BackingInfo", fileName: "[a] b/b.vmdk", diskMode: "persistent" } as const;
  const devices: readonly AnyVirtualDevice[] = [
    { $type: "ParaVirtualSCSIController", key: 1000, busNumber: 0, sharedBus: "noSharing" },
    {
      $type: "VirtualDisk",
      key: 2000,
      controllerKey: 1000,
      unitNumber: 0,
      capacityInKB: 4,
      backing: parent ? { ...base, fileName: "[a] b/b-000001.vmdk", parent: base } : base,
    },
  ];
  const found = viewOf(REFERENCE, {
    name: "web",
    "config.instanceUuid": ID,
    "config.hardware.device": devices,
    "config.extraConfig": Object.entries(options).map(([key, value]) => ({ key, value })),
  });
  assert.ok(found !== undefined);
  return found;
}
