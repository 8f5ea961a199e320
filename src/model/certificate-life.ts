/**
 * How long a certificate lives, and when its role asks for the next one.
 *
 * ```
 *  issued                     2/3                 5/6            expires
 *    ├─────────── good ─────┬──┤──── overdue ──────┤──── late ──────┤ expired
 *                    due ───┘ a random moment before 2/3, so that roles enrolled in one hour do not ask in one minute
 * ```
 * The last third is for what may be in the way: control lost and adopted, a site that is down. Times are control's: whoever asks learns control's time
 * with the answer, and counts from there on (docs/decisions/0027-certificates-renew-themselves.md).
 */
export interface CertificateLife {
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
}

export type CertificateState = "good" | "overdue" | "late" | "expired";

const DUE_PART = 2 / 3;
const LATE_PART = 5 / 6;
/** Part of the lifetime over which the renewals of many roles are spread. */
const SPREAD_PART = 0.1;
/** After its due time a role gets this part of its lifetime before anybody calls it overdue. */
const GRACE_PART = 0.02;

const RETRIES_PER_LIFE = 200;
const RETRY_MS_MIN = 250;
const RETRY_MS_MAX = 3_600_000;

/** `chance`: 0 to 1, drawn once for each certificate. */
export function renewalDueMs(life: CertificateLife, chance: number): number {
  return at(life, DUE_PART - SPREAD_PART * chance);
}

/** Between two attempts: often enough that a short life is not missed, seldom enough that a long one does not fill a log. */
export function renewalRetryMs({ notBeforeMs, notAfterMs }: CertificateLife): number {
  return Math.min(RETRY_MS_MAX, Math.max(RETRY_MS_MIN, (notAfterMs - notBeforeMs) / RETRIES_PER_LIFE));
}

export function certificateState(life: CertificateLife, nowMs: number): CertificateState {
  if (nowMs >= life.notAfterMs) return "expired";
  if (nowMs >= at(life, LATE_PART)) return "late";
  return nowMs >= at(life, DUE_PART + GRACE_PART) ? "overdue" : "good";
}

function at({ notBeforeMs, notAfterMs }: CertificateLife, part: number): number {
  return notBeforeMs + (notAfterMs - notBeforeMs) * part;
}
