/** The line between two sites: counts what crosses it both ways, delays it, is cut. */
import { connect, createServer, type AddressInfo, type Socket } from "node:net";

export interface Wan {
  readonly port: number;
  /** Bytes of TCP payload so far, both ways together. */
  readonly bytes: number;
  /** Every connection ends at once; new ones are taken. */
  cut(): void;
  close(): Promise<void>;
}

/** `delayMs`: each way. */
export async function startWan(target: () => number, delayMs = 0): Promise<Wan> {
  const sockets = new Set<Socket>();
  let bytes = 0;
  const server = createServer((near) => {
    const far = connect({ host: "127.0.0.1", port: target() });
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      sockets.add(from);
      from.on("error", () => to.destroy());
      from.on("close", () => {
        sockets.delete(from);
        to.destroy();
      });
      from.on("data", (chunk) => {
        bytes += chunk.length;
        if (delayMs === 0) {
          if (!to.write(chunk)) from.pause();
        } else setTimeout(() => to.destroyed || to.write(chunk), delayMs);
      });
      to.on("drain", () => from.resume());
    }
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo; // A TCP server's address is one.
  const cut = (): void => {
    for (const socket of sockets) socket.destroy();
  };
  return {
    port,
    get bytes() {
      return bytes;
    },
    cut,
    async close() {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      cut();
      await closed;
    },
  };
}
