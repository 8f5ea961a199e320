import assert from "node:assert/strict";
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { isFault, type Fault } from "#model/fault.ts";
import { openSourceStream, ScriptedSource } from "../data-mover/mover-source.ts";
import { GROUP, run, targetSite, until, type TargetSite } from "./target-site.ts";

const PROGRAM = fileURLToPath(new URL("../../src/main/leeward.ts", import.meta.url));

/** qemu-io as QEMU's block layer uses NBD: one session that waits for its server to come back. */
function reconnectingClient(site: TargetSite, socket: string, name: string) {
  const options = `driver=raw,file.driver=nbd,file.server.type=unix,file.server.path=${socket},file.export=${name},file.reconnect-delay=60`;
  const child = spawn("qemu-io", ["--image-opts", options], { stdio: ["pipe", "pipe", "pipe"] });
  site.defer(() => child.kill("SIGKILL"));
  let output = "";
  child.stdout.on("data", (data: Buffer) => (output += data.toString()));
  child.stderr.on("data", (data: Buffer) => (output += data.toString()));
  let asked = 0;
  return {
    async ask(command: string): Promise<void> {
      const from = output.length;
      child.stdin.write(`${command}\n`);
      asked++;
      const answer = await until(
        `an answer to "${command}": ${output.slice(-300)}`,
        () => (/(wrote|read) \d+\/\d+ bytes|failed|error/i.exec(output.slice(from)) ? output.slice(from) : undefined),
        90,
      );
      assert.ok(!/failed|error/i.test(answer), `command ${asked}, "${command}": ${answer}`);
    },
    async flush(): Promise<void> {
      child.stdin.write("flush\n");
      await this.ask("read 0 512"); // Behind the flush in line.
    },
    close: () => child.stdin.end("quit\n"),
  };
}

test("A machine writes on through kill -9 of its export's process: one session, no error, nothing acknowledged lost", async (t) => {
  const site = await targetSite(t);
  const source = new ScriptedSource([1500], 51);
  await site.prepare(source);
  const stream = await openSourceStream(site.sourceLink, site.config.moverListen, source, {
    groupId: GROUP,
    lanes: 1,
    site: "primary",
  });
  while (source.disks[0]!.unsynced.size > 0) await stream.ship(source.cut({ sweepBlocks: 2000 }));
  await stream.ship(source.cut({ writes: 10 }));
  stream.close();
  const { masterTarget } = site.target;
  await masterTarget.fence({ groupId: GROUP, operationId: "failover-1", activeSite: "secondary" });
  const status = await masterTarget.openExport({
    groupId: GROUP,
    operationId: "failover-1",
    point: "latest",
    mode: "read-write",
  });
  const { url, sizeBytes } = status.disks[0]!;
  const client = reconnectingClient(site, new URL(url).searchParams.get("socket")!, "disk-0");
  const written = new Map<number, number>();
  for (let round = 1; round <= 9; round++) {
    const offset = Math.floor((source.random() * (sizeBytes - 8192)) / 4096) * 4096;
    await client.ask(`write -P ${round} ${offset} 4096`); // Acknowledged, not flushed: the machine may read it from nowhere else again.
    written.set(offset, round);
    if (round % 3 === 0) process.kill(site.target.exportPids().get("failover-1")!, "SIGKILL");
  }
  for (const [offset, pattern] of written) await client.ask(`read -P ${pattern} ${offset} 4096`);
  client.close();
});

