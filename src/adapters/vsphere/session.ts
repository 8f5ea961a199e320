/**
 * A session with vCenter that outlives vCenter's own: it begins with the first work, and begins again when vCenter forgot it.
 *
 * Invariants:
 * - work is a function that may run twice: objects of a session (views, collectors) end with it, so what is repeated is the whole, not a call;
 * - what was submitted is not repeated by us: vCenter refuses a call of an ended session before it does anything;
 * - an ended session may answer questions with *nothing* instead of a refusal: `assertAlive` is asked before nothing is believed;
 * - many may find the session ended at once; one logs in, and a password that is refused is not tried again by the others.
 */
import { Fault } from "#model/fault.ts";
import { openConnection, type VsphereTrust } from "./connection.ts";
import { VimError, type VimMethod } from "./soap.ts";
import type { VimMethods } from "./vim-methods.ts";
import type { Reference, ServiceContent } from "./vim-types.ts";

export interface VsphereCredentials {
  readonly userName: string;
  readonly password: string;
}

/** One logged-in session, for the length of one work. */
export interface Vim {
  readonly content: ServiceContent;
  readonly call: <M extends VimMethod>(
    method: M,
    request: VimMethods[M]["request"],
    timeoutMs?: number,
  ) => Promise<VimMethods[M]["returns"]>;
}

export interface VimSession extends AsyncDisposable {
  /** Throws: what `work` throws; CREDENTIALS_REJECTED, HYPERVISOR_UNAVAILABLE, PEER_REJECTED. */
  run<T>(work: (vim: Vim) => Promise<T>): Promise<T>;
}

export interface SessionOptions {
  readonly url: string;
  readonly trust: VsphereTrust;
  /** Asked at every login, so that a secret that was changed needs no restart. */
  readonly credentials: () => Promise<VsphereCredentials>;
}

const SERVICE: Reference = { type: "ServiceInstance", value: "ServiceInstance" };
const LOGOUT_MS = 5_000;

export function openSession(options: SessionOptions): VimSession {
  const connection = openConnection(options.url, options.trust);
  let current: Promise<Vim> | undefined;

  async function logIn(): Promise<Vim> {
    const content = await connection.call("RetrieveServiceContent", { _this: SERVICE });
    if (content.sessionManager === undefined) throw new Fault("PROTOCOL_INVALID", "vCenter names no session manager");
    const { userName, password } = await options.credentials();
    try {
      await connection.call("Login", { _this: content.sessionManager, userName, password });
    } catch (error) {
      if (!(error instanceof VimError) || error.fault.$type !== "InvalidLogin") throw error;
      throw new Fault("CREDENTIALS_REJECTED", `vCenter refuses the password of "${userName}"`, {
        cause: error,
        hint: "Check the user and the password; too many attempts lock an account",
      });
    }
    return { content, call: connection.call };
  }

  function begin(): Promise<Vim> {
    const mine = logIn();
    current = mine;
    mine.catch(() => {
      if (current === mine) current = undefined; // The next work tries again.
    });
    return mine;
  }

  return {
    run: async (work) => {
      const first = current ?? begin();
      const vim = await first;
      try {
        return await work(vim);
      } catch (error) {
        if (!isSessionLost(error)) throw error;
        if (current === first) void begin().catch(() => undefined); // It is awaited below, and there it throws.
        return await work(await (current ?? begin()));
      }
    },
    [Symbol.asyncDispose]: async () => {
      const vim = await current?.catch(() => undefined);
      const manager = vim?.content.sessionManager;
      // Sessions are few, and one that is left counts for half an hour; but a vCenter that is gone keeps nobody.
      if (manager !== undefined) await vim?.call("Logout", { _this: manager }, LOGOUT_MS).catch(() => undefined);
      await connection[Symbol.asyncDispose]();
    },
  };
}

/** Throws the VimError NotAuthenticated when the session has ended: then an empty answer meant nothing. */
export async function assertAlive(vim: Vim): Promise<void> {
  const manager = vim.content.sessionManager;
  if (manager === undefined) throw new RangeError("A session was opened without a session manager");
  const answer = await vim.call("RetrievePropertiesEx", {
    _this: vim.content.propertyCollector,
    specSet: [{ propSet: [{ type: manager.type, pathSet: ["currentSession"] }], objectSet: [{ obj: manager }] }],
    options: {},
  });
  const session = answer?.objects[0]?.propSet?.find((one) => one.name === "currentSession");
  if (session === undefined) throw new VimError({ $type: "NotAuthenticated" }, "The session has ended");
}

function isSessionLost(error: unknown): boolean {
  return error instanceof VimError && error.fault.$type === "NotAuthenticated";
}
