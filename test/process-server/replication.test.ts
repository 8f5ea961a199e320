/** The way from a machine's write to the mover, through everything that is real but the store. LEEWARD_SEED repeats a run. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { createHistory, type History, type HistoryDisk } from "../capture/write-history.ts";
import { seededRandom } from "../capture/seeded-random.ts";
import { startFakeMover, type FakeMover } from "../support/fake-mover.ts";
import { eventually, startSourceSite, testOrder, type Machine, type SourceSite } from "../support/source-site.ts";

const seed = Number(process.env["LEEWARD_SEED"] ?? Math.floor(Math.random() * 2 ** 31));

interface Stage {
  readonly site: SourceSite;
  readonly mover: FakeMover;
  readonly machines: readonly Machine[];
  readonly history: History;
  readonly judged: { points: number };
  disks(): Promise<HistoryDisk[]>;
}

const SECTORS = [4097 * 8 + 3, 2500 * 8];

async function onStage(t: { after(work: () => Promise<void>): void }, options: { threads?: boolean; compressAt?: "agent" | "process-server"; spoolBytesMax?: number; frozenBytesMax?: number }): Promise<Stage> {
  const random = seededRandom(seed);
  const history = createHistory(SECTORS, random);
  const site = await startSourceSite({ spoolBytesMax: options.spoolBytesMax ?? 64 << 20, ...(options.frozenBytesMax === undefined ? {} : { frozenBytesMax: options.frozenBytesMax }) });
  t.after(() => site.close());
  const judged = { points: 0 };
  const mover = await startFakeMover({
    link: await site.authority.link("secondary", "master-target", "mt"),
    onPoint: ({ images }) => {
      history.judge(["disk-0", "disk-1"].map((diskId, index) => images.get(diskId)!.subarray(0, SECTORS[index]! * 512)), { after: 0, before: Number.POSITIVE_INFINITY });
      judged.points += 1;
    },
  });
  t.after(() => mover.close());
  const machines: Machine[] = [];
  for (const index of [0, 1]) {
    machines.push(await site.addMachine(`machine-${index}`, [{ diskId: `disk-${index}`, image: history.initial(index) }], { threads: options.threads ?? false }));
  }
  for (const machine of machines) machine.startAgent();
  const members = machines.map((machine, index) => ({ machine: machine.name, disks: [{ diskId: `disk-${index}`, source: machine.sources[0]! }] }));
  await site.processServer.putOrder({ signed: site.sign(testOrder("group", mover.port, members, { compressAt: options.compressAt ?? "agent" })) });
  return {
    site,
    mover,
    machines,
    history,
    judged,
    disks: async () => {
      await eventually("the agents tap their disks", async () => (await site.processServer.listAgents({})).filter((agent) => agent.disks.length === 1).length === 2);
      return (await Promise.all(machines.map((machine) => machine.attach()))).flat();
    },
  };
}

/** After the writers have stopped: a last point that holds everything. */
async function assertCaughtUp({ site, mover, machines }: Stage): Promise<void> {
  let cut: { barrier: number } | undefined;
  await eventually("a last point", async () => {
    try {
      cut = await site.processServer.cutNow({ groupId: "group", operationId: `last-${Math.random()}`, timeoutMs: 5_000 });
      return true;
    } catch (error) {
      if (!["NO_POINT", "TIMED_OUT"].includes((error as { code: string }).code)) throw error;
      return false;
    }
  }, 40_000);
  assert.ok(cut !== undefined && cut.barrier > 0);
  for (const [index, machine] of machines.entries()) {
    const source = readFileSync(machine.images[0]!);
    assert.ok(mover.images.get(`disk-${index}`)!.subarray(0, source.length).equals(source), `disk ${index} at the target is the source`);
  }
  assert.deepEqual(mover.errors, []);
}

test(`every point of two disks on two machines is a prefix of what was written (seed ${seed})`, { timeout: 120_000 }, async (t) => {
  const stage = await onStage(t, { threads: true });
  const disks = await stage.disks();
  await stage.history.run(disks, 6, eventually("eight points", () => stage.judged.points >= 8, 60_000));
  await assertCaughtUp(stage);
  t.diagnostic(`${stage.judged.points} points, ${stage.history.changes} writes, ${stage.mover.frameBytes} bytes shipped, ${stage.mover.committedCycles.length} cycles`);
});

test(`agents, taps, the process server and the mover are lost at random, and no write is (seed ${seed})`, { timeout: 240_000 }, async (t) => {
  const stage = await onStage(t, { frozenBytesMax: 1 << 20 });
  const { site, mover, machines } = stage;
  const random = seededRandom(seed + 1);
  const disks = await stage.disks();
  const losses: string[] = [];
  const lose: Record<string, () => Promise<void>> = {
    agent: async () => {
      const machine = machines[Math.floor(random() * 2)]!;
      await machine.loseAgent();
      machine.startAgent();
    },
    tap: () => machines[Math.floor(random() * 2)]!.killTap(),
    processServer: async () => {
      await site.loseProcessServer();
      await site.startProcessServer();
    },
    mover: async () => mover.lose(),
    wan: async () => {
      await mover.goAway();
      await new Promise((resolve) => setTimeout(resolve, 300 + random() * 1_000));
      await mover.comeBack();
    },
  };
  const disturb = async (): Promise<void> => {
    for (let count = 0; count < 24; count += 1) {
      await new Promise((resolve) => setTimeout(resolve, 50 + random() * 1_200));
      const what = Object.keys(lose)[Math.floor(random() * 5)]!;
      losses.push(what);
      await lose[what]!();
    }
  };
  await stage.history.run(disks, 5, disturb());
  await assertCaughtUp(stage);
  t.diagnostic(`${stage.judged.points} points, ${stage.history.changes} writes, ${mover.committedCycles.length} cycles, ${mover.opens} streams; lost ${losses.join(", ")}`);
});
