import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { certificateState, renewalDueMs, renewalRetryMs } from "#model/certificate-life.ts";

const life = fc
  .record({ notBeforeMs: fc.integer({ min: 0, max: 4e12 }), lengthMs: fc.integer({ min: 1_000, max: 3e11 }) })
  .map(({ notBeforeMs, lengthMs }) => ({ notBeforeMs, notAfterMs: notBeforeMs + lengthMs }));
const chance = fc.double({ min: 0, max: 1, noNaN: true });

test("whatever is drawn, a certificate is renewed while it is good, and a third of its life is left for what is in the way", () => {
  fc.assert(
    fc.property(life, chance, (one, drawn) => {
      const dueMs = renewalDueMs(one, drawn);
      const lengthMs = one.notAfterMs - one.notBeforeMs;
      assert.ok(dueMs > one.notBeforeMs + lengthMs / 2);
      assert.ok(dueMs <= one.notAfterMs - lengthMs / 3 + 1e-3);
      assert.equal(certificateState(one, dueMs), "good");
      // Some forty attempts before it ends, and at least one an hour.
      const retryMs = renewalRetryMs(one);
      assert.ok(retryMs <= 3_600_000 && retryMs >= 250);
      assert.ok((one.notAfterMs - dueMs) / retryMs > (lengthMs < 50_000 ? 1 : 40));
    }),
  );
});

test("a certificate gets worse with time, and never better", () => {
  const order = ["good", "overdue", "late", "expired"];
  fc.assert(
    fc.property(life, fc.array(chance, { minLength: 2, maxLength: 20 }), (one, parts) => {
      const lengthMs = one.notAfterMs - one.notBeforeMs;
      const states = parts
        .toSorted((a, b) => a - b)
        .map((part) => order.indexOf(certificateState(one, one.notBeforeMs + lengthMs * part)));
      assert.deepEqual(
        states,
        states.toSorted((a, b) => a - b),
      );
      assert.equal(certificateState(one, one.notAfterMs), "expired");
      assert.equal(certificateState(one, one.notAfterMs - 1), "late");
      assert.equal(certificateState(one, one.notBeforeMs), "good");
    }),
  );
});
