/** Durations as people write them: "500ms", "90s", "15m", "2h", "1d". */
const FACTORS = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const;

/** Milliseconds; undefined for what is no duration. `unit` is taken where none is written; left out: one must be. */
export function durationOfText(text: string, unit?: keyof typeof FACTORS): number | undefined {
  const match = /^(\d+(?:\.\d+)?)(ms|s|m|h|d)?$/.exec(text.trim());
  const written = (match?.[2] ?? unit) as keyof typeof FACTORS | undefined; // The pattern has the table's keys.
  return match === null || written === undefined ? undefined : Math.round(Number(match[1]) * FACTORS[written]);
}
