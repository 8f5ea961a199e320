/** Raw images: what is refused and why, and what a failed flush means. */
import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import {
  linkSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { isFault } from "#model/fault.ts";
import type { FaultCode } from "#model/fault.ts";
import { openImage } from "../../src/adapters/image/image-device.ts";
import { patterned } from "../nbd/memory-device.ts";

const folder = mkdtempSync(join(tmpdir(), "leeward-image-"));
after(() => rmSync(folder, { recursive: true, force: true }));
let count = 0;

function image(bytes: number): string {
  const path = join(folder, `disk${++count}.img`);
  writeFileSync(path, patterned(bytes));
  return path;
}

const fault =
  (code: FaultCode, text = /./) =>
  (error: unknown) =>
    isFault(error, code) && text.test(error.message);

test("what is missing, empty, odd, no file or not raw is refused with what was expected", async () => {
  await assert.rejects(openImage(join(folder, "nope.img")), fault("IMAGE_MISSING", /nope\.img/));
  await assert.rejects(openImage(folder), fault("IMAGE_INVALID", /neither/));
  await assert.rejects(openImage("/dev/null"), fault("IMAGE_INVALID"));
  await assert.rejects(openImage(image(0)), fault("IMAGE_INVALID", /empty/));
  await assert.rejects(openImage(image(1000)), fault("IMAGE_INVALID", /512/));
  const qcow2 = join(folder, "disk.qcow2");
  execFileSync("qemu-img", ["create", "-q", "-f", "qcow2", qcow2, "8M"]);
  truncateSync(qcow2, Math.ceil(statSync(qcow2).size / 512) * 512);
  await assert.rejects(openImage(qcow2), fault("IMAGE_INVALID", /qcow2/));
});

test("an image belongs to one tap, under all its names, until it is closed", async () => {
  const path = image(4096);
  symlinkSync(path, `${path}.symlink`);
  linkSync(path, `${path}.link`);
  const device = await openImage(path);
  for (const name of [path, `${path}.symlink`, `${path}.link`])
    await assert.rejects(openImage(name), fault("IMAGE_IN_USE", /another tap/));
  const reader = await openImage(path, { readOnly: true });
  await reader.close();
  await device.close();
  const again = await openImage(path);
  await again.close();
});

test("an image that QEMU has open is in use", async () => {
  const path = image(1 << 20);
  const qemu = spawn("qemu-io", ["-f", "raw", path], { stdio: ["pipe", "pipe", "ignore"] });
  try {
    await once(qemu.stdout, "data");
    await assert.rejects(openImage(path), fault("IMAGE_IN_USE", /another program/));
  } finally {
    qemu.kill();
    await once(qemu, "exit");
  }
  const device = await openImage(path);
  await device.close();
});

test("what is written is there, in pieces as the system takes them", async () => {
  const path = image(8 << 20);
  const writes: number[] = [];
  const device = await openImage(path, {
    system: {
      // A system that writes half of what it is asked to.
      writeSync: (fd, data, at, length, offset) => {
        writes.push(length);
        return writeSync(fd, data, at, Math.ceil(length / 2), offset);
      },
    },
  });
  const expected = patterned(8 << 20);
  await device.write(Buffer.alloc(10_000, 7), 333);
  expected.fill(7, 333, 10_333);
  await device.zero(100, 50);
  expected.fill(0, 100, 150);
  await device.zero(1 << 20, 3 << 20, { mayTrim: true });
  expected.fill(0, 1 << 20, 4 << 20);
  await device.zero((4 << 20) + 1, (2 << 20) + 5);
  expected.fill(0, (4 << 20) + 1, (6 << 20) + 6);
  await device.trim(5, 5000);
  await device.flush();
  const seen = Buffer.alloc(8 << 20);
  await device.read(seen, 0);
  assert.ok(seen.equals(expected));
  await device.close();
  assert.ok(readFileSync(path).equals(expected));
  assert.ok(writes.length > 10);
});

test("trimmed megabytes take no room any more, where the file system can do that", async () => {
  const path = image(8 << 20);
  const device = await openImage(path);
  await device.trim(1 << 20, 4 << 20);
  await device.close();
  const { blocks, size } = statSync(path);
  const probe = image(2 << 20);
  let canPunch = true;
  try {
    execFileSync("fallocate", ["--punch-hole", "--offset", "0", "--length", String(1 << 20), probe], {
      stdio: "ignore",
    });
  } catch {
    canPunch = false;
  }
  if (canPunch) assert.ok(blocks * 512 <= size - (4 << 20), `${blocks} blocks`);
});

test("zeroes that may be a hole take no room in a new image, and are zeroes in an old one", async () => {
  const path = join(folder, "sparse.img");
  writeFileSync(path, "");
  truncateSync(path, 8 << 20);
  const fresh = await openImage(path);
  for (let at = 0; at < 8 << 20; at += 65_536) await fresh.zero(at, 65_536, { mayTrim: true, fua: true });
  await fresh.zero(512, 3 << 20, { mayTrim: true });
  assert.equal(statSync(path).blocks, 0);
  await fresh.zero(0, 65_536, { mayTrim: false });
  assert.equal(statSync(path).blocks * 512, 65_536, "whoever wants the room has it");
  await fresh.close();

  const written = image(2 << 20);
  const device = await openImage(written);
  await device.zero(1000, 65_536, { mayTrim: true });
  await device.close();
  assert.ok(readFileSync(written).equals(patterned(2 << 20).fill(0, 1000, 66_536)));
});

test("a flush that failed stays failed, for FUA too, and a full disk has its own code", async () => {
  let failing = true;
  let full = false;
  const device = await openImage(image(4096), {
    system: {
      fdatasync: (_fd, done) =>
        setImmediate(() => done(failing ? Object.assign(new Error("I/O error"), { code: "EIO" }) : null)),
      writeSync: (fd, data, at, length, offset) => {
        if (full) throw Object.assign(new Error("no space"), { code: "ENOSPC" });
        return writeSync(fd, data, at, length, offset);
      },
    },
  });
  await assert.rejects(Promise.resolve(device.flush()), fault("SOURCE_READ_FAILED"));
  failing = false;
  await assert.rejects(Promise.resolve(device.flush()), fault("SOURCE_READ_FAILED"));
  await assert.rejects(
    Promise.resolve(device.write(Buffer.alloc(10, 1), 0, { fua: true })),
    fault("SOURCE_READ_FAILED"),
  );
  full = true;
  assert.throws(() => device.write(Buffer.alloc(10, 1), 0), fault("DISK_FULL"));
  await device.close();
});

test("flushes that arrive while one runs share the next, which begins after them", async () => {
  const begun: (() => void)[] = [];
  const device = await openImage(image(4096), { system: { fdatasync: (_fd, done) => begun.push(() => done(null)) } });
  const first = Promise.resolve(device.flush());
  const others = [device.flush(), device.flush(), device.flush()];
  assert.equal(begun.length, 1);
  begun[0]!();
  await first;
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(begun.length, 2);
  begun[1]!();
  await Promise.all(others);
  assert.equal(begun.length, 2);
  await device.close();
});
