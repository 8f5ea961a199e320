/** The way from a machine's write to the mover, through everything that is real but the store. LEEWARD_SEED repeats a run. */
import { test } from "node:test";
import { seededRandom } from "../capture/seeded-random.ts";
import { assertCaughtUp, setReplicationStage } from "../support/replication-stage.ts";
import { eventually } from "../support/source-site.ts";

const seed = Number(process.env["LEEWARD_SEED"] ?? Math.floor(Math.random() * 2 ** 31));

test(
  `every point of two disks on two machines is a prefix of what was written (seed ${seed})`,
  { timeout: 120_000 },
  async (t) => {
    const stage = await setReplicationStage((work) => t.after(work), { seed, threads: true });
    const disks = await stage.disks();
    await stage.history.run(
      disks,
      6,
      eventually("eight points", () => stage.judged.points >= 8, 60_000),
    );
    await assertCaughtUp(stage);
    t.diagnostic(
      `${stage.judged.points} points, ${stage.history.changes} writes, ${stage.mover.frameBytes} bytes shipped, ${stage.mover.committedCycles.length} cycles`,
    );
  },
);

test(
  `agents, taps, the process server and the mover are lost at random, and no write is (seed ${seed})`,
  { timeout: 240_000 },
  async (t) => {
    const stage = await setReplicationStage((work) => t.after(work), { seed, frozenBytesMax: 1 << 20 });
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
      for (let count = 0; count < 12; count += 1) {
        const cycles = mover.committedCycles.length;
        const moves = (): boolean => mover.committedCycles.length > cycles + 1;
        if (random() < 0.6) await eventually("cycles are committed again", moves, 30_000);
        await new Promise((resolve) => setTimeout(resolve, random() * 600));
        const what = Object.keys(lose)[Math.floor(random() * 5)]!;
        losses.push(what);
        await lose[what]!();
      }
    };
    await stage.history.run(disks, 5, disturb());
    await assertCaughtUp(stage);
    t.diagnostic(
      `${stage.judged.points} points, ${stage.history.changes} writes, ${mover.committedCycles.length} cycles, ${mover.opens} streams; lost ${losses.join(", ")}`,
    );
  },
);
