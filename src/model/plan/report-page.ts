/** A run's record as one page for people: no script, nothing from elsewhere, so that it can be kept and mailed. */
import { duration } from "../health.ts";
import { differences } from "./run-chain.ts";
import type { RunReport } from "./run-report.ts";

export interface ReportPage {
  readonly number: number;
  readonly report: RunReport;
  /** The last drill before it, or the last run of its mode. */
  readonly before?: { readonly number: number; readonly report: RunReport };
  /** Of the record: see run-chain.ts. */
  readonly digest: string;
}

const STYLE = `body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2430}
h1{font-size:1.6rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse;width:100%}
td,th{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #d8dee6;vertical-align:top}td.n,th.n{text-align:right;white-space:nowrap}
.done,.met{color:#12703a}.failed,.missed{color:#b3261e;font-weight:600}.cancelled,.skipped{color:#8a5a00}
pre{background:#f4f6f8;padding:.5rem;overflow:auto;font-size:.8rem}footer{margin-top:3rem;color:#5a6572;font-size:.85rem;overflow-wrap:anywhere}`;

export function reportPage(page: ReportPage): string {
  const { report, before, number, digest } = page;
  const what = report.drill ? "Drill" : `Run (${report.mode})`;
  const title = `${what} of ${report.plan}: ${report.state}`;
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>${text(title)}</title><style>${STYLE}</style></head>
<body>
<h1>${text(`${what} of ${report.plan}`)}: <span class="${report.state}">${report.state}</span></h1>
<p>${text(`${time(report.startedAtMs)} to ${time(report.endedAtMs)}, by ${report.by}, plan version ${report.planVersion}, ${report.operationId}`)}</p>
${report.fault === undefined ? "" : `<p class="failed">${text(`${report.fault.code}: ${report.fault.message}`)}</p>`}
<table><tr><th></th><th class="n">measured</th><th class="n">predicted</th><th class="n">promised</th><th></th></tr>
${objective("Time to recover (RTO)", report.rtoMs, report.predicted.rtoMs, report.objectives.rtoMs)}
${objective("Age of the data (RPO)", report.rpoMs, report.predicted.rpoMs ?? undefined, report.objectives.rpoMs)}
</table>
<h2>Steps</h2>
<table><tr><th>step</th><th></th><th class="n">expected</th><th class="n">took</th><th>evidence</th></tr>
${report.steps.map(stepRow).join("\n")}
</table>
${list(
  "Left out by this mode",
  report.leftOut.map(({ step, why }) => `${step}: ${why}`),
)}
${list(
  "Decided by people",
  report.decisions.map(
    ({ step, decision, by, atMs, note }) =>
      `${time(atMs)} ${by}: ${decision} ${step}${note === undefined ? "" : ` (${note})`}`,
  ),
)}
${list(
  "Could not be taken away",
  report.left.map(({ step, why }) => `${step}: ${why}`),
)}
${
  before === undefined
    ? "<h2>Difference to the last one</h2><p>It is the first.</p>"
    : `<h2>${text(`Difference to number ${before.number} of ${time(before.report.startedAtMs)}`)}</h2>${differenceTable(report, before.report)}`
}
<footer>${text(`Record ${number} of plan ${report.plan}, SHA-256 ${digest}. It names the digest of the record before it: "leeward drill verify" checks the chain.`)}</footer>
</body></html>
`;
}

function objective(
  name: string,
  measured: number | undefined,
  predicted: number | undefined,
  promised: number | undefined,
): string {
  const verdict =
    measured === undefined || promised === undefined
      ? ""
      : measured <= promised
        ? '<span class="met">met</span>'
        : '<span class="missed">missed</span>';
  return `<tr><td>${text(name)}</td><td class="n">${span(measured)}</td><td class="n">${span(predicted)}</td><td class="n">${span(promised)}</td><td>${verdict}</td></tr>`;
}

function stepRow({ id, what, state, expectedMs, tookMs, attempts, evidence }: RunReport["steps"][number]): string {
  const shown =
    evidence === undefined ? "" : `<details><summary>${text(what)}</summary><pre>${text(evidence)}</pre></details>`;
  const tries = attempts > 1 ? ` (${attempts} attempts)` : "";
  return `<tr><td>${text(id)}</td><td class="${state}">${state}${tries}</td><td class="n">${span(expectedMs)}</td><td class="n">${span(tookMs)}</td><td>${shown === "" ? text(what) : shown}</td></tr>`;
}

function differenceTable(now: RunReport, before: RunReport): string {
  const rows = differences(now, before).map(
    ({ step, what }) => `<tr><td>${text(step)}</td><td>${text(what)}</td></tr>`,
  );
  const rto = `<tr><td>Time to recover</td><td>${span(before.rtoMs)} before, ${span(now.rtoMs)} now</td></tr>`;
  return `<table>${rto}${rows.length === 0 ? "<tr><td>Steps</td><td>no difference worth telling</td></tr>" : rows.join("")}</table>`;
}

function list(title: string, lines: readonly string[]): string {
  return lines.length === 0
    ? ""
    : `<h2>${text(title)}</h2><ul>${lines.map((line) => `<li>${text(line)}</li>`).join("")}</ul>`;
}

function span(ms: number | undefined): string {
  return ms === undefined ? "–" : text(duration(ms));
}

function time(ms: number): string {
  return new Date(ms).toISOString().replace(/\.\d{3}Z$/, "Z");
}

function text(raw: string): string {
  const names: Readonly<Record<string, string>> = {
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    '"': "&quot;",
    "'": "&#39;",
  };
  return raw.replace(/[&<>"']/g, (letter) => names[letter] ?? letter);
}
