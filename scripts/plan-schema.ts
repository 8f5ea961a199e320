/** Writes docs/recovery-plan.schema.json from the schema that plans are read with: `node scripts/plan-schema.ts`. A test compares. */
import { writeFileSync } from "node:fs";
import { format } from "prettier";
import { planJsonSchema } from "../src/api/plan/plan-json-schema.ts";

const file = new URL("../docs/recovery-plan.schema.json", import.meta.url);
writeFileSync(file, await format(JSON.stringify(planJsonSchema()), { parser: "json", printWidth: 120 }));
