/** One disk of a tap: the image, its write intent, change tracking, and the socket where the machine attaches it. */
import { mkdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { connect } from "node:net";
import { dirname, join } from "node:path";
import { Fault } from "#model/fault.ts";
import type { BlockDevice } from "#ports/block-device.ts";
import type { Clock } from "#ports/clock.ts";
import type { Log } from "#ports/log.ts";
import { serveNbd } from "../../nbd/server.ts";
import { createCaptureDevice } from "./capture-device.ts";
import type { CaptureDevice } from "./capture-device.ts";
import { tapUrl } from "./tap-protocol.ts";
import type { TapDiskConfig, TapDiskStatus } from "./tap-protocol.ts";
import { openWriteIntent } from "./write-intent.ts";

export interface TapDisk {
  readonly config: TapDiskConfig;
  readonly capture: CaptureDevice;
  /** Goes on under the disk id of `config`, unsynced as a whole; durable when it settles. Image and socket are the same. */
  adopt(config: TapDiskConfig): Promise<void>;
  /** `newPeriod` starts `holdMsMax` anew. */
  status(newPeriod?: boolean): TapDiskStatus;
  /** Clean: sessions end, the image is flushed, the state file says so. */
  close(): Promise<void>;
}

export interface TapDiskOptions {
  readonly openImage: (path: string) => Promise<BlockDevice>;
  readonly clock: Clock;
  readonly log: Log;
  readonly frozenBytesMax?: number;
}

/** Throws IMAGE_MISSING, IMAGE_INVALID, IMAGE_IN_USE, PORT_IN_USE (another tap serves the socket), DISK_FULL, CONFIG_INVALID. */
export async function openTapDisk(config: TapDiskConfig, options: TapDiskOptions): Promise<TapDisk> {
  const name = config.name ?? config.diskId;
  assertNames(config);
  const image = await options.openImage(config.image);
  let capture: CaptureDevice | undefined;
  try {
    const intent = openWriteIntent(join(config.stateDir, `${name}.intent`), {
      diskId: config.diskId,
      imageBytes: image.sizeBytes,
      bootId: readBootId(),
      imageMtimeNs: mtimeNs(config.image),
    });
    capture = createCaptureDevice({
      device: image,
      clock: options.clock,
      intent,
      ...(options.frozenBytesMax === undefined ? {} : { frozenBytesMax: options.frozenBytesMax }),
    });
    const opened = capture;
    await removeStaleSocket(config.socket);
    const server = await serveNbd({
      exports: {
        find: (asked) => (asked === name || asked === "" ? opened : undefined),
        names: () => [name],
      },
      listen: { path: config.socket },
      log: options.log.child({ disk: config.diskId }),
    });
    const { reason } = intent.found;
    options.log.info("Tap serves a disk", {
      disk: config.diskId,
      image: config.image,
      generation: intent.generation,
      sweep: reason,
    });
    let current = config;
    return {
      get config() {
        return current;
      },
      capture: opened,
      async adopt(next) {
        assertNames(next);
        await opened.markAllUnsynced("sync: the image was protected anew");
        intent.adopt(next.diskId);
        current = next;
      },
      status: (newPeriod = false) => ({
        diskId: current.diskId,
        image: config.image,
        sizeBytes: opened.sizeBytes,
        url: tapUrl(name, config.socket),
        clients: server.sessions().length,
        tracker: { bootId: intent.bootId, generation: intent.generation },
        ...opened.numbers(newPeriod),
      }),
      async close() {
        await server.close();
        await opened.stop(() => mtimeNs(config.image));
      },
    };
  } catch (error) {
    if (capture === undefined) await image.close();
    else await capture.stop(() => mtimeNs(config.image));
    throw error;
  }
}

function assertNames({ diskId, name = diskId }: TapDiskConfig): void {
  for (const id of [diskId, name]) {
    if (!/^[A-Za-z0-9._-]{1,128}$/.test(id))
      throw new Fault("CONFIG_INVALID", `Disk id "${id}", expected up to 128 letters, digits, dots and dashes`);
  }
}

/** A socket file that a killed process left; one that answers is somebody's. Makes the folder. Throws PORT_IN_USE. */
export async function removeStaleSocket(path: string): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<boolean>();
  const socket = connect({ path });
  socket.once("connect", () => resolve(true));
  socket.once("error", () => resolve(false)); // Nobody there, or no such file.
  const answers = await promise;
  socket.destroy();
  if (answers) {
    throw new Fault("PORT_IN_USE", `Another process serves the socket "${path}"`, {
      details: { path },
      hint: "Look for a second agent or tap with the same state folder.",
    });
  }
  mkdirSync(dirname(path), { recursive: true });
  rmSync(path, { force: true });
}

function mtimeNs(path: string): bigint {
  return statSync(path, { bigint: true }).mtimeNs;
}

function readBootId(): string {
  return readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
}
