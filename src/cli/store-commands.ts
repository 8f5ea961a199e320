/** `leeward store …` and `leeward rescue …`: what needs a bucket, keys, and nothing that runs. */
import type { Command } from "commander";
import { Fault } from "#model/fault.ts";
import { outputOf, type CliDependencies } from "./context.ts";
import { answeredFailure, duration, size, table, type Output } from "./output.ts";
import type {
  CheckFinding,
  CheckProgress,
  PointChoice,
  RescueListing,
  RestoredDiskView,
  StoreChoice,
  StoreFigures,
  StoreReport,
  TransferProgress,
} from "./rescue-contract.ts";

export function addStoreCommands(program: Command, { rescue }: CliDependencies): void {
  const store = program.command("store").description("the replica store");
  withStore(store.command("probe"))
    .description("is this S3 safe to keep a replica in?")
    .action(async (options: StoreChoice, command: Command) => {
      outputOf(command).answer(await rescue.probe(options), (value) => `Safe: ${JSON.stringify(value)}`);
    });

  addCheck(withStore(store.command("check")), rescue);
  withStore(store.command("stats"))
    .option("--price <perGbMonth>", "price of a GB for a month, to say what it costs")
    .description("objects and bytes by kind and disk, compression, newest point, cost")
    .action(async (options: StoreChoice & { readonly price?: string }, command: Command) => {
      const { price, ...choice } = options;
      const pricePerGb = price === undefined ? {} : { pricePerGb: number(price, "--price") };
      outputOf(command).answer(await rescue.stats({ ...choice, ...pricePerGb }), describeFigures);
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
  addCheck(withStore(save.command("check")), rescue);
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

/** The same under `store` and under `rescue`: who has lost everything looks there. */
function addCheck(command: Command, rescue: CliDependencies["rescue"]): void {
  command
    .option("--read-data <percent>", "of the containers, to read to their end", "0")
    .description("is what was written there, and what does it cost if not? Exit 1 when something is damaged")
    .action(async (options: StoreChoice & { readonly readData: string }, own: Command) => {
      const output = outputOf(own);
      const { readData, ...choice } = options;
      const percent = number(readData.replace(/%$/, ""), "--read-data");
      if (percent > 100) throw new Fault("USAGE", `--read-data is "${readData}", expected 0 to 100`);
      const report = await rescue.check({ ...choice, readData: percent }, sayReading(output));
      output.answer(report, describeReport);
      if (report.ok) return;
      const damaged = new Set(report.findings.filter(({ level }) => level === "damage").map(({ key }) => key)).size;
      const fault = new Fault("VERIFICATION_FAILED", `${damaged} objects of the store are damaged`, {
        hint: "The findings say which points that costs. Read the objects from another copy of the bucket, or resync the disks: that writes them anew.",
      });
      throw answeredFailure(fault);
    });
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

function sayReading(output: Output): (progress: CheckProgress) => void {
  let saidAt = performance.now();
  return ({ disk, readBytes, bytesPerSecond }) => {
    const now = performance.now();
    if (now - saidAt < SAY_EVERY_MS) return;
    saidAt = now;
    output.say(`${disk}  ${size(readBytes)} read, ${size(bytesPerSecond)}/s`);
  };
}

function describeReport(report: StoreReport): string {
  const { points, findings } = report;
  const bad = points.filter(({ state }) => state === "damaged" || state === "unreadable");
  const suspect = points.filter(({ state }) => state === "suspect").length;
  const closed = report.disks.filter(({ keyHeld }) => !keyHeld).map(({ id }) => id);
  return [
    ...findings.map(describeFinding),
    `Store ${report.storeId ?? "without a readable id"}: ${size(report.readBytes)} read, ${report.readDataPercent} % of the data`,
    ...(closed.length === 0 ? [] : [`No key for ${closed.join(", ")}: looked at as far as that goes without`]),
    `${points.length} points, ${points.length - bad.length - suspect} good${suspect === 0 ? "" : `, ${suspect} that may have lost something`}`,
    ...bad.map(
      ({ id, cutAt, name, state, lostBytes }) =>
        `  ${id} (${name === undefined ? "" : `@${name}, `}${cutAt}) is ${state}${lostBytes === 0 ? "" : `: ${size(lostBytes)} of it`}`,
    ),
    report.ok
      ? "Nothing is damaged"
      : `${findings.filter(({ level }) => level === "damage").length} objects are damaged`,
  ].join("\n");
}

function describeFinding(finding: CheckFinding): string {
  const blocks = finding.blocks?.slice(0, 6).map(({ start, length }) => `${start}–${start + length - 1}`);
  const cost = [
    ...(blocks === undefined
      ? []
      : [`blocks ${blocks.join(", ")}${finding.blocks!.length > 6 ? ", …" : ""} of ${finding.disk ?? "the disk"}`]),
    ...(finding.points.length === 0 ? [] : [`${finding.points.length} points: ${shortened(finding.points)}`]),
    ...(finding.suspectPoints.length === 0
      ? []
      : [`perhaps ${finding.suspectPoints.length} points: ${shortened(finding.suspectPoints)}`]),
  ];
  const head = finding.level === "notice" ? `notice  ${finding.key}` : `${finding.code}  ${finding.key}`;
  return [head, `  ${finding.message}`, ...(cost.length === 0 ? [] : [`  costs ${cost.join("; ")}`])].join("\n");
}

function shortened(ids: readonly string[]): string {
  return ids.length <= 4 ? ids.join(", ") : `${ids.slice(0, 2).join(", ")} … ${ids.at(-1)}`;
}

function describeFigures(figures: StoreFigures): string {
  const ratio = (value: number | null): string => (value === null ? "– (no key)" : value.toFixed(2));
  return [
    `Store ${figures.storeId ?? "without a readable id"}: ${figures.objects} objects, ${size(figures.bytes)}${figures.monthly === null ? "" : `, ${figures.monthly.toFixed(2)} a month`}`,
    table([
      ["KIND", "DISK", "OBJECTS", "BYTES"],
      ...figures.byKind.map((one) => [one.kind, one.disk, `${one.objects}`, size(one.bytes)]),
    ]),
    table([
      ["DISK", "OBJECTS", "STORED", "PLAIN", "COMPRESSION", "UNREFERENCED"],
      ...figures.disks.map((disk) => [
        disk.id,
        `${disk.objects}`,
        size(disk.bytes),
        disk.plainBytes === null ? "–" : size(disk.plainBytes),
        ratio(disk.compressionRatio),
        disk.unreferencedBytes === null ? "–" : size(disk.unreferencedBytes),
      ]),
    ]),
    table([
      ["GROUP", "POINTS", "NEWEST", "OLDEST"],
      ...figures.groups.map((group) => [group.id, `${group.points}`, group.newestAt ?? "–", group.oldestAt ?? "–"]),
    ]),
  ].join("\n\n");
}

function number(text: string, option: string): number {
  if (/^\d+(\.\d+)?$/.test(text)) return Number(text);
  throw new Fault("USAGE", `${option} is "${text}", expected a number`);
}

function whole(text: string, option: string): number {
  if (/^[1-9]\d*$/.test(text)) return Number(text);
  throw new Fault("USAGE", `${option} is "${text}", expected a whole number from 1`);
}
