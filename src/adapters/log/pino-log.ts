/**
 * Structured logs as JSON lines, through pino. Standard output belongs to commands and their JSON, so logs go to standard error or
 * to the file that the supervisor gave us.
 */
import { destination, pino } from "pino";
import type { Logger } from "pino";
import { Fault } from "#model/fault.ts";
import type { Log, LogFields } from "#ports/log.ts";

export interface LogOptions {
  /** `LEEWARD_LOG` of the environment is the caller's business; default "info". */
  readonly level?: "debug" | "info" | "warn" | "error" | "silent";
  /** A file to append to; standard error if left out. */
  readonly file?: string;
  /** On every line: role, site, name. */
  readonly fields?: LogFields;
}

/** Writes are synchronous: the last line before a crash is the one that matters. */
export function createLog(options: LogOptions = {}): Log {
  const target = destination({ dest: options.file ?? 2, sync: true, mkdir: true });
  const logger = pino(
    {
      level: options.level ?? "info",
      base: options.fields ?? {},
      timestamp: () => `,"time":"${new Date(Date.now()).toISOString()}"`,
      formatters: { level: (label) => ({ level: label }) },
    },
    target,
  );
  return wrap(logger);
}

/** Drops everything; for tests and for commands that speak to a person. */
export const silentLog: Log = {
  debug: () => undefined,
  info: () => undefined,
  warn: () => undefined,
  error: () => undefined,
  child: () => silentLog,
};

function wrap(logger: Logger): Log {
  return {
    debug: (message, fields) => logger.debug(plain(fields), message),
    info: (message, fields) => logger.info(plain(fields), message),
    warn: (message, fields) => logger.warn(plain(fields), message),
    error: (message, fields) => logger.error(plain(fields), message),
    child: (fields) => wrap(logger.child(plain(fields))),
  };
}

/** Errors have no enumerable fields: spell out what a reader needs, with the chain of causes. */
function plain(fields: LogFields = {}): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(fields).map(([key, value]) => [key, value instanceof Error ? describe(value) : value]),
  );
}

function describe(error: Error): Record<string, unknown> {
  return {
    ...(error instanceof Fault
      ? {
          code: error.code,
          message: error.message,
          details: error.details,
          ...(error.hint === undefined ? {} : { hint: error.hint }),
        }
      : { name: error.name, message: error.message, stack: error.stack }),
    ...(error.cause instanceof Error ? { cause: describe(error.cause) } : {}),
  };
}
