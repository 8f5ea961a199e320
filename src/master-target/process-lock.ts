/**
 * One process per folder: a socket in Linux's abstract namespace, which vanishes with the process that holds it, however it ends.
 * A restarted master target may meet the last moments of its predecessor's children; whoever writes an overlay must be alone.
 */
import { createHash } from "node:crypto";
import { createServer, type Server } from "node:net";
import { Fault } from "#model/fault.ts";
import type { Clock } from "#ports/clock.ts";

const RETRY_MS = 50;

/** Throws REFUSED when another process holds the folder for longer than `waitMs`. */
export async function lockFolder(
  folder: string,
  options: { readonly clock: Clock; readonly waitMs: number },
): Promise<{ release(): Promise<void> }> {
  const name = `\0leeward-${createHash("sha256").update(folder).digest("hex").slice(0, 32)}`;
  const giveUpAt = options.clock.monotonic() + options.waitMs;
  for (;;) {
    const server = await tryListen(name);
    if (server) return { release: () => new Promise((resolve) => server.close(() => resolve())) };
    if (options.clock.monotonic() >= giveUpAt) {
      throw new Fault("REFUSED", `Another process works in "${folder}"`, {
        details: { folder },
        hint: "Stop the other master target of this state folder.",
      });
    }
    await options.clock.sleep(RETRY_MS);
  }
}

function tryListen(name: string): Promise<Server | undefined> {
  return new Promise((resolve, reject) => {
    const server = createServer((socket) => socket.destroy());
    server.once("error", (error: NodeJS.ErrnoException) =>
      error.code === "EADDRINUSE" ? resolve(undefined) : reject(error),
    );
    server.listen(name, () => resolve(server.unref()));
  });
}
