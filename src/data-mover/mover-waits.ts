/** Waiting for several things, or not for ever. */
import { isFault, type Fault } from "#model/fault.ts";

/** All settle before the first error is thrown: nothing of a failed cycle goes on behind its answer. */
export async function settleAll<Value>(work: readonly Promise<Value>[]): Promise<Value[]> {
  const settled = await Promise.allSettled(work);
  const rejected = settled.filter((one) => one.status === "rejected");
  const fenced = rejected.find((one) => isFault(one.reason, "FENCED"));
  if (fenced ?? rejected[0]) throw (fenced ?? rejected[0])!.reason;
  return settled.flatMap((one) => (one.status === "fulfilled" ? [one.value] : []));
}

/** Throws `fault()` when `work` takes longer. The work goes on: the caller sees to it that this does no harm. */
export async function within<Value>(timeoutMs: number, work: Promise<Value>, fault: () => Fault): Promise<Value> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(fault()), timeoutMs);
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}
