/** The plan against a dumb model of QEMU, the record and a guest, which dies, loses its power or changes by itself anywhere. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { nextPivotStep, type PivotStep } from "../../../src/adapters/qemu/pivot-plan.ts";

type Job = "running" | "ready" | "waiting" | "pending" | "concluded" | undefined;

interface Model {
  guestRuns: boolean;
  atTarget: boolean;
  job: Job;
  recorded: "from" | "to";
  /** Numbers of the writes that each disk has; the guest was told that all up to `told` are done. */
  from: number;
  to: number;
  told: number;
}

/** Nothing that the guest was told is done is missing from the disk that the record names. */
function assertSafe(model: Model, story: readonly string[]): void {
  const has = model.recorded === "from" ? model.from : model.to;
  assert.ok(has >= model.told, `${story.join(" ")}: told ${model.told}, "${model.recorded}" has ${has}`);
}

/** A write of the guest, if it can reach its disk: a drained one waits. */
function write(model: Model): void {
  if (!model.guestRuns || (!model.atTarget && model.job === "pending")) return;
  model.told += 1;
  if (model.atTarget) model.to = model.told;
  else {
    model.from = model.told;
    if (model.job === "ready" || model.job === "waiting") model.to = model.told;
  }
}

function take(model: Model, step: PivotStep, finalizes: boolean): void {
  switch (step) {
    case "stop":
      model.guestRuns = false;
      break;
    case "complete":
      if (model.job === "ready") model.job = "waiting";
      break;
    case "wait":
      break;
    case "record":
      model.recorded = "to";
      break;
    case "take-back":
      model.recorded = "from";
      break;
    case "finalize":
      assert.equal(model.job, "pending");
      assert.equal(model.guestRuns, false, "the guest is held while it changes hands");
      model.job = "concluded";
      model.atTarget = finalizes;
      break;
    case "resume":
      assert.equal(model.atTarget, model.recorded === "to", "the guest goes on where its record says");
      model.guestRuns = true;
      break;
    case "dismiss":
      assert.equal(model.job, "concluded");
      model.job = undefined;
      break;
    case "forget":
  }
}

test("whatever happens between any two steps, the record names a disk with every write, and the guest runs in the end", () => {
  const event = fc.constantFrom(
    "step",
    "step",
    "step",
    "step",
    "write",
    "asker dies",
    "mirror lost",
    "someone resumes",
  );
  fc.assert(
    fc.property(fc.array(event, { maxLength: 40 }), fc.boolean(), (events, finalizes) => {
      const model: Model = {
        guestRuns: true,
        atTarget: false,
        job: "ready",
        recorded: "from",
        from: 7,
        to: 7,
        told: 7,
      };
      const story: string[] = [];
      let asked = false;
      let ended = false;
      const step = (): void => {
        const next = nextPivotStep({ ...model, asked });
        if (next === "complete") asked = true;
        story.push(next);
        ended = next === "forget";
        take(model, next, finalizes);
        if (next === "wait") model.job = "pending"; // In its own time.
      };
      for (const one of events) {
        if (ended) break;
        if (one === "step") step();
        else story.push(`(${one})`);
        if (one === "write") write(model);
        if (one === "asker dies") asked = false;
        if (one === "mirror lost" && !model.atTarget && model.job !== "pending" && model.job !== undefined)
          model.job = "concluded";
        if (one === "someone resumes" && model.atTarget === (model.recorded === "to")) model.guestRuns = true;
        assertSafe(model, story);
      }
      for (let left = 20; !ended; left--) {
        assert.ok(left > 0, `it ends: ${story.join(" ")}`);
        step();
        write(model);
        assertSafe(model, story);
      }
      assert.ok(model.guestRuns && model.job !== "concluded");
      assert.equal(model.recorded, model.atTarget ? "to" : "from");
    }),
    { numRuns: 20_000 },
  );
});

test("undisturbed, the guest is held from the stop to the resume, and nothing is done in between that could be done after", () => {
  const model: Model = { guestRuns: true, atTarget: false, job: "ready", recorded: "from", from: 7, to: 7, told: 7 };
  const steps: PivotStep[] = [];
  for (let asked = false; steps.at(-1) !== "forget"; asked ||= steps.at(-1) === "complete") {
    const next = nextPivotStep({ ...model, asked });
    steps.push(next);
    take(model, next, true);
    if (next === "wait") model.job = "pending";
  }
  assert.deepEqual(steps, ["stop", "complete", "wait", "record", "finalize", "resume", "dismiss", "forget"]);
});
