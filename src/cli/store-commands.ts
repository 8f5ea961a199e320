/** `leeward store …` and `leeward rescue …`: what needs a bucket, keys, and nothing that runs. */
import type { Command } from "commander";
import { Fault } from "#model/fault.ts";
import { outputOf, type CliDependencies } from "./context.ts";
import { duration, size, table, type Output } from "./output.ts";
import type { PointChoice, RescueListing, RestoredDiskView, StoreChoice, TransferProgress } from "./rescue-contract.ts";

export function addStoreCommands(program: Command, { rescue }: CliDependencies): void {
  const store = program.command("store").description("the replica store");
  withStore(store.command("probe"))
    .description("is this S3 safe to keep a replica in?")
    .action(async (options: StoreChoice, command: Command) => {
      outputOf(command).answer(await rescue.probe(options), (value) => `Safe: ${JSON.stringify(value)}`);
    });

  const save = program
    .command("rescue")
    .description("list, check, export, restore with nothing but the bucket and the keys");
  withStore(save.command("list"))
    .argument("[group]", "only this group, by name or id")
    .option("--limit <count>", "the newest points of each group only", "50")
    .option("--all", "all points")
    .description("groups, their disks, lines of history and points")
    .action(
      async (
        group: string | undefined,
        options: StoreChoice & { readonly limit: string; readonly all?: boolean },
        command: Command,
      ) => {
        const { limit: newest, all, ...choice } = options;
        const limit = all === true ? undefined : whole(newest, "--limit");
        const listing = await rescue.list({
          ...choice,
          ...(group === undefined ? {} : { group }),
          ...(limit === undefined ? {} : { limit }),
        });
        const output = outputOf(command);
        output.answer(listing, describeListing);
        if (listing.groups.some(({ points }) => points.length === limit))
          output.say(`The newest ${limit} points of each group; --all lists the others too`);
      },
    );
  withPoint(withStore(save.command("export")))
    .option("--writable", "on a throw-away overlay")
    .option("--scratch <dir>", "folder for the sockets and the overlay (the temporary one, if left out)")
    .description("a point as NBD URLs, until interrupted")
    .action(
      async (
        group: string,
        options: StoreChoice & Omit<PointChoice, "group"> & { readonly writable?: boolean; readonly scratch?: string },
        command: Command,
      ) => {
        const output = outputOf(command);
        await rescue.export({ ...options, group, writable: options.writable ?? false }, (opened) => {
          output.answer(opened, (value) => value.disks.map((disk) => `${disk.id}  ${disk.url}`).join("\n"));
          output.say(`Serving point ${opened.point.id} (${opened.point.cutAt}) until interrupted (Ctrl-C)`);
        });
      },
    );
  withPoint(withStore(save.command("restore")))
    .requiredOption("--to <dir>", "folder for the images, one DISK.raw each")
    .option("--yes", "replace files that are there")
    .description("a point as raw images, every block verified")
    .action(
      async (
        group: string,
        options: StoreChoice & Omit<PointChoice, "group"> & { readonly to: string; readonly yes?: boolean },
        command: Command,
      ) => {
        const output = outputOf(command);
        const restored = await rescue.restore({ ...options, group, yes: options.yes ?? false }, sayProgress(output));
        output.answer(restored, describeRestored);
      },
    );
}

/** The options that say which store. */
function withStore(command: Command): Command {
  return command
    .option("--store <file>", "description of the store (YAML or JSON); the options below override it")
    .option("--endpoint <url>", "address of the S3 server")
    .option("--region <name>", "its region")
    .option("--bucket <name>", "bucket")
    .option("--root <path>", "path of the replica store in the bucket")
    .option(
      "--credentials <file>",
      "JSON with accessKey and secretKey (else AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)",
    )
    .option("--keys <file>", "the site's key file, or its copy")
    .option("--ca <file>", "certificate of the authority that the server's is from");
}

function withPoint(command: Command): Command {
  return command
    .argument("<group>", "name or id")
    .option("--point <selector>", "which point", "latest")
    .option("--branch <name>", "on which line of history; the active one, if left out")
    .option(
      "--disk <id>",
      "only this disk; repeat for more",
      (value: string, before: readonly string[]) => [...before, value],
      [],
    );
}

const SAY_EVERY_MS = 2_000;

/** A line every few seconds, and one at the end of each disk. */
export function sayProgress(output: Output): (progress: TransferProgress) => void {
  let saidAt = 0;
  return ({ disk, doneBytes, totalBytes, bytesPerSecond, etaMs }) => {
    const now = performance.now();
    const ends = doneBytes === totalBytes;
    if (!ends && now - saidAt < SAY_EVERY_MS) return;
    saidAt = now;
    const percent = totalBytes === 0 ? 100 : (doneBytes / totalBytes) * 100;
    const left = ends ? "done" : `${duration(etaMs)} left`;
    output.say(`${disk}  ${percent.toFixed(1)} % of ${size(totalBytes)}, ${size(bytesPerSecond)}/s, ${left}`);
  };
}

export function describeRestored({
  point,
  disks,
}: {
  readonly point: { readonly id: string; readonly cutAt: string };
  readonly disks: readonly RestoredDiskView[];
}): string {
  return [
    `Point ${point.id}, cut at ${point.cutAt}, verified`,
    ...disks.map((disk) => `${disk.path}  ${size(disk.sizeBytes)}, ${size(disk.dataBytes)} of it data`),
  ].join("\n");
}

function describeListing({ endpoint, bucket, root, storeId, groups }: RescueListing): string {
  const head = `Store ${storeId} in ${endpoint}/${bucket}/${root}`;
  if (groups.length === 0) return `${head}: no groups`;
  return [head, ...groups.map(describeGroup)].join("\n\n");
}

function describeGroup(group: RescueListing["groups"][number]): string {
  const name = group.name === "" || group.name === group.id ? group.id : `${group.id} (${group.name})`;
  const active =
    group.activeBranch === null
      ? "no claim can be read"
      : `active at ${group.activeSite} on branch ${group.activeBranch}`;
  return [
    `Group ${name}, ${active}`,
    ...group.disks.map(
      ({ id, machine, fault }) =>
        `  disk ${id}${machine === "" ? "" : ` of ${machine}`}${fault ? `: ${fault.code}, ${fault.message}` : ""}`,
    ),
    ...group.branches.map(({ branch, reason, parent, createdAt }) =>
      reason === null
        ? `  branch ${branch}: its record is damaged`
        : `  branch ${branch}: ${reason}${parent === null ? "" : `, from ${parent}`}, ${createdAt}`,
    ),
    group.points.length === 0
      ? "  no points"
      : table([
          ["  POINT", "CUT", "BRANCH", "CONSISTENCY", "KEPT"],
          ...group.points.map((point) => [
            `  ${point.id}`,
            point.cutAt,
            point.branch,
            point.consistency,
            point.name === undefined ? point.reasonKept : `@${point.name}`,
          ]),
        ]),
  ].join("\n");
}

function whole(text: string, option: string): number {
  if (/^[1-9]\d*$/.test(text)) return Number(text);
  throw new Fault("USAGE", `${option} is "${text}", expected a whole number from 1`);
}
