/**
 * The commit protocol with one safety step removed: copies of its sources, changed at one place. A change that does not match exactly once is
 * a bug here: then the sources moved on, and this file must follow.
 */
import assert from "node:assert/strict";
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import type { WorldOptions } from "./world.ts";

export interface Mutation {
  /** What the protocol no longer does. */
  readonly removed: string;
  /** Where it shows soonest; default: anywhere. */
  readonly where?: WorldOptions;
  readonly changes: readonly { readonly file: string; readonly find: string; readonly replace: string }[];
}

export const MUTATIONS: readonly Mutation[] = [
  {
    removed: "the look at the highest claim before an epoch is taken (OPEN 2)",
    changes: [
      {
        file: "commit-log.ts",
        find: "if (!ours) throw fencedBy(disk, highest, { site, branch, epoch: 0 }); // [step 2]",
        replace: "void ours;",
      },
    ],
  },
  {
    removed: "the look for somebody newer between the tail and the fence (OPEN 4)",
    changes: [
      {
        file: "commit-log.ts",
        find: "await assertNewest(disk, own, listed); // [step 4]",
        replace: "void assertNewest;",
      },
    ],
  },
  {
    removed: "the fence of a new writer (OPEN 5)",
    changes: [
      {
        file: "commit-log.ts",
        find: "const fenced = await append(disk, own, listed, (place) => disk.codec.sealFence(place)); // [step 5]",
        replace: "const fenced = listed;",
      },
    ],
  },
  {
    where: { collects: true },
    removed: "the look for newer claims before a commit is acknowledged (CYCLE d)",
    changes: [
      {
        file: "commit-log.ts",
        find: "const newer = await readNewerClaim(disk, own.epoch); // [step d]",
        replace: "const newer = undefined as Awaited<ReturnType<typeof readNewerClaim>>;",
      },
    ],
  },
  {
    removed: "the look at the slot after an answer that is none (CYCLE d)",
    changes: [
      {
        file: "create-once.ts",
        find: "const found = await withRetries(context, request.look); // [read back]",
        replace:
          "if (trouble !== undefined && request.key.includes('/journal/')) return undefined; const found = await withRetries(context, request.look);",
      },
    ],
  },
  {
    where: { disks: 1, collects: false },
    removed: "that a PUT is repeated with the same bytes (CYCLE d)",
    changes: [
      {
        file: "commit-log.ts",
        find: "const sealed = await seal({ branch, epoch, seq,",
        replace: "let sealed = await seal({ branch, epoch, seq,",
      },
      {
        file: "commit-log.ts",
        find: "body: sealed.body, // [same bytes]",
        replace:
          "get body() { sealed = seal({ branch, epoch, seq, chain: last.commitHash, writerId }) as SealedCommit; return sealed.body; },",
      },
    ],
  },
  {
    removed: "that an epoch has one holder, even within a process",
    changes: [{ file: "claims.ts", find: "holder: `${process}/${writerId}`", replace: 'holder: "somebody"' }],
  },
  {
    where: { disks: 2, collects: false, slowKeys: "/d2/epochs/", storm: 700 },
    removed: "that nobody may write while a move is under way",
    changes: [
      {
        file: "disk-moves.ts",
        find: "const { epoch } = await claimForMove(disk, { ...move, moving: true }); // [moving]",
        replace: "const { epoch } = await claimForMove(disk, { ...move, moving: false });",
      },
    ],
  },
  {
    removed: "that all disks are fenced before a point is chosen",
    changes: [
      {
        file: "group-fence.ts",
        find: "const disks = await Promise.all(",
        replace: "const [early] = await listPoints(group, { limit: 1, branch });\n  const disks = await Promise.all(",
      },
      {
        file: "group-fence.ts",
        find: "const [newestPoint] = await listPoints(group, { limit: 1, branch });",
        replace: "const newestPoint = early;",
      },
    ],
  },
  {
    where: { stillness: 0.7, disks: 1, collects: false, slowKeys: "/barriers/" },
    removed: "the look for newer claims before a barrier without commits is acknowledged",
    changes: [
      {
        file: "commit-log.ts",
        find: "assertNewest: () => assertNewest(disk, own, tail), // [quiet barrier]",
        replace: "assertNewest: async () => undefined,",
      },
    ],
  },
  {
    where: { collects: false },
    removed: "the completion of barriers that are durable everywhere",
    changes: [
      {
        file: "group-fence.ts",
        find: "await completeBarriers(group, { branch, groupEpoch, disks }); // [complete barriers]",
        replace: "void completeBarriers;",
      },
    ],
  },
  {
    where: { disks: 2, stillness: 0 },
    removed: "that a barrier needs the commits of all disks that took part in its cut",
    changes: [
      {
        file: "barriers.ts",
        find: "if (own.length < Math.max(...own.map((commit) => commit.cycleDisks ?? disks.length))) continue; // [every member]",
        replace: "",
      },
    ],
  },
  {
    removed: "that a branch ends its parents where it left them",
    changes: [
      {
        file: "branch-reader.ts",
        find: "yield* readBranch(disk, origin.parent.branch, origin.parent); // [branch isolation]",
        replace: "yield* readBranch(disk, origin.parent.branch);",
      },
    ],
  },
  {
    where: { disks: 1, collects: false },
    removed: "that an old order cannot overtake a newer one",
    changes: [
      {
        file: "group-fence.ts",
        find: "if (highest > (request.knownEpoch ?? highest)) throw outOfDate(group, request, highest); // [known epoch]",
        replace: "void outOfDate;",
      },
    ],
  },
];

const SOURCES = new URL("../../src/data-mover/", import.meta.url);
const SCRATCH = fileURLToPath(new URL("../../.tmp/", import.meta.url));

/** The commit protocol with one step removed, to be loaded from its folder; disposing removes it. */
export function mutate(mutation: Mutation): ReturnType<typeof copyChanged> {
  return copyChanged(["commit-log.ts", "group-fence.ts", "points.ts"], mutation.changes);
}

/**
 * A changed copy of these modules of the data mover and of what they import there. It lies inside the package, so that `#model/…` still means what
 * it says; disposing removes it.
 */
export async function copyChanged(
  roots: readonly string[],
  changes: Mutation["changes"],
): Promise<AsyncDisposable & { readonly folder: URL }> {
  await mkdir(SCRATCH, { recursive: true });
  const folder = await mkdtemp(join(SCRATCH, "changed-"));
  const dispose = (): Promise<void> => rm(folder, { recursive: true, force: true });
  try {
    const files = await modulesOf(...roots);
    for (const { file } of changes) assert.ok(files.has(file), `${file} is one of the modules`);
    for (const file of files) {
      let source = await readFile(new URL(file, SOURCES), "utf8");
      for (const { find, replace } of changes.filter((change) => change.file === file)) {
        assert.equal(source.split(find).length - 1, 1, `"${find}" must be in ${file} exactly once`);
        source = source.replace(find, () => replace);
      }
      await writeFile(join(folder, file), source);
    }
    return { folder: pathToFileURL(`${folder}/`), [Symbol.asyncDispose]: dispose };
  } catch (error) {
    await dispose();
    throw error;
  }
}

/** The files that these import from their own folder, and so on. */
async function modulesOf(...roots: readonly string[]): Promise<Set<string>> {
  const there = new Set(await readdir(SOURCES));
  const found = new Set(roots);
  for (const file of found) {
    const source = await readFile(new URL(file, SOURCES), "utf8");
    for (const [, name] of source.matchAll(/from "\.\/([^"]+)"/g)) if (there.has(name!)) found.add(name!);
  }
  return found;
}
