/** Durable files of a test: where there is no space left, the test says so. */
import { createDurableFiles } from "../../src/adapters/file/durable-files.ts";

export const testFiles = createDurableFiles({ fullHint: "Free space for the test" });
