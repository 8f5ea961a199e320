import { after, before } from "node:test";
import { systemClock } from "../../../src/adapters/clock/system-clock.ts";
import { systemRandom } from "../../../src/adapters/random/system-random.ts";
import { s3ObjectStore } from "../../../src/adapters/s3/s3-object-store.ts";
import { objectStoreContract } from "../../contract/object-store.contract.ts";
import { startVersitygw, type Versitygw } from "../../support/versitygw.ts";

let server: Versitygw;
before(async () => {
  server = await startVersitygw();
});
after(() => server.stop());

let buckets = 0;

objectStoreContract("S3 (versitygw)", async () => {
  const store = s3ObjectStore(
    { ...server, bucket: `contract-${++buckets}` },
    { clock: systemClock, random: systemRandom },
  );
  await store.ensureBucket();
  return { store, close: () => store.close() };
});
