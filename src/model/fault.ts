/**
 * A fault is the world failing us: a peer, a disk, a network, a wrong input. (A bug throws RangeError or an assertion, and
 * nobody catches it.)
 *
 * Invariants:
 * - a code never changes its meaning and is never reused: scripts and dashboards match on it;
 * - `retryable` says whether the same call may succeed later with nothing changed by a person;
 * - `exit` is the exit code of the command line when this fault ends a command (docs/surface.md);
 * - every code has a paragraph in docs/errors.md; a test compares the two.
 */
export const FAULTS = {
  // Input and phase
  USAGE: { retryable: false, exit: 2 },
  CONFIG_INVALID: { retryable: false, exit: 2 },
  PLAN_INVALID: { retryable: false, exit: 2 },
  REFUSED: { retryable: false, exit: 3 },
  NOT_FOUND: { retryable: false, exit: 4 },
  TIMED_OUT: { retryable: true, exit: 5 },
  INTERRUPTED: { retryable: false, exit: 130 },
  DRAINING: { retryable: true, exit: 1 },
  // Machine
  TOOL_MISSING: { retryable: false, exit: 1 },
  PORT_IN_USE: { retryable: true, exit: 1 },
  DISK_FULL: { retryable: true, exit: 1 },
  PROCESS_DIED: { retryable: true, exit: 1 },
  // Source
  IMAGE_MISSING: { retryable: false, exit: 1 },
  IMAGE_IN_USE: { retryable: false, exit: 3 },
  IMAGE_INVALID: { retryable: false, exit: 1 },
  SOURCE_READ_FAILED: { retryable: true, exit: 1 },
  DISK_ALREADY_PROTECTED: { retryable: false, exit: 3 },
  HOLD_EXPIRED: { retryable: true, exit: 1 },
  CUT_OVERFLOWED: { retryable: true, exit: 1 },
  SPOOL_FULL: { retryable: true, exit: 1 },
  AGENT_UNREACHABLE: { retryable: true, exit: 1 },
  SOURCE_UNREACHABLE: { retryable: true, exit: 1 },
  // Links
  PEER_UNREACHABLE: { retryable: true, exit: 1 },
  PEER_REJECTED: { retryable: false, exit: 1 },
  PROTOCOL_INVALID: { retryable: false, exit: 1 },
  CREDENTIALS_REJECTED: { retryable: false, exit: 1 },
  CERTIFICATE_EXPIRED: { retryable: false, exit: 1 },
  ENROLMENT_REFUSED: { retryable: false, exit: 1 },
  // Store
  STORE_UNAVAILABLE: { retryable: true, exit: 1 },
  STORE_AMBIGUOUS: { retryable: true, exit: 1 },
  STORE_THROTTLED: { retryable: true, exit: 1 },
  STORE_UNSAFE: { retryable: false, exit: 1 },
  STORE_DENIED: { retryable: false, exit: 1 },
  STORE_FOREIGN: { retryable: false, exit: 1 },
  STORE_INVALID: { retryable: false, exit: 1 },
  OBJECT_MISSING: { retryable: false, exit: 1 },
  OBJECT_CORRUPT: { retryable: false, exit: 1 },
  FORMAT_UNSUPPORTED: { retryable: false, exit: 1 },
  KEY_MISSING: { retryable: false, exit: 1 },
  KEY_REJECTED: { retryable: false, exit: 1 },
  // Replication
  FENCED: { retryable: false, exit: 3 },
  CONTROL_SUPERSEDED: { retryable: false, exit: 3 },
  CHAIN_BROKEN: { retryable: false, exit: 1 },
  POINT_NOT_FOUND: { retryable: false, exit: 4 },
  NO_POINT: { retryable: true, exit: 1 },
  OVERLAY_FULL: { retryable: true, exit: 1 },
  // Recovery
  MACHINE_NOT_STARTED: { retryable: true, exit: 1 },
  HYPERVISOR_UNAVAILABLE: { retryable: true, exit: 1 },
  EXPORT_FAILED: { retryable: true, exit: 1 },
  VERIFICATION_FAILED: { retryable: false, exit: 1 },
  ACTION_FAILED: { retryable: false, exit: 1 },
  OPERATION_FAILED: { retryable: false, exit: 1 },
} as const satisfies Record<string, { readonly retryable: boolean; readonly exit: number }>;

export type FaultCode = keyof typeof FAULTS;

export type FaultDetails = Readonly<Record<string, string | number>>;

export interface FaultOptions {
  /** Which volume, which object, which value. Plain data; it travels over every boundary. */
  readonly details?: FaultDetails;
  /** What the operator can do now, as a sentence. */
  readonly hint?: string;
  readonly cause?: unknown;
}

export class Fault extends Error {
  override readonly name = "Fault";
  readonly code: FaultCode;
  readonly details: FaultDetails;
  readonly hint: string | undefined;

  constructor(code: FaultCode, message: string, options: FaultOptions = {}) {
    super(message, options.cause === undefined ? {} : { cause: options.cause });
    this.code = code;
    this.details = options.details ?? {};
    this.hint = options.hint;
  }

  get retryable(): boolean {
    return FAULTS[this.code].retryable;
  }

  /** Plain JSON, for links, APIs and logs. `faultFromJson` is the inverse (the cause is not carried). */
  toJSON(): FaultJson {
    return {
      code: this.code,
      message: this.message,
      details: this.details,
      ...(this.hint === undefined ? {} : { hint: this.hint }),
    };
  }
}

export interface FaultJson {
  readonly code: FaultCode;
  readonly message: string;
  readonly details: FaultDetails;
  readonly hint?: string;
}

export function isFaultCode(value: unknown): value is FaultCode {
  return typeof value === "string" && Object.hasOwn(FAULTS, value);
}

/** A fault that crossed a boundary. Anything that is not one becomes PROTOCOL_INVALID, with what was seen. */
export function faultFromJson(value: unknown): Fault {
  if (typeof value === "object" && value !== null) {
    const { code, message, details, hint } = value as Record<string, unknown>;
    if (isFaultCode(code) && typeof message === "string") {
      return new Fault(code, message, {
        details: (details ?? {}) as FaultDetails,
        ...(typeof hint === "string" ? { hint } : {}),
      });
    }
  }
  return new Fault("PROTOCOL_INVALID", `Expected a fault, got ${JSON.stringify(value)?.slice(0, 200)}`);
}

export function isFault(error: unknown, code?: FaultCode): error is Fault {
  return error instanceof Fault && (code === undefined || error.code === code);
}

/** The end of a `switch` over a union: the compiler proves it cannot be reached; at run time it is a bug. */
export function unreachable(value: never): never {
  throw new RangeError(`Unreachable case: ${JSON.stringify(value)}`);
}
