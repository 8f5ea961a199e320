/**
 * Calls to one vCenter over HTTPS: envelope out, envelope in, the session's cookie kept. Knows nothing of sessions or of machines.
 *
 * Trust is never silent: a certificate is checked against the system's CAs, a CA that was given, or its own thumbprint; a pinned
 * certificate is compared before the first byte, and so before the password, is sent.
 */
import { createHash } from "node:crypto";
import { connect as connectTls, type TLSSocket } from "node:tls";
import { Agent, request, type Dispatcher } from "undici";
import { Fault } from "#model/fault.ts";
import { decodeAnswer, encodeCall, type VimMethod } from "./soap.ts";
import type { VimMethods } from "./vim-methods.ts";

export type VsphereTrust =
  | { readonly by: "system" }
  /** PEM */
  | { readonly by: "ca"; readonly ca: string }
  /** SHA-256 of the certificate, 64 hex digits, with or without colons. */
  | { readonly by: "thumbprint"; readonly sha256: string };

export interface VsphereConnection extends AsyncDisposable {
  /**
   * Throws: VimError, what vCenter refused; HYPERVISOR_UNAVAILABLE, not reached or no answer in time; PEER_REJECTED, a certificate
   * that is not trusted; PROTOCOL_INVALID, no SOAP.
   */
  call<M extends VimMethod>(
    method: M,
    body: VimMethods[M]["request"],
    timeoutMs?: number,
  ): Promise<VimMethods[M]["returns"]>;
}

/** The API of 7.0, which later ones speak as well. */
const SOAP_ACTION = '"urn:vim25/7.0.0.0"';
const ANSWER_MS = 60_000;
/** A page of an inventory is well below. */
const ANSWER_BYTES_MAX = 256 * 2 ** 20;
const UNTRUSTED = /CERT|SELF_SIGNED|ISSUER|UNABLE_TO_VERIFY|ERR_TLS/;

/** `url` is https://HOST[:PORT]/sdk. Nothing is sent yet. */
export function openConnection(url: string, trust: VsphereTrust): VsphereConnection {
  const address = URL.canParse(url) ? new URL(url) : undefined;
  if (address?.protocol !== "https:")
    throw new Fault("CONFIG_INVALID", `The vCenter's address is "${url}", expected https://HOST/sdk`);
  // Waiting for changes takes as long as there are none: the bound of each call is its own.
  const dispatcher = new Agent({ headersTimeout: 0, bodyTimeout: 0, connect: connector(trust) });
  let cookie = "";

  return {
    call: async (method, body, timeoutMs = ANSWER_MS) => {
      const signal = AbortSignal.timeout(timeoutMs);
      let text: string;
      try {
        const response = await request(address, {
          method: "POST",
          dispatcher,
          signal,
          headers: {
            "content-type": "text/xml; charset=utf-8",
            soapaction: SOAP_ACTION,
            ...(cookie === "" ? {} : { cookie }),
          },
          body: encodeCall(method, body),
        });
        const set = response.headers["set-cookie"];
        const [fresh] = typeof set === "string" ? [set] : (set ?? []);
        if (fresh !== undefined) cookie = fresh.split(";", 1)[0] ?? "";
        text = await readAnswer(response);
      } catch (error) {
        throw connectionFault(error, address, method);
      }
      return decodeAnswer(method, text);
    },
    [Symbol.asyncDispose]: () => dispatcher.destroy(),
  };
}

async function readAnswer(response: Dispatcher.ResponseData): Promise<string> {
  const parts: Buffer[] = [];
  let bytes = 0;
  for await (const part of response.body as AsyncIterable<Buffer>) {
    bytes += part.length;
    if (bytes > ANSWER_BYTES_MAX)
      throw new Fault("PROTOCOL_INVALID", `vCenter's answer is over ${ANSWER_BYTES_MAX} bytes`);
    parts.push(part);
  }
  const text = Buffer.concat(parts).toString("utf8");
  // A SOAP fault comes with status 500 and an envelope; a proxy's page comes without.
  if (!text.includes("Envelope"))
    throw new Fault(
      "HYPERVISOR_UNAVAILABLE",
      `Expected SOAP, got HTTP status ${response.statusCode}: "${text.slice(0, 200)}"`,
      { hint: "Check that the address ends in /sdk and leads to vCenter itself; it may also still be starting" },
    );
  return text;
}

type Connect = (
  options: { readonly hostname: string; readonly port: string },
  callback: (...result: [error: null, socket: TLSSocket] | [error: Error, socket: null]) => void,
) => void;

function connector(trust: VsphereTrust): Connect | { readonly ca?: string } {
  if (trust.by === "system") return {};
  if (trust.by === "ca") return { ca: trust.ca };
  const wanted = trust.sha256.replaceAll(":", "").toLowerCase();
  if (!/^[0-9a-f]{64}$/.test(wanted))
    throw new Fault(
      "CONFIG_INVALID",
      `The thumbprint is "${trust.sha256}", expected the SHA-256 of a certificate in hex`,
    );
  return ({ hostname, port }, callback) => {
    const host = hostname.replace(/^\[(.*)\]$/, "$1");
    const socket = connectTls({
      host,
      port: Number(port === "" ? 443 : port),
      ...(/^[\d.]+$|:/.test(host) ? {} : { servername: host }),
      ALPNProtocols: ["http/1.1"],
      rejectUnauthorized: false, // Its chain says nothing more than the certificate itself, which is compared below.
    });
    socket.once("error", (error) => callback(error, null));
    socket.once("secureConnect", () => {
      const seen = createHash("sha256").update(socket.getPeerCertificate().raw).digest("hex");
      if (seen === wanted) return callback(null, socket);
      socket.destroy();
      callback(
        new Fault("PEER_REJECTED", `vCenter's certificate has the thumbprint "${seen}", expected "${wanted}"`, {
          hint: "If its certificate was renewed, compare the thumbprint at the console of vCenter and configure it",
        }),
        null,
      );
    });
  };
}

function connectionFault(error: unknown, { host }: URL, method: string): unknown {
  if (error instanceof Fault || error instanceof RangeError) return error;
  const { code, message, name } = error as NodeJS.ErrnoException;
  if (code !== undefined && UNTRUSTED.test(code))
    return new Fault("PEER_REJECTED", `The certificate of "${host}" is not trusted: ${message}`, {
      cause: error,
      hint: "Configure the CA or the thumbprint of vCenter's certificate",
    });
  return new Fault(
    "HYPERVISOR_UNAVAILABLE",
    name === "TimeoutError"
      ? `"${host}" did not answer "${method}" in time`
      : `"${host}" cannot be reached: ${message}`,
    { cause: error, details: { method }, hint: "Check that vCenter runs and can be reached from here" },
  );
}
