/**
 * The link port over node:tls: TLS 1.3, both sides with a certificate of the same CA, identities from the certificates alone. Host names play
 * no part: whoever holds the certificate of a role is that role, wherever it runs.
 *
 * The listener speaks first (`welcome` or `bye`). With TLS 1.3 a client is connected before the server has judged its certificate, so without
 * this a refused dialler would learn of it as a reset connection, some time later. For the same reason the listener lets the handshake with a bad
 * certificate finish and refuses it itself: the refusal then says why. Nothing a refused peer sends is ever parsed.
 */
import { X509Certificate } from "node:crypto";
import type { AddressInfo, Socket } from "node:net";
import { connect, createServer } from "node:tls";
import type { TLSSocket } from "node:tls";
import { Fault, isFault, type FaultOptions } from "#model/fault.ts";
import type { Clock } from "#ports/clock.ts";
import type { Address, Link, Listener, PeerIdentity } from "#ports/link.ts";
import type { Log } from "#ports/log.ts";
import type { CredentialSource, LinkCredentials } from "../pki/identity-files.ts";
import { createConnection, DEFAULT_TIMING, interruption } from "./connection.ts";
import type { Timing } from "./connection.ts";
import { identityFromAltNames, identityUri } from "./identity.ts";
import { encodeHead, LINK_PROTOCOL } from "./wire.ts";

const DIAL_MS = 10_000;
const CLOCKS = "Compare the clocks of both machines: the certificate is not valid yet on one of them";
/** AES-128 first: with AES instructions it is a third faster than AES-256, and as safe for our purpose. */
const CIPHERS = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256";

export interface LinkOptions {
  /** Must be the one in every certificate. */
  readonly identity: PeerIdentity;
  /** Asked before each handshake: what is renewed is used from then on, and open connections stay. */
  readonly credentials: CredentialSource;
  readonly clock: Clock;
  readonly log: Log;
  /** For tests. */
  readonly timing?: Timing;
}

/** Throws CREDENTIALS_REJECTED when the certificate is for someone else than `identity`. */
export function createLink(options: LinkOptions): Link {
  const { identity, credentials, clock, log, timing = DEFAULT_TIMING } = options;
  assertFor(identity, credentials());
  const secure = {
    minVersion: "TLSv1.3",
    maxVersion: "TLSv1.3",
    ciphers: CIPHERS,
    ALPNProtocols: [LINK_PROTOCOL],
  } as const;
  const connectionOptions = { clock, log, timing };

  return {
    self: identity,

    async dial(address, { expect, handlers, signal }) {
      const aborted = (): boolean => signal?.aborted === true;
      if (aborted()) throw interruption(signal!);
      const socket = connect({
        ...secure,
        ...credentials(),
        ...address,
        servername: "",
        checkServerIdentity: () => undefined,
      });
      const onAbort = (): void => void socket.destroy();
      signal?.addEventListener("abort", onAbort, { once: true });
      try {
        await secured(socket, address);
        const remote = identityFromAltNames(socket.getPeerX509Certificate()?.subjectAltName);
        const { peer, awaitWelcome } = createConnection(socket, { ...connectionOptions, identity: remote });
        if (remote.role !== expect) {
          const fault = new Fault(
            "PEER_REJECTED",
            `Expected a ${expect} at ${format(address)}, got "${identityUri(remote)}"`,
          );
          peer.close(fault);
          throw fault;
        }
        await awaitWelcome(handlers);
        return peer;
      } catch (error) {
        socket.destroy();
        throw aborted() ? interruption(signal!) : error;
      } finally {
        signal?.removeEventListener("abort", onAbort);
      }
    },

    async listen(address, accept) {
      const sockets = new Set<Socket>();
      let used = credentials();
      const server = createServer({
        ...secure,
        ...used,
        requestCert: true,
        rejectUnauthorized: false,
        noDelay: true,
        handshakeTimeout: DIAL_MS,
      });
      // Before the server's own listener begins the handshake.
      server.prependListener("connection", (socket: Socket) => {
        const now = credentials();
        if (now !== used) server.setSecureContext({ ...secure, ...now });
        used = now;
        sockets.add(socket);
        socket.on("close", () => sockets.delete(socket));
      });
      server.on("tlsClientError", (error) => log.warn("A connection failed in the TLS handshake", { error }));
      server.on("secureConnection", (socket) => {
        let connection;
        try {
          connection = createConnection(socket, { ...connectionOptions, identity: authenticated(socket) });
        } catch (error) {
          if (!isFault(error)) throw error;
          log.warn("A dialler was refused", { from: socket.remoteAddress, fault: error });
          socket.on("error", () => undefined); // It is refused; how it goes away does not matter.
          socket.end(encodeHead("bye", { json: { ...error.toJSON() } }));
          socket.resume();
          setTimeout(() => socket.destroy(), DIAL_MS).unref();
          return;
        }
        try {
          connection.welcome(accept(connection.peer));
        } catch (error) {
          if (!isFault(error)) throw error;
          log.warn("A peer was refused", { peer: connection.peer.identity, fault: error });
          connection.peer.close(error);
        }
      });
      await new Promise<void>((resolve, reject) => {
        server.once("error", (error: NodeJS.ErrnoException) => reject(listenFault(error, address)));
        server.listen({ host: address.host, port: address.port }, resolve);
      });
      server.on("error", (error) => log.error("The link listener failed", { error }));
      const bound = server.address() as AddressInfo; // Listening on TCP, so it is neither a pipe nor null.
      return {
        address: { host: address.host, port: bound.port },
        async close() {
          const done = new Promise<void>((resolve) => server.close(() => resolve()));
          for (const socket of sockets) socket.destroy();
          await done;
        },
      } satisfies Listener;
    },
  };
}

