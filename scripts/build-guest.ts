/** Builds the demo's machine into the cache, for scripts/bootstrap.mjs. */
import { ensureGuestTemplates } from "../src/embedded/guest.ts";

const { systemImage } = await ensureGuestTemplates();
process.stdout.write(`${systemImage}\n`);
