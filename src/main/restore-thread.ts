/** Composition root of one thread of a restore: its own connections to the store. Started by src/data-mover/restore-threads.ts. */
import { systemClock } from "../adapters/clock/system-clock.ts";
import { systemRandom } from "../adapters/random/system-random.ts";
import { s3ObjectStore, type S3Settings } from "../adapters/s3/s3-object-store.ts";
import { serveRestoreThread } from "../data-mover/restore-threads.ts";

// The configuration comes from a main/ module of the same version.
serveRestoreThread((config) => s3ObjectStore(config as S3Settings, { clock: systemClock, random: systemRandom }));
