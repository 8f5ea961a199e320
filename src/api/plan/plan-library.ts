/**
 * Versions of recovery plans, in the catalog of the store at control's site: nothing of a plan is only in control, so another control that adopts the store
 * has them all.
 *
 * Invariants:
 * - a version is written once and never changed; two that are applied at the same moment get two numbers;
 * - only the store at control's own site is asked: whoever owns another site must not be able to put a script into a plan.
 */
import { Fault } from "#model/fault.ts";
import type { JsonObject } from "#model/json.ts";
import type { KeptSeries, MasterTarget } from "#ports/master-target.ts";

const RECORD_VERSION = 1;

export interface PlanVersion {
  readonly name: string;
  readonly version: number;
  readonly writtenAtMs: number;
  readonly source: string;
  readonly by: string;
  readonly note?: string;
}

export interface PlanLibrary {
  /** Keep `source` as the next version, unless the newest one says the same. */
  keep(name: string, plan: Pick<PlanVersion, "source" | "by" | "note">): Promise<{ readonly stored: boolean }>;
  /** That version or the newest, and the one before it. Throws NOT_FOUND. */
  read(
    name: string,
    version?: number,
  ): Promise<{ readonly plan: PlanVersion; readonly before?: PlanVersion; readonly versions: readonly number[] }>;
  /** The newest of each; without `plan` it cannot be read. */
  list(): Promise<readonly { readonly name: string; readonly plan?: PlanVersion }[]>;
}

export function planLibrary(masterTarget: MasterTarget): PlanLibrary {
  async function series(name: string, options: { readonly newest: number; readonly upTo?: number }) {
    return (await masterTarget.readRecords({ collection: "plans", name, ...options })).find((one) => one.name === name);
  }
  return {
    async keep(name, plan) {
      for (;;) {
        const found = await series(name, { newest: 1 });
        const newest = found === undefined ? undefined : versionsOf(found)[0];
        if (newest !== undefined && newest.source === plan.source && newest.version === found?.numbers.at(-1))
          return { stored: false };
        const number = (found?.numbers.at(-1) ?? 0) + 1;
        const record = { version: RECORD_VERSION, ...plan };
        // Taken: somebody applied another one at the same moment. Theirs is the one before ours.
        if ((await masterTarget.keepRecord({ collection: "plans", name, number, record })).kept)
          return { stored: true };
      }
    },

    async read(name, version) {
      const found = await series(name, { newest: 2, ...(version === undefined ? {} : { upTo: version }) });
      const [plan, before] = found === undefined ? [] : versionsOf(found);
      if (found !== undefined && plan !== undefined && (version === undefined || plan.version === version))
        return { plan, ...(before === undefined ? {} : { before }), versions: found.numbers };
      const damaged = found?.damaged[0];
      throw new Fault(
        "NOT_FOUND",
        `No ${version === undefined ? "" : `version ${version} of `}plan "${name}"${damaged === undefined ? "" : ` can be read: ${damaged.message}`}`,
        {
          details: { plan: name },
          hint: found === undefined ? "See `leeward plan list`" : `There is ${found.numbers.join(", ")}`,
        },
      );
    },

    list: async () =>
      (await masterTarget.readRecords({ collection: "plans", newest: 1 })).map((one) => {
        const [plan] = versionsOf(one);
        return { name: one.name, ...(plan === undefined ? {} : { plan }) };
      }),
  };
}

/** Newest first. Throws FORMAT_UNSUPPORTED. */
function versionsOf({ name, records }: KeptSeries): readonly PlanVersion[] {
  return records.map(({ number, writtenAtMs, record }) => versionOf(name, number, writtenAtMs, record));
}

function versionOf(name: string, version: number, writtenAtMs: number, record: JsonObject): PlanVersion {
  const { version: format, source, by, note } = record;
  if (format !== RECORD_VERSION || typeof source !== "string" || typeof by !== "string")
    throw new Fault("FORMAT_UNSUPPORTED", `Version ${version} of plan "${name}" is kept in another form`, {
      details: { plan: name },
      hint: "Read it with the version of Leeward that wrote it, or a newer one",
    });
  return { name, version, writtenAtMs, source, by, ...(typeof note === "string" ? { note } : {}) };
}
