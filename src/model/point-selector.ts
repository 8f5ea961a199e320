/**
 * Which point a person means: `latest`, `latest-app`, `latest-verified`, `latest-processed`, `@name`, a time (RFC 3339), or a point id.
 *
 * A time means the newest cut at or before it: asked for 14:00, nobody wants what happened at 14:00:03.
 */
import { Fault } from "./fault.ts";

/** What a selector looks at; `RecoveryPoint` is one. */
export interface SelectablePoint {
  readonly id: string;
  readonly cutAtMs: number;
  readonly barrier: number;
  readonly kind: "recovery" | "bookmark";
  readonly name?: string;
  readonly consistency: "crash" | "app";
  readonly grade: "committed" | "verified";
}

/**
 * The point of `points` that `selector` names; their order does not matter. With `nowMs` a time after it is refused. Time zones come with the time, as "Z" or "+02:00".
 * Throws: NO_POINT when there are none at all, POINT_NOT_FOUND when none fits (the hint says what there is), USAGE for a selector that
 *         is none, or a time in the future: more likely a wrong zone than a wish for the newest.
 */
export function selectPoint<Point extends SelectablePoint>(
  points: readonly Point[],
  selector: string,
  nowMs = Number.POSITIVE_INFINITY,
): Point {
  const newestFirst = points.toSorted((a, b) => b.barrier - a.barrier);
  const wanted = criterion(selector, nowMs);
  if (newestFirst.length === 0) {
    throw new Fault("NO_POINT", "There is no recovery point yet", {
      hint: "The first point appears when the initial sync and one cycle after it are complete.",
    });
  }
  const found = newestFirst.find(wanted);
  if (found !== undefined) return found;
  throw new Fault("POINT_NOT_FOUND", `No recovery point is "${selector}"`, {
    details: { selector, points: newestFirst.length },
    hint: `There are: ${describe(newestFirst)}.`,
  });
}

/** It means that point and no other, wherever it is; `latest` and times choose along a line of history. */
export function namesOnePoint(selector: string): boolean {
  return selector.startsWith("@") || POINT_ID.test(selector);
}

function criterion(selector: string, nowMs: number): (point: SelectablePoint) => boolean {
  // Every offered point is processed: it is in the store, chained and complete. Without a spool at the target the two are one.
  if (selector === "latest" || selector === "latest-processed") return () => true;
  if (selector === "latest-app") return (point) => point.consistency === "app";
  if (selector === "latest-verified") return (point) => point.grade === "verified";
  if (/^@.+/.test(selector)) return (point) => point.kind === "bookmark" && point.name === selector.slice(1);
  if (POINT_ID.test(selector)) return (point) => point.id === selector;
  const time = parseTime(selector);
  if (time !== undefined && time > nowMs) {
    throw new Fault("USAGE", `"${selector}" lies in the future`, {
      details: { selector },
      hint: `It is ${new Date(nowMs).toISOString()} now; check the zone, or say "latest".`,
    });
  }
  if (time !== undefined) return (point) => point.cutAtMs <= time;
  throw new Fault("USAGE", `"${selector}" names no point`, {
    details: { selector },
    hint: 'Expected "latest", "latest-app", "latest-verified", "@name", a time like "2026-05-01T14:00:00Z", or a point id.',
  });
}

const POINT_ID = /^\d{13}-[0-9a-f]{16}$/;
const RFC_3339 = /^\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?([Zz]|[+-]\d{2}:\d{2})$/;

/** Milliseconds since 1970; undefined for what is no RFC 3339 time with a zone. */
function parseTime(text: string): number | undefined {
  if (!RFC_3339.test(text)) return undefined;
  const time = Date.parse(text.replace(" ", "T").toUpperCase());
  return Number.isNaN(time) ? undefined : time;
}

/** Newest, oldest and those with names: what one needs to choose, in one line. */
function describe(newestFirst: readonly SelectablePoint[]): string {
  const name = (point: SelectablePoint): string =>
    point.name === undefined
      ? new Date(point.cutAtMs).toISOString()
      : `@${point.name} (${new Date(point.cutAtMs).toISOString()})`;
  const newest = newestFirst[0]!;
  const oldest = newestFirst.at(-1)!;
  const named = newestFirst
    .filter((point) => point !== newest && point !== oldest && point.name !== undefined)
    .slice(0, 5);
  if (newest === oldest) return name(newest);
  return `${newestFirst.length} points, newest ${name(newest)}, oldest ${name(oldest)}${named.map((point) => `, ${name(point)}`).join("")}`;
}
