/**
 * The ledger service of the demo guest, asked over the network as any user of it would.
 *
 * The guest appends numbered, hash-chained, checksummed records with fsync, first to disk A, then to disk B. So a crash-consistent pair
 * has A − B in {0, 1}, and nothing before the last record may be missing.
 * Source: guest/ledgerd, docs/guest.md.
 */
import { request } from "node:http";
import { Fault } from "#model/fault.ts";

export interface LedgerStatus {
  /** Number of the last record that is durable on each disk. */
  readonly a: number;
  readonly b: number;
  /** Both files were whole, and agreed, when the service started. */
  readonly ok: boolean;
  readonly gapAtBoot: number;
  readonly bootId: string;
  readonly perSecond: number;
  /** Last record found on each disk when the service started. */
  readonly foundAtBoot: readonly [number, number];
}

export interface LedgerVerdict extends LedgerStatus {
  /** Every record of both files was read again: numbers, checksums, chain. */
  readonly whole: boolean;
}

interface Wire {
  readonly a: number;
  readonly b: number;
  readonly ok: boolean;
  readonly gap_at_boot: number;
  readonly boot_id: string;
  readonly per_s: number;
  readonly boot: readonly { readonly last: number; readonly ok: boolean }[];
  readonly now?: readonly { readonly last: number; readonly ok: boolean }[];
}

export async function ledgerStatus(port: number, timeoutMs = 2_000): Promise<LedgerStatus> {
  return status(await get(port, "/status", timeoutMs));
}

export async function verifyLedger(port: number, timeoutMs = 60_000): Promise<LedgerVerdict> {
  const wire = await get(port, "/verify", timeoutMs);
  const now = wire.now ?? [];
  return { ...status(wire), whole: now.length === 2 && now.every((one) => one.ok) };
}

function status(wire: Wire): LedgerStatus {
  return {
    a: wire.a,
    b: wire.b,
    ok: wire.ok,
    gapAtBoot: wire.gap_at_boot,
    bootId: wire.boot_id,
    perSecond: wire.per_s,
    foundAtBoot: [wire.boot[0]?.last ?? 0, wire.boot[1]?.last ?? 0],
  };
}

function get(port: number, path: string, timeoutMs: number): Promise<Wire> {
  return new Promise((resolve, reject) => {
    const fail = (cause: unknown): void =>
      reject(new Fault("PEER_UNREACHABLE", `The ledger at port ${port} does not answer`, { cause, details: { port } }));
    // The guest closes each connection; an agent that keeps them would only add failures.
    const call = request({ host: "127.0.0.1", port, path, timeout: timeoutMs, agent: false }, (response) => {
      let body = "";
      response.setEncoding("utf8");
      response.on("data", (part: string) => (body += part));
      response.on("error", fail);
      response.on("end", () => {
        try {
          resolve(JSON.parse(body) as Wire);
        } catch (cause) {
          fail(cause);
        }
      });
    });
    call.on("timeout", () => call.destroy(new Error(`No answer within ${timeoutMs} ms`)));
    call.on("error", fail);
    call.end();
  });
}
