/** What `status` says about this control itself. */
import type { StatusView } from "./contract.ts";
import type { ApiDependencies } from "./dependencies.ts";

export function controlView({ control }: ApiDependencies): Pick<StatusView, "control"> {
  if (control === undefined) return {};
  const adoption = control.adoption?.();
  return {
    control: {
      id: control.controlId,
      epoch: control.controlEpoch,
      ...(adoption === undefined ? {} : { adoption }),
    },
  };
}

/** A control that was superseded must say so itself: whoever asks it would else wonder why nothing moves. */
export function supersededProblems({ sites, supersededAt }: ApiDependencies): StatusView["problems"] {
  return [...sites.keys()].flatMap((site) => {
    const fault = supersededAt?.(site);
    if (fault === undefined) return [];
    const { code, message, hint } = fault;
    return [{ code, message: `${site}: ${message}`, ...(hint === undefined ? {} : { hint }) }];
  });
}
