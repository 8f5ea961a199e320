import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { draftOf, replacementSteps, type DiskStep } from "../../../src/adapters/file/durable-files.ts";
import { isFault } from "#model/fault.ts";
import { parseStateFile } from "#model/state-file.ts";
import { durableFilesContract } from "../../contract/durable-files.contract.ts";
import { testFiles } from "../../support/test-files.ts";

durableFilesContract("waiting for the disk", {
  files: testFiles,
  read: (path) => testFiles.read(path),
  write: (path, text) => testFiles.write(path, text),
  draftOf,
});
durableFilesContract("without giving way", {
  files: testFiles,
  read: async (path) => testFiles.readSync(path),
  write: async (path, text) => testFiles.writeSync(path, text),
  draftOf,
});

const OLD = "the old text";
const NEW = "the new, longer text";
const FILE = "/state/file";

/** A file's data, or what a crash may leave of it: nothing, a part, blocks that were never written, all. */
interface Inode {
  text: string;
  synced: boolean;
}

/**
 * All that may be at FILE after a crash during step `crashAt` (or after the last one): data that was not synced may be there in part, names that were
 * not synced may be there or not, in the order in which they were made.
 */
function afterCrash(steps: readonly DiskStep[], crashAt: number): Set<string | undefined> {
  const durable = new Map<string, Inode>([[FILE, { text: OLD, synced: true }]]);
  const volatile = new Map(durable);
  let pending: ((names: Map<string, Inode>) => void)[] = [];
  const change = (apply: (names: Map<string, Inode>) => void): void => {
    apply(volatile);
    pending.push(apply);
  };
  steps.slice(0, crashAt + 1).forEach((step, index) => {
    const isCut = index === crashAt;
    switch (step.do) {
      case "make-folder":
        return;
      case "write": {
        const inode: Inode = volatile.get(step.path) ?? { text: "", synced: false };
        inode.text = step.text;
        inode.synced = step.synced && !isCut;
        change((names) => names.set(step.path, inode));
        return;
      }
      case "rename":
        change((names) => {
          const inode = names.get(step.from);
          names.delete(step.from);
          if (inode !== undefined) names.set(step.to, inode);
        });
        return;
      case "sync-folder":
        if (isCut) return;
        for (const apply of pending) apply(durable);
        pending = [];
    }
  });
  const seen = new Set<string | undefined>();
  for (let kept = 0; kept <= pending.length; kept++) {
    const names = new Map(durable);
    for (const apply of pending.slice(0, kept)) apply(names);
    const inode = names.get(FILE);
    if (inode === undefined) seen.add(undefined);
    else if (inode.synced) seen.add(inode.text);
    else
      for (let length = 0; length <= inode.text.length; length++)
        seen.add(inode.text.slice(0, length).padEnd(inode.text.length, "\0")).add(inode.text.slice(0, length));
  }
  return seen;
}

/** What goes wrong with `steps` on a disk that crashes; undefined when nothing does. */
function violation(steps: readonly DiskStep[]): string | undefined {
  for (let crashAt = 0; crashAt <= steps.length; crashAt++) {
    for (const text of afterCrash(steps, crashAt)) {
      if (text !== OLD && text !== NEW) return `a crash in step ${crashAt} leaves ${JSON.stringify(text)}`;
      if (crashAt === steps.length && text !== NEW) return "what was reported as written is not there";
    }
  }
  return undefined;
}

test("a crash at any step leaves the old file or the new one, and after the last step the new one", () => {
  const steps = replacementSteps(FILE, NEW);
  assert.equal(violation(steps), undefined);
  assert.deepEqual(afterCrash(steps, steps.length), new Set([NEW]));
  // The simulation shows both ends: it is not only the old file that survives.
  assert.deepEqual(afterCrash(steps, 3), new Set([OLD, NEW]));
});

test("the simulation has teeth: without any one of the steps it finds what is lost", () => {
  const steps = replacementSteps(FILE, NEW);
  const unsynced = steps.map((step) => (step.do === "write" ? { ...step, synced: false } : step));
  assert.match(violation(unsynced)!, /^a crash in step/);
  assert.match(violation(steps.filter((step) => step.do !== "sync-folder"))!, /not there/);
  assert.match(violation(steps.filter((step) => step.do !== "rename"))!, /not there/);
  const inPlace = steps.flatMap((step): readonly DiskStep[] =>
    step.do === "write" ? [{ ...step, path: FILE }] : step.do === "rename" ? [] : [step],
  );
  assert.match(violation(inPlace)!, /^a crash in step/);
});

test("a writer that is killed at any moment leaves a whole file, with no less than it had acknowledged", async () => {
  const folder = await mkdtemp(join(tmpdir(), "leeward-files-"));
  const path = join(folder, "count.json");
  const program = `
    import { createDurableFiles } from ${JSON.stringify(new URL("../../../src/adapters/file/durable-files.ts", import.meta.url).href)};
    const files = createDurableFiles({ fullHint: "Free space" });
    for (let number = Number(process.argv[2]) + 1; ; number++) {
      const text = JSON.stringify({ number, padding: String(number).repeat(2_000) });
      if (number % 2) files.writeSync(process.argv[1], text); else await files.write(process.argv[1], text);
      process.stdout.write(number + "\\n");
    }`;
  let acknowledged = 0;
  try {
    for (let life = 0; life < 6; life++) {
      const child = spawn(process.execPath, ["--input-type=module", "-e", program, path, String(acknowledged)], {
        stdio: ["ignore", "pipe", "inherit"],
      });
      const lines = createInterface({ input: child.stdout });
      const first = once(lines, "line");
      lines.on("line", (line) => (acknowledged = Number(line)));
      await first;
      await sleep(5 + 17 * life);
      const ended = Promise.all([once(child, "close"), once(lines, "close")]);
      child.kill("SIGKILL");
      await ended;
      const { number, padding } = JSON.parse(await readFile(path, "utf8")) as { number: number; padding: string };
      assert.equal(padding, String(number).repeat(2_000));
      assert.ok(number >= acknowledged, `${number} is there, ${acknowledged} was acknowledged`);
      acknowledged = number;
    }
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
});

test("a state file that is no JSON is told by its name and its length, never by its content", () => {
  const parse = (text: string | undefined) => parseStateFile({ path: "/s/keys.json", text, hint: "Restore it" });
  assert.equal(parse(undefined), undefined);
  assert.deepEqual(parse('{"a":1}'), { a: 1 });
  for (const torn of ["", " \n", '{"tenantKey": "c2Vjcm', "\0\0\0\0"]) {
    assert.throws(
      () => parse(torn),
      (error) =>
        isFault(error, "CONFIG_INVALID") &&
        error.hint === "Restore it" &&
        error.message.includes("/s/keys.json") &&
        !error.message.includes("c2Vjcm"),
    );
  }
});
