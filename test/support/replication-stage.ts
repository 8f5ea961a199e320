/** Two machines with a disk each, in one group, replicated to a fake mover; every point is judged against the history of what was written. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import type { ReplicationOrder } from "#ports/replication.ts";
import { createHistory, type History, type HistoryDisk } from "../capture/write-history.ts";
import { seededRandom } from "../capture/seeded-random.ts";
import { startFakeMover, type FakeMover, type FakeMoverOptions } from "./fake-mover.ts";
import {
  eventually,
  startSourceSite,
  testOrder,
  type Machine,
  type SiteOptions,
  type SourceSite,
} from "./source-site.ts";

export interface ReplicationStage {
  readonly site: SourceSite;
  readonly mover: FakeMover;
  readonly machines: readonly Machine[];
  readonly history: History;
  readonly judged: { points: number };
  readonly members: ReplicationOrder["members"];
  disks(): Promise<HistoryDisk[]>;
}

const SECTORS = [4097 * 8 + 3, 2500 * 8];

export interface StageOptions extends SiteOptions {
  readonly seed: number;
  readonly threads?: boolean;
  readonly order?: Partial<ReplicationOrder>;
  readonly onStep?: FakeMoverOptions["onStep"];
}

/** `atEnd`: what to undo when the test is over, also when it failed. */
export async function setReplicationStage(
  atEnd: (work: () => Promise<void>) => void,
  options: StageOptions,
): Promise<ReplicationStage> {
  const random = seededRandom(options.seed);
  const history = createHistory(SECTORS, random);
  const site = await startSourceSite(options);
  atEnd(() => site.close());
  const judged = { points: 0 };
  const mover = await startFakeMover({
    link: await site.authority.link("secondary", "master-target", "mt"),
    ...(options.onStep === undefined ? {} : { onStep: options.onStep }),
    onPoint: ({ images }) => {
      history.judge(
        ["disk-0", "disk-1"].map((diskId, index) => images.get(diskId)!.subarray(0, SECTORS[index]! * 512)),
        { after: 0, before: Number.POSITIVE_INFINITY },
      );
      judged.points += 1;
    },
  });
  atEnd(() => mover.close());
  const machines: Machine[] = [];
  for (const index of [0, 1]) {
    machines.push(
      await site.addMachine(`machine-${index}`, [{ diskId: `disk-${index}`, image: history.initial(index) }], {
        threads: options.threads ?? false,
      }),
    );
  }
  for (const machine of machines) machine.startAgent();
  const members = machines.map((machine, index) => ({
    machine: machine.name,
    disks: [{ diskId: `disk-${index}`, source: machine.sources[0]! }],
  }));
  await site.processServer.putOrder({ signed: site.sign(testOrder("group", mover.port, members, options.order)) });
  return {
    site,
    mover,
    machines,
    members,
    history,
    judged,
    disks: async () => {
      await eventually(
        "the agents tap their disks",
        async () => (await site.processServer.listAgents({})).filter((agent) => agent.disks.length === 1).length === 2,
      );
      return (await Promise.all(machines.map((machine) => machine.attach()))).flat();
    },
  };
}

/** After the writers have stopped: a last point that holds everything. */
export async function assertCaughtUp({ site, mover, machines }: ReplicationStage): Promise<void> {
  let cut: { barrier: number } | undefined;
  await eventually(
    "a last point",
    async () => {
      try {
        cut = await site.processServer.cutNow({
          groupId: "group",
          operationId: `last-${Math.random()}`,
          timeoutMs: 5_000,
        });
        return true;
      } catch (error) {
        if (!["NO_POINT", "TIMED_OUT"].includes((error as { code: string }).code)) throw error;
        return false;
      }
    },
    40_000,
  );
  assert.ok(cut !== undefined && cut.barrier > 0);
  for (const [index, machine] of machines.entries()) {
    const source = readFileSync(machine.images[0]!);
    assert.ok(
      mover.images.get(`disk-${index}`)!.subarray(0, source.length).equals(source),
      `disk ${index} at the target is the source`,
    );
  }
  assert.deepEqual(mover.errors, []);
}
