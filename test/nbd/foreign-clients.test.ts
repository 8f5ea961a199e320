/** Programs that others wrote, against our server on a real image and on a device that answers late: nbdinfo, nbdcopy, qemu-img, qemu-io, fio, libnbd. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import type { BlockDevice } from "#ports/block-device.ts";
import { openImage } from "../../src/adapters/image/image-device.ts";
import { serveNbd } from "../../src/nbd/server.ts";
import { createMemoryDevice, patterned } from "./memory-device.ts";

const run = promisify(execFile);
const MIB = 1 << 20;

async function served(
  device: (folder: string) => BlockDevice | Promise<BlockDevice>,
  body: (uri: string, folder: string) => Promise<void>,
): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "leeward-nbd-"));
  let opened: BlockDevice | undefined;
  let server: Awaited<ReturnType<typeof serveNbd>> | undefined;
  try {
    const serving = await device(folder);
    opened = serving;
    server = await serveNbd({
      exports: { find: (name) => (name === "disk" ? serving : undefined), names: () => ["disk"] },
      listen: { path: join(folder, "nbd.sock") },
    });
    await body(`nbd+unix:///disk?socket=${join(folder, "nbd.sock")}`, folder);
  } finally {
    await server?.close();
    await opened?.close();
    rmSync(folder, { recursive: true, force: true });
  }
}

const imageOf = (bytes: number) => (folder: string) => {
  writeFileSync(join(folder, "disk.img"), patterned(bytes));
  return openImage(join(folder, "disk.img"));
};

test("nbdinfo sees the export, its size, flags and sizes", async () => {
  await served(imageOf(MIB), async (uri) => {
    const info = JSON.parse((await run("nbdinfo", ["--json", uri])).stdout) as {
      protocol: string;
      structured: boolean;
      exports: Record<string, unknown>[];
    };
    const [disk] = info.exports;
    assert.equal(info.protocol, "newstyle-fixed");
    assert.equal(info.structured, true);
    assert.equal(disk?.["export-size"], MIB);
    assert.deepEqual(disk["contexts"], ["base:allocation"]);
    for (const flag of ["can_multi_conn", "can_flush", "can_fua", "can_trim", "can_zero", "can_df", "can_cache"])
      assert.equal(disk[flag], true, flag);
    assert.equal(disk["block_size_maximum"], 32 * MIB);
    assert.match((await run("nbdinfo", ["--list", uri])).stdout, /export="disk"/);
  });
});

test("nbdcopy and qemu-img copy a disk in and out without a difference", async () => {
  await served(imageOf(48 * MIB), async (uri, folder) => {
    const source = join(folder, "source.img");
    const bytes = patterned(48 * MIB + 4096).subarray(4096);
    writeFileSync(source, bytes);
    await run("nbdcopy", ["--flush", source, uri]);
    assert.match((await run("qemu-img", ["compare", "-f", "raw", "-F", "raw", source, uri])).stdout, /identical/);
    await run("nbdcopy", [uri, join(folder, "out.img")]);
    assert.match(
      (await run("qemu-img", ["compare", "-f", "raw", "-F", "raw", source, join(folder, "out.img")])).stdout,
      /identical/,
    );
    await run("qemu-img", ["convert", "-n", "-f", "raw", "-O", "raw", join(folder, "out.img"), uri]);
    assert.match(
      (await run("qemu-img", ["compare", "-f", "raw", "-F", "raw", source, join(folder, "disk.img")])).stdout,
      /identical/,
    );
  });
});

test("block status reaches nbdinfo: data, holes and zeroes, merged and complete", async () => {
  const runs = (offset: number, length: number): { length: number; hole: boolean; zero: boolean }[] => {
    // Data, hole, written zeroes, in turns of 64 KiB.
    const found = [];
    for (let at = offset; at < offset + length;) {
      const kind = Math.floor(at / 65536) % 3;
      const piece = Math.min(65536 - (at % 65536), offset + length - at);
      found.push({ length: piece, hole: kind === 1, zero: kind !== 0 });
      at += piece;
    }
    return found;
  };
  await served(
    () => createMemoryDevice(Buffer.alloc(MIB), { status: runs }),
    async (uri) => {
      const map = JSON.parse((await run("nbdinfo", ["--json", "--map", uri])).stdout) as {
        offset: number;
        length: number;
        type: number;
      }[];
      assert.equal(map.length, 16);
      assert.deepEqual(
        map.map(({ offset, type }) => [offset / 65536, type]),
        Array.from({ length: 16 }, (_, index) => [index, [0, 3, 2][index % 3]]),
      );
    },
  );
});

test("fio writes and verifies with many requests in flight, on an image", { timeout: 60_000 }, async () => {
  await served(imageOf(32 * MIB), async (uri, folder) => {
    await run(
      "fio",
      [
        "--name=verify",
        "--ioengine=nbd",
        `--uri=${uri}`,
        "--rw=randwrite",
        "--bsrange=512-64k",
        "--bs_unaligned=1",
        "--iodepth=32",
        "--size=32m",
        "--io_size=24m",
        "--verify=crc32c",
        "--do_verify=1",
        "--verify_fatal=1",
        "--fsync=64",
      ],
      { cwd: folder },
    );
  });
});

test("fio writes and verifies on a device that answers late and out of order", { timeout: 60_000 }, async () => {
  await served(
    () => createMemoryDevice(patterned(8 * MIB), { lateMs: () => Math.random() * 4 }),
    async (uri, folder) => {
      await run(
        "fio",
        [
          "--name=verify",
          "--ioengine=nbd",
          `--uri=${uri}`,
          "--rw=randwrite",
          "--bs=4k",
          "--iodepth=32",
          "--size=8m",
          "--verify=crc32c",
          "--do_verify=1",
          "--verify_fatal=1",
        ],
        { cwd: folder },
      );
    },
  );
});

const LIBNBD = `
import nbd, sys
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.connect_uri(sys.argv[1])
size = h.get_size()
assert h.can_multi_conn() and h.get_structured_replies_negotiated()
h.pwrite(b"leeward!" * 1000, 12345, nbd.CMD_FLAG_FUA)
assert bytes(h.pread(8000, 12345)) == b"leeward!" * 1000
h.zero(3000, 12345 + 100, nbd.CMD_FLAG_NO_HOLE)
assert bytes(h.pread(8000, 12345)) == (b"leeward!" * 1000)[:100] + bytes(3000) + (b"leeward!" * 1000)[3100:]
h.flush()
h.trim(1 << 20, 0)
h.cache(4096, 0)
seen = []
h.pread_structured(70000, 5, lambda buf, offset, status, err: seen.append((offset, len(buf), status)), nbd.CMD_FLAG_DF)
assert seen == [(5, 70000, nbd.READ_DATA)], seen
h.set_strict_mode(0)
for call in (lambda: h.pread(10, size - 5), lambda: h.pwrite(b"x" * 10, size - 5), lambda: h.zero(10, 0, nbd.CMD_FLAG_FAST_ZERO)):
    try:
        call()
        raise SystemExit("no error")
    except nbd.Error as error:
        print(error.errno)
h.shutdown()
`;

test("libnbd negotiates, reads in structured chunks, and gets the errors that the document names", async () => {
  await served(imageOf(8 * MIB), async (uri) => {
    const { stdout } = await run("/usr/bin/python3", ["-c", LIBNBD, uri]);
    assert.deepEqual(stdout.trim().split("\n"), ["EINVAL", "ENOSPC", "ENOTSUP"]);
  });
});

test("qemu-io discards and writes zeroes over many megabytes", async () => {
  await served(imageOf(32 * MIB), async (uri) => {
    const { stdout } = await run("qemu-io", [
      "-f",
      "raw",
      "-d",
      "unmap",
      uri,
      "-c",
      "write -z 1000k 20m",
      "-c",
      "read -P 0 1000k 20m",
      "-c",
      "write -P 7 4k 5m",
      "-c",
      "discard 1m 2m",
      "-c",
      "write -z -u 2m 8m",
      "-c",
      "read -P 0 2m 8m",
      "-c",
      "flush",
    ]);
    assert.doesNotMatch(stdout, /failed|error/i);
  });
});
