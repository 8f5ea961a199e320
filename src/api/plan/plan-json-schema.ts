/** The JSON Schema of a plan's document, for editors: `# yaml-language-server: $schema=…`. */
import { z } from "zod";
import { planSchema } from "./plan-schema.ts";

export function planJsonSchema(): object {
  return { ...z.toJSONSchema(planSchema, { io: "input" }), title: "A recovery plan of Leeward" };
}
