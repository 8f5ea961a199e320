/** Composition root of the mover's process: a child of the master target, told everything over IPC, gone when that closes. */
import { Fault, faultFromJson } from "#model/fault.ts";
import type { JsonObject } from "#model/json.ts";
import type { Address } from "#ports/link.ts";
import { createLog } from "../adapters/log/pino-log.ts";
import type { IdentityFiles } from "../adapters/pki/identity-files.ts";
import { startReceiver, type ReceivedGroup, type Receiver } from "../data-mover/receiver.ts";
import { openChildChannel } from "../master-target/child-channel.ts";
import { decodeKeys, keysFrom, openReplica, openStore, type ChildSetup } from "./mover-setup.ts";
import { openRoleLink } from "./role-link.ts";

export interface MoverSetup extends ChildSetup {
  readonly identity: IdentityFiles;
  readonly listen: Address;
  readonly groups: readonly ReceivedGroup[];
}

const log = createLog({ fields: { role: "data-mover" } });
const keys = new Map<string, Uint8Array>();
let receiver: Receiver | undefined;

const started = (): Receiver => {
  if (receiver) return receiver;
  throw new Fault("PROTOCOL_INVALID", "The mover was not set up");
};

const channel = openChildChannel(process, {
  log,
  handlers: {
    async setUp(params) {
      const setup = params as unknown as MoverSetup; // Its other end is our parent, of the same version.
      for (const [diskId, key] of decodeKeys(setup.keys)) keys.set(diskId, key);
      const link = openRoleLink(
        { site: setup.site, role: "master-target", name: setup.name, files: setup.identity },
        log,
      );
      const store = openReplica(openStore(setup.store), {
        root: setup.store.root,
        keys: keysFrom(keys),
        expectedStoreId: setup.expectedStoreId,
      });
      receiver = await startReceiver({
        link,
        listen: setup.listen,
        store,
        log,
        onProgress: (progress) => channel.notify("progress", progress as unknown as JsonObject),
      });
      for (const group of setup.groups) receiver.putGroup(group);
      return { host: receiver.address.host, port: receiver.address.port };
    },
    async putGroup(params) {
      const { group, keys: added } = params as unknown as {
        readonly group: ReceivedGroup;
        readonly keys: Record<string, string>;
      };
      for (const [diskId, key] of decodeKeys(added)) keys.set(diskId, key);
      started().putGroup(group);
    },
    dropGroup: (params) => started().dropGroup(String(params["groupId"]), faultFromJson(params["fault"])),
    endStream: (params) => started().endStream(String(params["groupId"]), faultFromJson(params["fault"])),
  },
});

// Nothing to save: what was not acknowledged, the source still has.
void channel.closed.then(() => process.exit(0));
// The terminal's Ctrl-C reaches the whole process group; our parent decides when we end.
for (const name of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(name, () => undefined);
