import assert from "node:assert/strict";
import { test } from "node:test";
import { isFault } from "#model/fault.ts";
import { decodeAnswer, encodeCall, VimError } from "../../../src/adapters/vsphere/soap.ts";
import type { AnyVirtualDevice } from "../../../src/adapters/vsphere/vim-types.ts";

const MACHINE = { type: "VirtualMachine", value: "vm-7" };

test("fields go out in the order of the wire, whatever order the object has them in", () => {
  const disk = {
    capacityInBytes: 1024,
    unitNumber: 3,
    capacityInKB: 1,
    $type: "VirtualDisk",
    key: -10,
    controllerKey: -1,
    backing: { diskMode: "persistent", $type: "VirtualDiskFlatVer2BackingInfo", fileName: "[a] b/<c>.vmdk" },
  } as const;
  const text = encodeCall("ReconfigVM_Task", {
    spec: { deviceChange: [{ $type: "VirtualDeviceConfigSpec", device: disk, operation: "add" }] },
    _this: MACHINE,
  });
  const body = /<ReconfigVM_Task xmlns="urn:vim25">(.*)<\/ReconfigVM_Task>/.exec(text)?.[1];
  assert.equal(
    body,
    '<_this type="VirtualMachine">vm-7</_this><spec><deviceChange><operation>add</operation>' +
      '<device xsi:type="VirtualDisk"><key>-10</key>' +
      '<backing xsi:type="VirtualDiskFlatVer2BackingInfo"><fileName>[a] b/&#60;c&#62;.vmdk</fileName><diskMode>persistent</diskMode></backing>' +
      "<controllerKey>-1</controllerKey><unitNumber>3</unitNumber><capacityInKB>1</capacityInKB><capacityInBytes>1024</capacityInBytes>" +
      "</device></deviceChange></spec>",
  );
});

test("a field or a type that the table lacks is a bug, and nothing is sent", () => {
  const wrong = { _this: MACHINE, spec: { nmae: "typing error" } } as never;
  assert.throws(() => encodeCall("ReconfigVM_Task", wrong), RangeError);
  const device = { $type: "VirtualToaster", key: 1 } as never;
  const spec = { deviceChange: [{ $type: "VirtualDeviceConfigSpec", device }] } as const;
  assert.throws(() => encodeCall("ReconfigVM_Task", { _this: MACHINE, spec }), RangeError);
});

test("a value of any type says its type; a whole number beyond 32 bits is a long", () => {
  const spec = {
    extraConfig: ["text", true, 5, 2 ** 40].map((value) => ({ $type: "OptionValue", key: "k", value }) as const),
  };
  const text = encodeCall("ReconfigVM_Task", { _this: MACHINE, spec });
  assert.deepEqual(
    [...text.matchAll(/<value xsi:type="xsd:(\w+)">([^<]*)</g)].map(([, type, value]) => [type, value]),
    [
      ["string", "text"],
      ["boolean", "true"],
      ["int", "5"],
      ["long", String(2 ** 40)],
    ],
  );
});

test("lists are lists by the table, heirs are known by any prefix, and what we do not use is passed over", () => {
  const page = decodeAnswer(
    "RetrievePropertiesEx",
    answer(
      "RetrievePropertiesEx",
      `<objects><obj type="VirtualMachine">vm-7</obj>
        <propSet><name>name</name><val xmlns:Q="http://www.w3.org/2001/XMLSchema" Q:type="Q:string"> 007 &amp; co </val></propSet>
        <propSet><name>config.hardware.device</name><val XMLSchema-instance:type="ArrayOfVirtualDevice">
          <VirtualDevice xsi:type="VirtualDisk"><key>2000</key><later>9</later><capacityInKB>9007199254740991</capacityInKB></VirtualDevice>
          <VirtualDevice xsi:type="VirtualToaster"><key>3000</key><slots>2</slots></VirtualDevice></val></propSet>
      </objects>`,
    ),
  );
  assert.equal(page?.objects.length, 1);
  const [named, devices] = page?.objects[0]?.propSet ?? [];
  assert.equal(named?.val, " 007 & co ");
  assert.deepEqual(devices?.val as readonly AnyVirtualDevice[], [
    { $type: "VirtualDisk", key: 2000, capacityInKB: Number.MAX_SAFE_INTEGER },
    { $type: "VirtualToaster", key: 3000 },
  ]);
  assert.equal(decodeAnswer("FindByUuid", envelope("<FindByUuidResponse/>")), undefined);
});

test("a SOAP fault is vCenter's own fault with its fields; an answer to another call, or no SOAP, is not used", () => {
  const fault = `<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>No room</faultstring>
    <detail><NoDiskSpaceFault xsi:type="NoDiskSpace"><file>[a] b</file><datastore>a</datastore></NoDiskSpaceFault></detail></soapenv:Fault>`;
  assert.throws(
    () => decodeAnswer("CreateVM_Task", envelope(fault)),
    (error) => {
      assert.ok(error instanceof VimError);
      assert.deepEqual(error.fault, { $type: "NoDiskSpace", file: "[a] b", datastore: "a" });
      assert.equal(error.message, "No room");
      return true;
    },
  );
  for (const text of [answer("Login", ""), "<html><body>Envelope</body></html>", "<Envelope/>", "Envelope"])
    assert.throws(
      () => decodeAnswer("CreateVM_Task", text),
      (error) => isFault(error, "PROTOCOL_INVALID"),
    );
});

function answer(method: string, returned: string): string {
  return envelope(`<${method}Response xmlns="urn:vim25"><returnval>${returned}</returnval></${method}Response>`);
}

function envelope(body: string): string {
  return `<?xml version="1.0"?><soapenv:Envelope xmlns:soapenv="x"><soapenv:Body>${body}</soapenv:Body></soapenv:Envelope>`;
}
