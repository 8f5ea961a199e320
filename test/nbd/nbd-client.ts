/** A small NBD client for tests: many requests in flight, simple replies, and nothing that a real client would hide. */
import { connect } from "node:net";
import type { NetConnectOpts } from "node:net";
import { exactReader, StreamEnded as ConnectionLost } from "../../src/nbd/exact-reader.ts";

export interface NbdClient {
  readonly sizeBytes: number;
  readonly flags: number;
  read(offset: number, length: number): Promise<Buffer>;
  write(data: Uint8Array, offset: number, options?: { fua?: boolean }): Promise<void>;
  zero(offset: number, length: number, options?: { fua?: boolean; fast?: boolean; noHole?: boolean }): Promise<void>;
  trim(offset: number, length: number): Promise<void>;
  flush(): Promise<void>;
  /** Any request as it stands; rejects with NbdError. */
  request(type: number, flags: number, offset: number, length: number, data?: Uint8Array): Promise<Buffer>;
  readonly closed: Promise<void>;
  disconnect(): Promise<void>;
  destroy(): void;
}

export class NbdError extends Error {
  readonly errno: number;
  constructor(errno: number) {
    super(`NBD error ${errno}`);
    this.errno = errno;
  }
}

export { ConnectionLost };

export async function connectNbd(where: NetConnectOpts, exportName: string): Promise<NbdClient> {
  const socket = connect(where);
  const closed = new Promise<void>((done) => socket.once("close", () => done()));
  await new Promise<void>((resolve, reject) => {
    socket.once("connect", resolve);
    socket.once("error", reject);
  });
  socket.on("error", () => undefined); // `closed` says it.
  const take = exactReader(socket);
  const greeting = await take(18);
  if (greeting.toString("latin1", 0, 16) !== "NBDMAGICIHAVEOPT") throw new Error("no NBD server");
  const name = Buffer.from(exportName);
  const option = Buffer.alloc(4 + 16 + 4 + name.length + 2);
  option.writeUInt32BE(3, 0);
  option.write("IHAVEOPT", 4, "latin1");
  option.writeUInt32BE(7, 12);
  option.writeUInt32BE(6 + name.length, 16);
  option.writeUInt32BE(name.length, 20);
  name.copy(option, 24);
  socket.write(option);
  let sizeBytes = 0;
  let flags = 0;
  for (;;) {
    const head = await take(20);
    const type = head.readUInt32BE(12);
    const data = await take(head.readUInt32BE(16));
    if (type === 1) break;
    if (type >= 0x80000000) {
      socket.destroy();
      throw new NbdError(type - 0x80000000);
    }
    if (data.readUInt16BE(0) === 0) {
      sizeBytes = Number(data.readBigUInt64BE(2));
      flags = data.readUInt16BE(10);
    }
  }
  const calls = new Map<number, { length: number; resolve: (data: Buffer) => void; reject: (error: Error) => void }>();
  let lastId = 0;
  let lost = false;
  void (async () => {
    try {
      for (;;) {
        const head = await take(16);
        const id = Number(head.readBigUInt64BE(8));
        const call = calls.get(id)!;
        const error = head.readUInt32BE(4);
        if (error !== 0) call.reject(new NbdError(error));
        else call.resolve(await take(call.length));
        calls.delete(id);
      }
    } catch {
      lost = true;
      for (const call of calls.values()) call.reject(new ConnectionLost("connection lost"));
    }
  })();

  function request(
    type: number,
    requestFlags: number,
    offset: number,
    length: number,
    data?: Uint8Array,
  ): Promise<Buffer> {
    if (lost) return Promise.reject(new ConnectionLost("connection lost"));
    const head = Buffer.alloc(28);
    const id = ++lastId;
    head.writeUInt32BE(0x25609513, 0);
    head.writeUInt16BE(requestFlags, 4);
    head.writeUInt16BE(type, 6);
    head.writeBigUInt64BE(BigInt(id), 8);
    head.writeBigUInt64BE(BigInt(offset), 16);
    head.writeUInt32BE(length, 24);
    const { promise, resolve, reject } = Promise.withResolvers<Buffer>();
    calls.set(id, { length: type === 0 ? length : 0, resolve, reject });
    socket.write(head);
    if (data !== undefined) socket.write(data);
    return promise;
  }

  return {
    sizeBytes,
    flags,
    closed,
    request,
    read: (offset, length) => request(0, 0, offset, length),
    write: async (data, offset, options) =>
      void (await request(1, options?.fua === true ? 1 : 0, offset, data.length, data)),
    zero: async (offset, length, options) =>
      void (await request(
        6,
        (options?.fua === true ? 1 : 0) | (options?.noHole === true ? 2 : 0) | (options?.fast === true ? 16 : 0),
        offset,
        length,
      )),
    trim: async (offset, length) => void (await request(4, 0, offset, length)),
    flush: async () => void (await request(3, 0, 0, 0)),
    async disconnect() {
      const head = Buffer.alloc(28);
      head.writeUInt32BE(0x25609513, 0);
      head.writeUInt16BE(2, 6);
      socket.write(head);
      await closed;
    },
    destroy: () => socket.destroy(),
  };
}
