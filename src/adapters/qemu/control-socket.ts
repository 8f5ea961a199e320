/**
 * QEMU's control protocol (QMP) over its socket: one command at a time, each with a bound. Events are passed over: what a machine
 * is doing is asked, not remembered, so a restart of ours loses nothing.
 *
 * Source: QEMU, docs/interop/qmp-spec.rst
 */
import { connect } from "node:net";
import { Fault } from "#model/fault.ts";

export interface ControlSocket extends Disposable {
  /** The command's return value. Throws HYPERVISOR_UNAVAILABLE: refused by QEMU, no answer in time, or QEMU ended. */
  execute(
    command: string,
    options?: { readonly arguments?: Readonly<Record<string, unknown>>; readonly timeoutMs?: number },
  ): Promise<unknown>;
}

interface Message {
  /** The greeting. */
  readonly QMP?: unknown;
  readonly id?: number;
  readonly return?: unknown;
  readonly error?: { readonly class: string; readonly desc: string };
}

interface Waiting {
  readonly wants: (message: Message) => boolean;
  readonly answer: (message: Message) => void;
  readonly fail: (fault: Fault) => void;
}

/**
 * QEMU answers nothing while it waits for requests in flight to end, at a pivot or a reset for example; with an export that is being started again behind one
 * of them, that is as long as the start takes.
 */
const ANSWER_MS = 30_000;

/** Connect and negotiate. `answerMs`: patience with each answer for which no other is given. Throws HYPERVISOR_UNAVAILABLE. */
export async function openControlSocket(path: string, answerMs = ANSWER_MS): Promise<ControlSocket> {
  const socket = connect({ path });
  let waiting: Waiting | undefined;
  let ended: Fault | undefined;
  let text = "";
  let lastId = 0;

  const end = (cause?: unknown): void => {
    ended ??= unavailable("The connection to QEMU ended", cause);
    waiting?.fail(ended);
  };
  socket.on("error", end);
  socket.on("close", () => end());
  socket.setEncoding("utf8").on("data", (part: string) => {
    const lines = (text + part).split("\n");
    text = lines.pop() ?? "";
    for (const line of lines) {
      const message = JSON.parse(line) as Message; // From our own child, and each field is looked at before use.
      if (waiting?.wants(message) === true) waiting.answer(message);
    }
  });

  const receive = async (what: string, timeoutMs: number, wants: Waiting["wants"]): Promise<Message> => {
    const { promise, resolve, reject } = Promise.withResolvers<Message>();
    if (ended !== undefined) throw ended;
    waiting = { wants, answer: resolve, fail: reject };
    const timer = setTimeout(
      () => reject(unavailable(`QEMU did not answer "${what}" within ${timeoutMs} ms`)),
      timeoutMs,
    );
    try {
      return await promise;
    } finally {
      clearTimeout(timer);
      waiting = undefined;
    }
  };
  const execute: ControlSocket["execute"] = async (command, options = {}) => {
    const id = ++lastId;
    socket.write(`${JSON.stringify({ execute: command, arguments: options.arguments ?? {}, id })}\n`);
    const { error, return: result } = await receive(
      command,
      options.timeoutMs ?? answerMs,
      (message) => message.id === id,
    );
    if (error !== undefined) throw unavailable(`QEMU refused "${command}": ${error.desc}`);
    return result;
  };

  try {
    await receive("greeting", answerMs, (message) => message.QMP !== undefined);
    await execute("qmp_capabilities");
  } catch (error) {
    socket.destroy();
    throw error;
  }
  return { execute, [Symbol.dispose]: () => void socket.destroy() };
}

function unavailable(message: string, cause?: unknown): Fault {
  return new Fault("HYPERVISOR_UNAVAILABLE", message, {
    cause,
    hint: "Look at the machine's qemu.log beside its console",
  });
}
