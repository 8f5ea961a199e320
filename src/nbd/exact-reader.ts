/** The other side of a socket, so many bytes at a time: what both clients of an NBD server read with, ours and that of the tests. */
import type { Socket } from "node:net";

export class StreamEnded extends Error {}

/** Reads exactly so many bytes; one read at a time. Throws StreamEnded when the stream ends before. */
export function exactReader(socket: Socket): (bytes: number) => Promise<Buffer> {
  const chunks: Buffer[] = [];
  let buffered = 0;
  let ended = false;
  let wake: (() => void) | undefined;
  socket.on("data", (chunk: Buffer) => {
    chunks.push(chunk);
    buffered += chunk.length;
    wake?.();
  });
  socket.once("close", () => {
    ended = true;
    wake?.();
  });
  return async (bytes) => {
    while (buffered < bytes) {
      if (ended) throw new StreamEnded("the stream ended");
      await new Promise<void>((resolve) => (wake = resolve));
    }
    const whole = chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks);
    chunks.length = 0;
    const rest = whole.subarray(bytes);
    if (rest.length > 0) chunks.push(rest);
    buffered = rest.length;
    return whole.subarray(0, bytes);
  };
}
