/** Patterns of the tests that `npm run check` runs: pure, or on files and sockets of their own, seconds together. */
export const FAST_TESTS: readonly string[] = [
  "test/*.test.ts",
  "test/model/*.test.ts",
  "test/house/*.test.ts",
  "test/nbd/*.test.ts",
  "test/docs/*.test.ts",
];
