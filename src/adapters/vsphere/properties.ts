/**
 * Reading vCenter: properties of one object, of every object of a kind, and waiting until they say what is waited for.
 *
 * Values come typed by the wire (`xsi:type`); a path that an object has no value for is absent. Nothing found is believed only
 * of a living session (session.ts).
 *
 * Source: vSphere Web Services API, PropertyCollector.
 */
import { Fault } from "#model/fault.ts";
import type { Clock } from "#ports/clock.ts";
import { assertAlive, type Vim } from "./session.ts";
import { VimError } from "./soap.ts";
import type { ObjectContent, Reference } from "./vim-types.ts";

export type Properties = Readonly<Record<string, unknown>>;

export interface Found {
  readonly reference: Reference;
  readonly properties: Properties;
}

export interface WaitRequest {
  readonly paths: readonly string[];
  readonly until: (properties: Properties) => boolean;
  readonly timeoutMs: number;
  readonly clock: Clock;
}

/** vCenter answers in pages; a page of machines with their devices is some MB. */
const PAGE_OBJECTS = 200;
/** A wait is asked again before proxies lose patience. */
const WAIT_SECONDS = 30;
const ANSWER_MARGIN_MS = 30_000;

/** undefined when there is no such object. */
export async function readObject(
  vim: Vim,
  reference: Reference,
  paths: readonly string[],
): Promise<Properties | undefined> {
  try {
    const answer = await vim.call("RetrievePropertiesEx", {
      _this: vim.content.propertyCollector,
      specSet: [{ propSet: [{ type: reference.type, pathSet: paths }], objectSet: [{ obj: reference }] }],
      options: {},
    });
    const [object] = answer?.objects ?? [];
    if (object === undefined || (object.propSet ?? []).length === 0) await assertAlive(vim);
    return object === undefined ? undefined : propertiesOf(object);
  } catch (error) {
    if (error instanceof VimError && error.fault.$type === "ManagedObjectNotFound") return undefined;
    throw error;
  }
}

/** Every object of `type` that the user may see, whichever folder it is in. */
export async function readAll(vim: Vim, type: string, paths: readonly string[]): Promise<readonly Found[]> {
  const { viewManager, propertyCollector, rootFolder } = vim.content;
  if (viewManager === undefined) throw new Fault("PROTOCOL_INVALID", "vCenter names no view manager");
  const view = await vim.call("CreateContainerView", {
    _this: viewManager,
    container: rootFolder,
    type: [type],
    recursive: true,
  });
  try {
    const objects: ObjectContent[] = [];
    let page = await vim.call("RetrievePropertiesEx", {
      _this: propertyCollector,
      specSet: [
        {
          propSet: [{ type, pathSet: paths }],
          objectSet: [
            {
              obj: view,
              skip: true,
              selectSet: [{ $type: "TraversalSpec", type: "ContainerView", path: "view", skip: false }],
            },
          ],
        },
      ],
      options: { maxObjects: PAGE_OBJECTS },
    });
    for (;;) {
      objects.push(...(page?.objects ?? []));
      if (page?.token === undefined) break;
      page = await vim.call("ContinueRetrievePropertiesEx", { _this: propertyCollector, token: page.token });
    }
    if (objects.length === 0) await assertAlive(vim);
    return objects.map((object) => ({ reference: object.obj, properties: propertiesOf(object) }));
  } finally {
    await vim.call("DestroyView", { _this: view }).catch(() => undefined); // It ends with the session at the latest.
  }
}

/**
 * The properties once `until` says so; undefined after `timeoutMs`. Throws VimError ManagedObjectNotFound when the object goes.
 */
export async function waitForObject(
  vim: Vim,
  reference: Reference,
  request: WaitRequest,
): Promise<Properties | undefined> {
  const { paths, until, timeoutMs, clock } = request;
  const deadline = clock.monotonic() + timeoutMs;
  // A collector of our own: waits beside each other would otherwise see each other's filters.
  const collector = await vim.call("CreatePropertyCollector", { _this: vim.content.propertyCollector });
  try {
    const spec = { propSet: [{ type: reference.type, pathSet: paths }], objectSet: [{ obj: reference }] };
    await vim.call("CreateFilter", { _this: collector, spec, partialUpdates: false });
    const seen: Record<string, unknown> = {};
    let version = "";
    for (;;) {
      const leftMs = deadline - clock.monotonic();
      const maxWaitSeconds = Math.min(WAIT_SECONDS, Math.max(0, Math.floor(leftMs / 1000)));
      const updates = await vim.call(
        "WaitForUpdatesEx",
        { _this: collector, version, options: { maxWaitSeconds } },
        maxWaitSeconds * 1000 + ANSWER_MARGIN_MS,
      );
      version = updates?.version ?? version;
      for (const update of (updates?.filterSet ?? []).flatMap((one) => one.objectSet ?? [])) {
        if (update.kind === "leave")
          throw new VimError({ $type: "ManagedObjectNotFound" }, `"${reference.value}" is no longer there`);
        for (const change of update.changeSet ?? []) seen[change.name] = change.val;
      }
      if (until(seen)) return seen;
      if (leftMs <= 0) return undefined;
      // vCenter waits in whole seconds; the rest is ours.
      if (maxWaitSeconds === 0) await clock.sleep(Math.min(leftMs, 100));
    }
  } finally {
    await vim.call("DestroyPropertyCollector", { _this: collector }).catch(() => undefined);
  }
}

function propertiesOf(object: ObjectContent): Properties {
  for (const { path, fault } of object.missingSet ?? []) {
    // Not allowed to see it is not the same as not there. (InvalidProperty: an older vCenter does not know it.)
    if (fault.fault.$type === "NoPermission" || fault.fault.$type === "NotAuthenticated")
      throw new VimError(fault.fault, `"${path}" of "${object.obj.value}" may not be read`);
  }
  return Object.fromEntries((object.propSet ?? []).map((one) => [one.name, one.val]));
}
