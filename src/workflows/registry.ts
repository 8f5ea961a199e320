/** Every workflow of ours: what the worker's bundle is made from. */
export { changePoint } from "./change-point.ts";
export { drDrill } from "./dr-drill.ts";
export { failover } from "./failover.ts";
export { initialSync } from "./initial-sync.ts";
export { janitor } from "./janitor.ts";
export { planJanitor } from "./plan-janitor.ts";
export { protectionGroup } from "./protection-group.ts";
export { recoveryPlan } from "./recovery-plan.ts";
export { reprotect } from "./reprotect.ts";
export { retention } from "./retention.ts";
export { retryMembers } from "./retry-members.ts";
export { testFailover } from "./test-failover.ts";
export { undo } from "./undo.ts";