/** Waits for the handshake. Throws PEER_UNREACHABLE, CREDENTIALS_REJECTED, PROTOCOL_INVALID. */
async function secured(socket: TLSSocket, address: Address): Promise<void> {
  socket.setNoDelay(true);
  await new Promise<void>((resolve, reject) => {
    const timer = setTimeout(() => {
      socket.destroy();
      reject(new Fault("PEER_UNREACHABLE", `No answer from ${format(address)} within ${DIAL_MS} ms`));
    }, DIAL_MS);
    const settle = (act: () => void): void => {
      clearTimeout(timer);
      socket.off("error", onError).off("close", onClose).off("secureConnect", onSecure);
      act();
    };
    const onError = (error: NodeJS.ErrnoException): void => settle(() => reject(dialFault(error, address)));
    const onClose = (): void =>
      settle(() => reject(new Fault("PEER_UNREACHABLE", `${format(address)} closed the connection in the handshake`)));
    const onSecure = (): void => settle(resolve);
    socket.on("error", onError).on("close", onClose).on("secureConnect", onSecure);
  });
}

function authenticated(socket: TLSSocket): PeerIdentity {
  if (!socket.authorized) {
    const why = socket.authorizationError; // Node documents an Error, and sets its code as text.
    const reason = why instanceof Error ? why.message : String(why ?? "no certificate");
    const certificate = socket.getPeerX509Certificate();
    if (reason === "CERT_HAS_EXPIRED" && certificate !== undefined) {
      throw expired(
        `The certificate of "${(certificate.subjectAltName ?? "").replace(/^URI:/, "")}" expired at ${certificate.validTo}`,
      );
    }
    throw new Fault(
      "CREDENTIALS_REJECTED",
      `Expected a certificate of this installation's CA, got one that fails with "${reason}"`,
      {
        hint: reason === "CERT_NOT_YET_VALID" ? CLOCKS : "Enrol again with a new one-time token",
      },
    );
  }
  return identityFromAltNames(socket.getPeerX509Certificate()?.subjectAltName);
}

function dialFault(error: NodeJS.ErrnoException, address: Address): Fault {
  const code = error.code ?? "";
  const options = { cause: error, details: { host: address.host, port: address.port } };
  if (code === "CERT_HAS_EXPIRED") return expired(`The certificate of ${format(address)} has expired`, options);
  // OpenSSL's verification results have no prefix of their own: everything that is neither an errno nor ERR_…
  const verification = !code.startsWith("E") || code.startsWith("ERR_TLS_CERT");
  if (verification || /^ERR_SSL_.*ALERT/.test(code)) {
    return new Fault(
      "CREDENTIALS_REJECTED",
      `The certificates of this role and of ${format(address)} do not fit: ${error.message}`,
      {
        ...options,
        hint:
          code === "CERT_NOT_YET_VALID"
            ? CLOCKS
            : "Both must be of the same installation's CA, and valid now; enrol again if not",
      },
    );
  }
  if (code.startsWith("ERR_SSL_"))
    return new Fault("PROTOCOL_INVALID", `Expected TLS at ${format(address)}: ${error.message}`, options);
  return new Fault("PEER_UNREACHABLE", `Could not reach ${format(address)}: ${error.message}`, options);
}

function expired(message: string, options: FaultOptions = {}): Fault {
  return new Fault("CERTIFICATE_EXPIRED", message, {
    ...options,
    hint: "Compare the clocks of both machines; if they are right, enrol the role again: `leeward machine enroll`, and `leeward machine redeem` where it runs",
  });
}

function assertFor(identity: PeerIdentity, { cert }: LinkCredentials): void {
  const certified = identityFromAltNames(new X509Certificate(cert).subjectAltName);
  if (identityUri(certified) === identityUri(identity)) return;
  throw new Fault(
    "CREDENTIALS_REJECTED",
    `Expected a certificate for "${identityUri(identity)}", got one for "${identityUri(certified)}"`,
    { hint: "Enrol this role again, or correct its configuration" },
  );
}

function listenFault(error: NodeJS.ErrnoException, address: Address): Error {
  if (error.code !== "EADDRINUSE") return error;
  return new Fault("PORT_IN_USE", `Port ${format(address)} is in use by another program`, {
    cause: error,
    details: { host: address.host, port: address.port },
    hint: "Choose another port, or 0 for a free one",
  });
}

function format(address: Address): string {
  return `${address.host}:${address.port}`;
}
