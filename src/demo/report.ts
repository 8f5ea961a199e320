/** What the demo measured and checked, as data and as the table it ends with. */

export interface Check {
  readonly name: string;
  readonly held: boolean;
  readonly evidence: string;
}

export interface Figure {
  readonly name: string;
  readonly value: number | string;
  readonly unit: string;
}

export interface DemoReport {
  readonly ok: boolean;
  readonly startedAt: string;
  readonly steps: readonly { readonly name: string; readonly ms: number }[];
  readonly checks: readonly Check[];
  readonly figures: readonly Figure[];
  readonly urls: Readonly<Record<string, string>>;
  readonly drill: DrillOutcome;
  /** With --keep: where the replica answers, and how to end it all. */
  readonly kept?: { readonly ledger: string; readonly state: string };
}

/** The drill that a schedule started, and where its report stays. */
export interface DrillOutcome {
  readonly operationId: string;
  readonly verdict: "done" | "failed" | "cancelled";
  readonly html: string;
  readonly json: string;
}

export interface Recorder {
  /** Run a step and keep how long it took. */
  step<T>(name: string, work: () => Promise<T>): Promise<T>;
  check(name: string, held: boolean, evidence: string): void;
  figure(name: string, value: number | string, unit: string): void;
  report(urls: Readonly<Record<string, string>>, drill: DrillOutcome): DemoReport;
}

export function createRecorder(say: (line: string) => void): Recorder {
  const startedAt = new Date().toISOString();
  const steps: { name: string; ms: number }[] = [];
  const checks: Check[] = [];
  const figures: Figure[] = [];
  return {
    step: async (name, work) => {
      say(`▸ ${name}`);
      const bornAt = performance.now();
      try {
        return await work();
      } finally {
        const ms = Math.round(performance.now() - bornAt);
        steps.push({ name, ms });
        say(`  ${(ms / 1000).toFixed(1)} s`);
      }
    },
    check: (name, held, evidence) => {
      checks.push({ name, held, evidence });
      say(`  ${held ? "✓" : "✗ FAILED"} ${name} (${evidence})`);
    },
    figure: (name, value, unit) => {
      figures.push({ name, value, unit });
    },
    report: (urls, drill) => ({
      ok: checks.length > 0 && checks.every((one) => one.held),
      startedAt,
      steps,
      checks,
      figures,
      urls,
      drill,
    }),
  };
}

export function describeReport(report: DemoReport): string {
  const lines = ["", "Steps"];
  for (const step of report.steps) lines.push(`  ${step.name.padEnd(58)} ${(step.ms / 1000).toFixed(1).padStart(8)} s`);
  lines.push("", "Measured");
  for (const one of report.figures) lines.push(`  ${one.name.padEnd(58)} ${String(one.value).padStart(8)} ${one.unit}`);
  lines.push("", "Checks");
  for (const one of report.checks) lines.push(`  ${one.held ? "held  " : "FAILED"} ${one.name} (${one.evidence})`);
  const { drill } = report;
  lines.push("", "Drill", `  ${drill.verdict.padEnd(6)} ${drill.operationId}, its report: ${drill.html}`);
  lines.push(`  check it offline: leeward drill verify ${drill.json}`);
  if (Object.keys(report.urls).length > 0) lines.push("", "Look at");
  for (const [name, url] of Object.entries(report.urls)) lines.push(`  ${name.padEnd(16)} ${url}`);
  if (report.kept !== undefined) {
    lines.push(
      "",
      `Everything still runs. The ledger answers at ${report.kept.ledger}; end it with: leeward down --state ${report.kept.state}`,
    );
  }
  lines.push("", report.ok ? "Every check held." : "NOT every check held.");
  return lines.join("\n");
}
