/**
 * What a sealed frame is bound to: the additional data of its AEAD. A frame that is moved to another store, disk, container, number
 * or place on the disk does not open there. A repacked frame keeps the binding of the container that it was sealed in.
 *
 * Source: docs/format.md, "Sealing".
 */
import { fromHex, setName, setU48, uuidToBytes } from "./fields.ts";
import { MAX_DISK_ID_LENGTH } from "./header.ts";

export const FRAME_BINDING_BYTES = 80;
export const FRAME_NONCE_BYTES = 12;

export interface FrameBinding {
  /** Additional data and nonce of the frame; both are the same arrays in every call. */
  bind(
    frame: number,
    block: number,
    blocks: number,
    codec: number,
  ): { readonly additional: Uint8Array; readonly nonce: Uint8Array };
}

/** One for each container; `containerId` is that in which the frames were sealed. */
export function frameBinding(container: {
  readonly storeId: string;
  readonly diskId: string;
  readonly containerId: string;
}): FrameBinding {
  const additional = new Uint8Array(FRAME_BINDING_BYTES);
  const nonce = new Uint8Array(FRAME_NONCE_BYTES);
  const view = new DataView(additional.buffer);
  const nonceView = new DataView(nonce.buffer);
  additional.set(uuidToBytes(container.storeId, "storeId"), 0);
  setName(additional, 16, MAX_DISK_ID_LENGTH, container.diskId, "diskId");
  additional.set(fromHex(container.containerId, 12, "containerId"), 52);
  return {
    bind(frame, block, blocks, codec) {
      view.setUint32(64, frame, true);
      setU48(view, 68, block, "block");
      view.setUint16(74, blocks, true);
      view.setUint8(76, codec);
      // The key is derived from the container's salt, so the frame's number is a nonce that never repeats.
      nonceView.setUint32(0, frame, true);
      return { additional, nonce };
    },
  };
}
