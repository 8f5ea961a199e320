/**
 * A real S3 server for tests: versitygw on a folder of its own, on a free port of the loopback interface.
 *
 * `stop` ends the process and deletes the folder; it is safe to call twice. `kill` ends it with SIGKILL and `restart` starts it again
 * on the same port and folder, for tests of what happens meanwhile.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { rmSync } from "node:fs";
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { freePort } from "../../src/adapters/net/free-port.ts";
import { findTool } from "../../src/embedded/tools.ts";

export interface Versitygw {
  readonly endpoint: string;
  readonly accessKey: string;
  readonly secretKey: string;
  readonly region: string;
  /** Folder whose sub-folders are the buckets: objects are files there, which a test may look at or damage. */
  readonly root: string;
  readonly pid: number;
  kill(): Promise<void>;
  restart(): Promise<void>;
  stop(): Promise<void>;
}

export async function startVersitygw(options: { readonly arguments?: readonly string[] } = {}): Promise<Versitygw> {
  const program = await findTool("versitygw");
  const folder = await mkdtemp(join(tmpdir(), "leeward-s3-"));
  const root = join(folder, "buckets");
  await mkdir(root);
  const port = await freePort();
  const endpoint = `http://127.0.0.1:${port}`;
  const accessKey = "test-access";
  const secretKey = "test-secret-of-some-length";
  let child: ChildProcess;

  const start = async (): Promise<void> => {
    const started = spawn(
      program,
      [
        "--port",
        `127.0.0.1:${port}`,
        "--quiet",
        "--keep-alive",
        "posix",
        "--data-integrity-etag",
        ...(options.arguments ?? []),
        root,
      ],
      {
        stdio: ["ignore", "ignore", "pipe"],
        env: { PATH: process.env["PATH"], ROOT_ACCESS_KEY: accessKey, ROOT_SECRET_KEY: secretKey },
      },
    );
    child = started;
    let complaint = "";
    started.stderr!.on("data", (data: Buffer) => (complaint = (complaint + data.toString()).slice(-2000)));
    for (let tries = 0; ; tries++) {
      if (started.exitCode !== null) throw new Error(`versitygw ended at once: ${complaint}`);
      try {
        await (await fetch(endpoint)).arrayBuffer();
        return;
      } catch (error) {
        // Not listening yet.
        if (tries > 200) throw new Error(`versitygw does not answer: ${complaint}`, { cause: error });
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    }
  };

  const end = async (signal: NodeJS.Signals): Promise<void> => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const gone = once(child, "exit");
    child.kill(signal);
    await gone;
  };

  // A test that dies without its clean-up must not leave a server behind.
  const atExit = (): void => {
    child.kill("SIGKILL");
    rmSync(folder, { recursive: true, force: true });
  };
  process.on("exit", atExit);
  try {
    await start();
  } catch (error) {
    process.off("exit", atExit);
    await rm(folder, { recursive: true, force: true });
    throw error;
  }
  return {
    endpoint,
    accessKey,
    secretKey,
    region: "us-east-1",
    root,
    get pid() {
      return child.pid!;
    },
    kill: () => end("SIGKILL"),
    restart: start,
    async stop() {
      await end("SIGKILL");
      process.off("exit", atExit);
      await rm(folder, { recursive: true, force: true, maxRetries: 3 });
    },
  };
}