test("kill -9 of the master target takes its children along, and the next one goes on with mover and exports", async (t) => {
  const site = await targetSite(t);
  const source = new ScriptedSource([1200], 52);
  await site.prepare(source);
  let stream = await openSourceStream(site.sourceLink, site.config.moverListen, source, {
    groupId: GROUP,
    lanes: 0,
    site: "primary",
  });
  while (source.disks[0]!.unsynced.size > 0) await stream.ship(source.cut({ sweepBlocks: 2000 }));
  await stream.ship(source.cut({ writes: 10 }));
  stream.close();
  const status = await site.target.masterTarget.openExport({
    groupId: GROUP,
    operationId: "test-1",
    point: "latest",
    mode: "throw-away",
  });
  const socket = new URL(status.disks[0]!.url).searchParams.get("socket")!;
  await site.target.close(); // From here on it runs as a process of its own.

  const configFile = join(site.folder, "config.json");
  await writeFile(configFile, JSON.stringify(site.config));
  const start = (): ChildProcess => {
    const child = spawn(process.execPath, [PROGRAM, "master-target", "--config", configFile], {
      stdio: ["ignore", "ignore", "pipe"],
    });
    child.stderr?.resume();
    site.defer(async () => {
      if (child.exitCode !== null || child.signalCode !== null) return;
      child.kill("SIGTERM");
      await once(child, "exit");
    });
    return child;
  };
  const first = start();
  const client = reconnectingClient(
    site,
    await until("the export is served", async () => ((await served(socket)) ? socket : undefined), 60),
    "disk-0",
  );
  await client.ask("write -P 77 64k 4096");
  const children = await childrenOf(first.pid!);
  assert.equal(children.length, 2, "a mover and an export");
  first.kill("SIGKILL");
  await until("the children are gone", async () => (children.every((pid) => !alive(pid)) ? true : undefined));
  start();
  await client.ask("read -P 77 64k 4096");
  await client.ask("write -P 78 128k 4096");
  client.close();
  stream = await until(
    "the mover listens again",
    () =>
      openSourceStream(site.sourceLink, site.config.moverListen, source, {
        groupId: GROUP,
        lanes: 0,
        site: "primary",
      }).catch(() => undefined),
    60,
  );
  assert.equal((await stream.ship(source.cut({ writes: 5 }))).barrier, true);
  stream.close();
});

async function served(socket: string): Promise<boolean> {
  return run("nbdinfo", ["--size", `nbd+unix:///disk-0?socket=${socket}`]).then(
    () => true,
    () => false, // Not yet.
  );
}

async function childrenOf(pid: number): Promise<number[]> {
  const { stdout } = await run("ps", ["-o", "pid=", "--ppid", String(pid)]);
  return stdout.trim().split(/\s+/).filter(Boolean).map(Number);
}

function alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false; // ESRCH
  }
}

test("kill -9 of the S3 server: the source is told and goes on later, and an export's reads wait instead of failing", async (t) => {
  const site = await targetSite(t);
  const source = new ScriptedSource([1500], 53);
  await site.prepare(source);
  let stream = await openSourceStream(site.sourceLink, site.config.moverListen, source, {
    groupId: GROUP,
    lanes: 0,
    site: "primary",
  });
  while (source.disks[0]!.unsynced.size > 0) await stream.ship(source.cut({ sweepBlocks: 2000 }));
  const point = await stream.ship(source.cut({ writes: 10 }));
  const status = await site.target.masterTarget.openExport({
    groupId: GROUP,
    operationId: "test-1",
    point: "latest",
    mode: "throw-away",
  });
  const { url } = status.disks[0]!;

  await site.server.kill();
  const cut = source.cut({ writes: 5 });
  await stream.send(cut);
  const committing = stream.commit(cut, 90_000);
  const outcome = committing.then(
    () => "committed",
    (error: unknown) => error,
  );
  const copying = run("nbdcopy", [url, join(site.folder, "copy")]);
  copying.catch(() => undefined); // Awaited below.
  await new Promise((resolve) => setTimeout(resolve, 12_000));
  await site.server.restart();
  await copying;
  assert.equal(
    Buffer.compare(await readFile(join(site.folder, "copy")), source.states.get(point.barrierNumber)!.get("disk-0")!),
    0,
  );
  if ((await outcome) !== "committed") {
    assert.ok(isFault(await outcome) && ((await outcome) as Fault).retryable, String(await outcome));
    assert.equal((await stream.commit(cut)).barrierNumber, cut.cycle); // The frames are still there.
  }
  stream.close();
  stream = await openSourceStream(site.sourceLink, site.config.moverListen, source, {
    groupId: GROUP,
    lanes: 0,
    site: "primary",
  });
  assert.equal(stream.opened.barrier, cut.cycle);
  stream.close();
});
