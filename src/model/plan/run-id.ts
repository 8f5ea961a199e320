/** Ids of runs: `PLAN.run.RANDOM`, or `PLAN.drill.RANDOM`, so that whoever has one knows where to look. */

/** The plan that a run's id belongs to; undefined for an operation of a group. */
export function planOfRun(operationId: string): string | undefined {
  return /^([a-z0-9][a-z0-9-]{0,40})\.(?:run|drill)\.[a-zA-Z0-9.-]+$/.exec(operationId)?.[1];
}
