/** A file on a datastore: `datastore://NAME/FOLDER/FILE.vmdk` for us, `[NAME] FOLDER/FILE.vmdk` for vSphere. Both ways are inverse. */
import { Fault } from "#model/fault.ts";

/** Throws: CONFIG_INVALID; REFUSED for a URL that only another hypervisor can attach. */
export function datastorePathOf(url: string): string {
  if (/^nbd(\+unix)?:/.test(url))
    throw new Fault(
      "REFUSED",
      `The disk "${url}" is served by NBD, and vSphere attaches files on its datastores only`,
      {
        hint: "Write the point to a disk on a datastore first",
      },
    );
  const match = /^datastore:\/\/([^/?#]+)\/([^?#]+\.vmdk)$/.exec(url);
  const [name, path] = [match?.[1], match?.[2]].map((part) => part !== undefined && decode(part));
  const escapes =
    typeof path === "string" && path.split("/").some((part) => part === "" || part === "." || part === "..");
  if (!name || !path || escapes || /[[\]]/.test(name))
    throw new Fault("CONFIG_INVALID", `Disk URL "${url}", expected datastore://NAME/FOLDER/FILE.vmdk`);
  return `[${name}] ${path}`;
}

export function urlOfDatastorePath(path: string): string {
  const match = /^\[([^\]]+)\] ?(.+)$/.exec(path);
  if (match === null) throw new Fault("PROTOCOL_INVALID", `"${path}" is not a file on a datastore`);
  const [, name = "", file = ""] = match;
  return `datastore://${encodeURIComponent(name)}/${file.split("/").map(encodeURIComponent).join("/")}`;
}

function decode(part: string): string | undefined {
  try {
    return decodeURIComponent(part);
  } catch {
    return undefined; // A broken escape: not such a URL.
  }
}
