/** What a person may ask of a failover, beyond what the phase allows. */
import { Fault } from "#model/fault.ts";
import type { Group } from "./group-updates.ts";
import type { FailoverRequest } from "./messages.ts";

export function failoverFault(group: Pick<Group, "givingBack">, request: FailoverRequest): Fault | undefined {
  if (group.givingBack)
    return new Fault("REFUSED", "The replica is being given back to its source", {
      hint: "Repeat the command in a moment",
    });
  if (request.mode === "planned" && request.point !== "latest")
    return new Fault("USAGE", `A planned failover takes the final cut, not point "${request.point}"`, {
      hint: "Leave out --point, or leave out --planned",
    });
  if (request.afterwards !== undefined && !(request.afterwards.afterMs > 0))
    return new Fault(
      "USAGE",
      `Expected some time before the ${request.afterwards.move}, got ${request.afterwards.afterMs} ms`,
    );
  if (request.mode === "planned" && request.sourceLost)
    return new Fault("USAGE", "A planned failover needs its source, a lost one cannot take part", {
      hint: "Leave out --planned or --source-lost",
    });
  return undefined;
}
