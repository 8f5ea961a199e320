/** Where a command finds control's API: an installation of its own names it by two variables, the embedded one by its state folder. */
import { readFileSync } from "node:fs";
import { Fault } from "#model/fault.ts";

export interface ApiAccess {
  readonly url: string;
  readonly token: string;
}

/** Undefined when neither variable is set. Throws USAGE, CONFIG_INVALID. */
export function apiAccessOf(env: Readonly<Record<string, string | undefined>>): ApiAccess | undefined {
  const url = env["LEEWARD_API"];
  const tokenFile = env["LEEWARD_API_TOKEN_FILE"];
  if (url === undefined && tokenFile === undefined) return undefined;
  if (url === undefined || tokenFile === undefined || !URL.canParse(url)) {
    throw new Fault("USAGE", `Expected a URL in LEEWARD_API and a file in LEEWARD_API_TOKEN_FILE, got "${url ?? ""}"`, {
      hint: "Set both, or neither: then --state DIR names an embedded installation",
    });
  }
  try {
    return { url, token: readFileSync(tokenFile, "utf8").trim() };
  } catch (cause) {
    throw new Fault("CONFIG_INVALID", `Cannot read the API's token from "${tokenFile}"`, {
      cause,
      hint: "Control makes it at its first start: `api-token` in its state folder",
    });
  }
}
