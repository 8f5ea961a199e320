/** The code under simulation: the modules that run in production, or a copy of them with one step removed. */
export type Protocol = Awaited<ReturnType<typeof loadProtocol>>;

export async function loadProtocol(folder: URL = new URL("../../src/data-mover/", import.meta.url)) {
  const load = <Module>(name: string): Promise<Module> => import(new URL(name, folder).href) as Promise<Module>;
  const [log, moves, group, barriers, points, reader] = await Promise.all([
    load<typeof import("../../src/data-mover/commit-log.ts")>("commit-log.ts"),
    load<typeof import("../../src/data-mover/disk-moves.ts")>("disk-moves.ts"),
    load<typeof import("../../src/data-mover/group-fence.ts")>("group-fence.ts"),
    load<typeof import("../../src/data-mover/barriers.ts")>("barriers.ts"),
    load<typeof import("../../src/data-mover/points.ts")>("points.ts"),
    load<typeof import("../../src/data-mover/branch-reader.ts")>("branch-reader.ts"),
  ]);
  return { ...log, ...moves, ...group, ...barriers, ...points, ...reader };
}
