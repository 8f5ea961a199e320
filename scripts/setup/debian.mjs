// Debian packages: only those whose programs are missing, and only when we may.
import { findProgram } from "./places.mjs";
import { runLogged } from "./progress.mjs";

/** Other package work on the machine (unattended upgrades) is waited for. */
const APT = ["-y", "-q", "-o", "DPkg::Lock::Timeout=400"];

export function missingDebianPackages(parts, uses) {
  return parts.debian.packages.filter(
    (one) => uses.includes(one.for) && !one.provides.every((program) => findProgram(program) !== undefined),
  );
}

/** Why these packages cannot be installed by us, as sentences for a person; undefined when they can. */
export function whyNotDebian(packages) {
  const names = packages.map((one) => one.name).join(" ");
  const missing = packages
    .map((one) => `${one.provides.filter((program) => findProgram(program) === undefined).join(", ")} (${one.what})`)
    .join("; ");
  if (process.platform !== "linux") {
    return [
      `Leeward's servers and its demo need Linux, and this is ${process.platform}; missing here: ${missing}. On other systems \`npm run check\` works; for the rest use docker-compose.yml.`,
    ];
  }
  if (findProgram("apt-get") === undefined)
    return [
      `Missing: ${missing}. Leeward installs them only on Debian and its kin; install them with this system's package manager.`,
    ];
  if (process.getuid() !== 0)
    return [
      `Missing: ${missing}. Leeward is not run as root and may not install them; run: sudo apt-get install --no-install-recommends ${names}`,
    ];
  return undefined;
}

export async function installDebianPackages(packages, log) {
  const env = { DEBIAN_FRONTEND: "noninteractive" };
  await runLogged("apt-get", ["update", ...APT], { log, env });
  await runLogged("apt-get", ["install", "--no-install-recommends", ...APT, ...packages.map((one) => one.name)], {
    log,
    env,
  });
}
