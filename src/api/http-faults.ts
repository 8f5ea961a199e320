/** Faults as HTTP answers: the body is the fault itself, the status is for those who look no further. */
import { FAULTS, type Fault, type FaultCode } from "#model/fault.ts";

const STATUS: Partial<Record<FaultCode, number>> = {
  USAGE: 400,
  CONFIG_INVALID: 400,
  PLAN_INVALID: 400,
  PROTOCOL_INVALID: 502,
  CREDENTIALS_REJECTED: 401,
  ENROLMENT_REFUSED: 403,
  PEER_REJECTED: 403,
  NOT_FOUND: 404,
  POINT_NOT_FOUND: 404,
  REFUSED: 409,
  FENCED: 409,
  NO_POINT: 409,
  DISK_ALREADY_PROTECTED: 409,
  IMAGE_IN_USE: 409,
  IMAGE_MISSING: 422,
  IMAGE_INVALID: 422,
  TIMED_OUT: 504,
};

export function statusOf(fault: Fault): number {
  return STATUS[fault.code] ?? (FAULTS[fault.code].retryable ? 503 : 500);
}
