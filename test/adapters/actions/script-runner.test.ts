/** Scripts of plans as real processes: bounded, alone, remembered. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { chmodSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { test, type TestContext } from "node:test";
import { isFault } from "#model/fault.ts";
import { scriptRunner, type ScriptRequest } from "../../../src/adapters/actions/script-runner.ts";

const quiet = new AbortController().signal;

function open(t: TestContext) {
  const folder = mkdtempSync(join(tmpdir(), "lw-actions-"));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  chmodSync(folder, 0o777); // As root, scripts run as nobody.
  const request = (
    text: string,
    more: Partial<ScriptRequest> & { readonly timeoutMs?: number } = {},
  ): ScriptRequest => ({
    id: "shop.run.1/data/pre/stop#1",
    call: { do: "script", script: "stop", text, timeoutMs: more.timeoutMs ?? 20_000 },
    context: { plan: "shop", mode: "test", attempt: 1, groups: [{ group: "db" }] },
    ...more,
  });
  return { folder, request, run: scriptRunner(join(folder, "memory")) };
}

/** Written to by whoever runs the script. */
function shared(file: string): void {
  writeFileSync(file, "");
  chmodSync(file, 0o666);
}

const pidIn = (file: string): number => {
  const pid = Number(readFileSync(file, "utf8").trim().split("\n")[0]);
  assert.ok(pid > 0, "the script wrote its pid");
  return pid;
};

const lives = (pid: number): boolean => {
  try {
    return !/^\d+ \(.*\) [ZX]/.test(readFileSync(`/proc/${pid}/stat`, "utf8"));
  } catch {
    return false;
  }
};

async function until(what: string, holds: () => boolean): Promise<void> {
  for (let tries = 0; tries < 400; tries += 1) {
    if (holds()) return;
    await sleep(25);
  }
  throw new Error(`Not ${what}`);
}

test("a script has the run's context and nothing of ours, and leaves no folder behind", async (t) => {
  const { request, run } = open(t);
  process.env["LEEWARD_SECRET_OF_A_TEST"] = "x";
  t.after(() => delete process.env["LEEWARD_SECRET_OF_A_TEST"]);
  const said = await run(request("#!/bin/sh\npwd; env | sort; cat"), quiet);
  assert.equal(said.outcome, "exit 0");
  assert.match(
    said.output,
    /LEEWARD_ATTEMPT=1\nLEEWARD_ID=shop.run.1\/data\/pre\/stop#1\nLEEWARD_MODE=test\nLEEWARD_PLAN=shop/,
  );
  assert.doesNotMatch(said.output, /SECRET|NODE|HOME=/);
  assert.match(said.output, /"groups":\[\{"group":"db"\}\]/);
  const [place = ""] = said.output.split("\n");
  assert.match(place, /leeward-action-/);
  assert.equal(existsSync(place), false);
  if (process.getuid?.() === 0)
    assert.match((await run(request("id -u; id -G", { id: "who" }), quiet)).output, /^65534\n65534$/m);
});

test("an exit code, a signal and what it said are the fault", async (t) => {
  const { request, run } = open(t);
  await assert.rejects(
    run(request("echo first; echo 'no such host' >&2; exit 3"), quiet),
    (error) =>
      isFault(error, "ACTION_FAILED") &&
      /"stop" ended with exit code 3/.test(error.message) &&
      /no such host/.test(error.hint ?? ""),
  );
  await assert.rejects(
    run(request("kill -TERM $$", { id: "b" }), quiet),
    (error) => isFault(error, "ACTION_FAILED") && /SIGTERM/.test(error.message),
  );
});

test("the same attempt is carried out once: asked again, also after a failure, the answer is read", async (t) => {
  const { folder, request, run } = open(t);
  const text = `echo "$$" >> ${folder}/runs; exit $(grep -c . ${folder}/runs)`;
  shared(join(folder, "runs"));
  for (let time = 0; time < 3; time += 1)
    await assert.rejects(
      run(request(text), quiet),
      (error) => isFault(error, "ACTION_FAILED") && /code 1$/.test(error.message),
    );
  await assert.rejects(run(request(text, { id: "the next attempt" }), quiet), /code 2/);
});

test("too slow, too loud, or with children of its own: it ends in time, and so does all that it started", async (t) => {
  const { folder, request, run } = open(t);
  const file = join(folder, "pid");
  shared(file);
  const started = performance.now();
  await assert.rejects(
    run(request(`sleep 600 & echo $! > ${file}; sleep 600`, { timeoutMs: 700 }), quiet),
    (error) => isFault(error, "ACTION_FAILED") && /did not end within 0.7 s/.test(error.message),
  );
  assert.ok(performance.now() - started < 20_000);
  await until("ended", () => !lives(pidIn(file)));
  const { output } = await run(request("seq 1 200000; echo the end", { id: "loud" }), quiet);
  assert.ok(output.length <= 4_096 && output.endsWith("the end\n"));
  const left = await run(request(`sleep 600 & echo $! > ${file}; echo gone`, { id: "left" }), quiet);
  assert.match(left.output, /gone/);
  await until("what it left is ended", () => !lives(pidIn(file)));
});

test("stopped, it is ended at once and not remembered: the next attempt of the activity runs it", async (t) => {
  const { folder, request, run } = open(t);
  const stop = new AbortController();
  const file = join(folder, "pid");
  shared(file);
  const running = run(request(`echo $$ > ${file}; test -e ${folder}/go || sleep 600`), stop.signal);
  running.catch(() => undefined);
  await until("started", () => readFileSync(file, "utf8") !== "");
  stop.abort();
  await assert.rejects(running);
  await until("ended", () => !lives(pidIn(file)));
  writeFileSync(join(folder, "go"), "");
  assert.equal((await run(request(`echo $$ > ${file}; test -e ${folder}/go || sleep 600`), quiet)).outcome, "exit 0");
});

test("a worker that was killed leaves its script running; the next attempt ends it before it begins", async (t) => {
  const { folder, request } = open(t);
  const pids = join(folder, "pids");
  shared(pids);
  shared(join(folder, "places"));
  const memory = join(folder, "memory");
  const asked = request(`pwd >> ${folder}/places; echo $$ >> ${pids}; test "$(grep -c . ${pids})" -gt 1 || sleep 600`);
  const code = `import { scriptRunner } from ${JSON.stringify(new URL("../../../src/adapters/actions/script-runner.ts", import.meta.url).href)};
    await scriptRunner(${JSON.stringify(memory)})(${JSON.stringify(asked)}, new AbortController().signal);`;
  const worker = spawn(process.execPath, ["--input-type=module", "-e", code], { stdio: "inherit" });
  t.after(() => worker.kill("SIGKILL"));
  const began = () =>
    readdirSync(folder).includes("memory") &&
    readdirSync(memory).some((name) => existsSync(join(memory, name, "started.json")));
  await until("started", () => readFileSync(pids, "utf8") !== "" && began());
  worker.kill("SIGKILL");
  const first = pidIn(pids);
  assert.ok(lives(first));
  assert.equal((await scriptRunner(memory)(asked, quiet)).outcome, "exit 0");
  assert.equal(lives(first), false);
  const places = readFileSync(join(folder, "places"), "utf8").trim().split("\n");
  assert.equal(places.length, 2);
  assert.deepEqual(
    places.filter((place) => existsSync(place)),
    [],
    "the folder of the attempt that was ended goes too",
  );
});
