/**
 * The program's first file: it does nothing but see to it that the rest is loaded from cached code. Stripping types and compiling costs half a second
 * and some 40 MB in every process that does it.
 */
import { enableCompileCache, flushCompileCache } from "node:module";

const { directory } = enableCompileCache();
if (directory !== undefined) process.env["NODE_COMPILE_CACHE"] ??= directory; // For the processes that we start.
// Not only at the exit: a process that is killed has none.
setTimeout(flushCompileCache, 15_000).unref();
await import("./program.ts");
