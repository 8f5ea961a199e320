/**
 * Reads an export of ours over its unix socket: simple replies, several requests in flight. What a copy needs, and no more.
 *
 * Source: NBD `doc/proto.md`, "Fixed newstyle negotiation" and "Transmission".
 */
import { connect, type Socket } from "node:net";
import { Fault } from "#model/fault.ts";
import { exactReader } from "./exact-reader.ts";
import * as nbd from "./protocol.ts";

export interface NbdReader {
  readonly sizeBytes: number;
  /** Throws EXPORT_FAILED when the server cannot read it or is gone. */
  read(offset: number, length: number): Promise<Uint8Array>;
  close(): void;
}

const ANSWER_MS = 60_000;

/** Throws PEER_UNREACHABLE, EXPORT_FAILED. */
export async function openNbdReader(socketPath: string, exportName: string): Promise<NbdReader> {
  const socket = connect({ path: socketPath });
  const take = exactReader(socket);
  const calls = new Map<
    bigint,
    { readonly length: number; readonly offset: number; readonly answer: PromiseWithResolvers<Uint8Array> }
  >();
  let lastId = 0n;
  let lost: Fault | undefined;
  const lose = (fault: Fault): void => {
    lost ??= fault;
    for (const { answer } of calls.values()) answer.reject(lost);
    calls.clear();
    socket.destroy();
  };
  socket.on("error", () => undefined); // `take` says that the stream ended.
  const sizeBytes = await negotiate(socket, take, { socketPath, exportName });

  void (async () => {
    for (;;) {
      const head = await take(16);
      const id = head.readBigUInt64BE(8);
      const call = calls.get(id);
      if (head.readUInt32BE(0) !== nbd.SIMPLE_REPLY_MAGIC || call === undefined)
        throw failed(`answers what nobody asked`);
      const error = head.readUInt32BE(4);
      // It stays among the calls until all of its answer is there: a server that dies within it is told to whoever waits.
      if (error === 0) call.answer.resolve(await take(call.length));
      else call.answer.reject(failed(`cannot read ${call.length} bytes at ${call.offset} (error ${error})`));
      calls.delete(id);
    }
  })().catch((error: unknown) => lose(error instanceof Fault ? error : failed("ended")));

  return {
    sizeBytes,
    read(offset, length) {
      if (lost !== undefined) return Promise.reject(lost);
      const head = Buffer.alloc(28);
      head.writeUInt32BE(nbd.REQUEST_MAGIC, 0);
      head.writeUInt16BE(nbd.CMD_READ, 6);
      head.writeBigUInt64BE(++lastId, 8);
      head.writeBigUInt64BE(BigInt(offset), 16);
      head.writeUInt32BE(length, 24);
      const answer = Promise.withResolvers<Uint8Array>();
      calls.set(lastId, { length, offset, answer });
      socket.write(head);
      return answer.promise;
    },
    close: () => lose(failed("was closed")),
  };

  function failed(what: string): Fault {
    return new Fault("EXPORT_FAILED", `The export of "${exportName}" ${what}`, {
      details: { export: exportName },
      hint: "`leeward store check` says whether an object is damaged, and which points that costs; repeat the command to go on.",
    });
  }
}

async function negotiate(
  socket: Socket,
  take: (bytes: number) => Promise<Buffer>,
  { socketPath, exportName }: { readonly socketPath: string; readonly exportName: string },
): Promise<number> {
  const timer = setTimeout(() => socket.destroy(), ANSWER_MS);
  try {
    const greeting = await take(18);
    if (greeting.readBigUInt64BE(0) !== nbd.NBD_MAGIC) throw new Error("no NBD server");
    const name = Buffer.from(exportName);
    const option = Buffer.alloc(4 + 16 + 4 + name.length + 2);
    option.writeUInt32BE(nbd.FLAG_FIXED_NEWSTYLE | nbd.FLAG_NO_ZEROES, 0);
    option.writeBigUInt64BE(nbd.OPTION_MAGIC, 4);
    option.writeUInt32BE(nbd.OPT_GO, 12);
    option.writeUInt32BE(6 + name.length, 16);
    option.writeUInt32BE(name.length, 20);
    name.copy(option, 24);
    socket.write(option);
    let sizeBytes: number | undefined;
    for (;;) {
      const head = await take(20);
      const type = head.readUInt32BE(12);
      const data = await take(head.readUInt32BE(16));
      if (type === nbd.REP_ACK && sizeBytes !== undefined) return sizeBytes;
      if (type !== nbd.REP_INFO) throw new Error(`it refuses (${type})`);
      if (data.readUInt16BE(0) === nbd.INFO_EXPORT) sizeBytes = Number(data.readBigUInt64BE(2));
    }
  } catch (cause) {
    socket.destroy();
    throw new Fault("PEER_UNREACHABLE", `Nobody serves "${exportName}" at "${socketPath}" on this machine`, {
      details: { socket: socketPath, export: exportName },
      hint: "Run the command on the machine of the master target, or use `leeward rescue restore` with the bucket and the keys.",
      cause,
    });
  } finally {
    clearTimeout(timer);
  }
}
