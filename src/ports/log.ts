export type LogFields = Readonly<Record<string, unknown>>;

/** Structured log. A message is a fixed sentence; what varies goes into the fields. Never secrets. */
export interface Log {
  debug(message: string, fields?: LogFields): void;
  info(message: string, fields?: LogFields): void;
  warn(message: string, fields?: LogFields): void;
  error(message: string, fields?: LogFields): void;
  child(fields: LogFields): Log;
}
