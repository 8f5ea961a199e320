/**
 * A realistic image: an ext4 file system with real files, those of this machine's /usr, up to `fileBytes`, hard links kept.
 * Made once and kept in the per-user cache.
 */
import { execFile } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, lstatSync, renameSync, rmSync, statSync } from "node:fs";
import { cp, link } from "node:fs/promises";
import { homedir } from "node:os";
import { dirname, join } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);

export async function benchImage({
  sizeBytes,
  fileBytes,
}: {
  readonly sizeBytes: number;
  readonly fileBytes: number;
}): Promise<string> {
  const folder = join(process.env["XDG_CACHE_HOME"] ?? join(homedir(), ".cache"), "leeward", "bench");
  const image = join(folder, `disk2-${sizeBytes}-${fileBytes}.img`);
  if (existsSync(image)) return image;
  mkdirSync(folder, { recursive: true });
  const tree = `${image}.tree`;
  const draft = `${image}.draft`;
  rmSync(tree, { recursive: true, force: true });
  let left = fileBytes;
  const linked = new Map<number, string>();
  for (const file of filesBelow("/usr")) {
    if (left <= 0) break;
    const { size, nlink, ino } = statSync(file);
    const first = linked.get(ino);
    if (first !== undefined) {
      mkdirSync(dirname(join(tree, file)), { recursive: true });
      await link(join(tree, first), join(tree, file));
      continue;
    }
    if (size > left) continue;
    left -= size;
    if (nlink > 1) linked.set(ino, file);
    await cp(file, join(tree, file), { recursive: true });
  }
  await run("truncate", ["-s", String(sizeBytes), draft]);
  await run("mke2fs", ["-q", "-t", "ext4", "-m", "0", "-d", tree, draft], { maxBuffer: 1 << 24 });
  rmSync(tree, { recursive: true, force: true });
  renameSync(draft, image);
  return image;
}

function* filesBelow(folder: string): Generator<string> {
  for (const name of readdirSync(folder).sort()) {
    const path = join(folder, name);
    const kind = lstatSync(path);
    if (kind.isDirectory()) yield* filesBelow(path);
    else if (kind.isFile()) yield path;
  }
}
