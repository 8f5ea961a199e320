/** The numbers of NBD that we use. Source: NBD `doc/proto.md`; names are those of the document without the prefix. */

export const NBD_MAGIC = 0x4e42444d41474943n; // "NBDMAGIC"
export const OPTION_MAGIC = 0x49484156454f5054n; // "IHAVEOPT"
export const OPTION_REPLY_MAGIC = 0x0003e889045565a9n;
export const REQUEST_MAGIC = 0x25609513;
export const SIMPLE_REPLY_MAGIC = 0x67446698;
export const STRUCTURED_REPLY_MAGIC = 0x668e33ef;

export const FLAG_FIXED_NEWSTYLE = 1;
export const FLAG_NO_ZEROES = 2;

export const OPT_EXPORT_NAME = 1;
export const OPT_ABORT = 2;
export const OPT_LIST = 3;
export const OPT_INFO = 6;
export const OPT_GO = 7;
export const OPT_STRUCTURED_REPLY = 8;
export const OPT_LIST_META_CONTEXT = 9;
export const OPT_SET_META_CONTEXT = 10;

export const REP_ACK = 1;
export const REP_SERVER = 2;
export const REP_INFO = 3;
export const REP_META_CONTEXT = 4;
export const REP_ERR_UNSUP = 0x80000001;
export const REP_ERR_INVALID = 0x80000003;
export const REP_ERR_UNKNOWN = 0x80000006;
export const REP_ERR_TOO_BIG = 0x80000009;

export const INFO_EXPORT = 0;
export const INFO_NAME = 1;
export const INFO_BLOCK_SIZE = 3;

export const TRANSMISSION_HAS_FLAGS = 1 << 0;
export const TRANSMISSION_READ_ONLY = 1 << 1;
export const TRANSMISSION_SEND_FLUSH = 1 << 2;
export const TRANSMISSION_SEND_FUA = 1 << 3;
export const TRANSMISSION_SEND_TRIM = 1 << 5;
export const TRANSMISSION_SEND_WRITE_ZEROES = 1 << 6;
export const TRANSMISSION_SEND_DF = 1 << 7;
export const TRANSMISSION_CAN_MULTI_CONN = 1 << 8;
export const TRANSMISSION_SEND_CACHE = 1 << 10;
export const TRANSMISSION_SEND_FAST_ZERO = 1 << 11;

export const CMD_READ = 0;
export const CMD_WRITE = 1;
export const CMD_DISC = 2;
export const CMD_FLUSH = 3;
export const CMD_TRIM = 4;
export const CMD_CACHE = 5;
export const CMD_WRITE_ZEROES = 6;
export const CMD_BLOCK_STATUS = 7;

export const CMD_FLAG_FUA = 1 << 0;
export const CMD_FLAG_NO_HOLE = 1 << 1;
export const CMD_FLAG_DF = 1 << 2;
export const CMD_FLAG_REQ_ONE = 1 << 3;
export const CMD_FLAG_FAST_ZERO = 1 << 4;

export const REPLY_FLAG_DONE = 1;
export const REPLY_NONE = 0;
export const REPLY_OFFSET_DATA = 1;
export const REPLY_BLOCK_STATUS = 5;
export const REPLY_ERROR = 0x8001;

export const STATE_HOLE = 1;
export const STATE_ZERO = 2;

export const EPERM = 1;
export const EIO = 5;
export const EINVAL = 22;
export const ENOSPC = 28;
export const ENOTSUP = 95;
export const ESHUTDOWN = 108;

export const META_CONTEXT = "base:allocation";
export const META_CONTEXT_ID = 1;

/** Largest payload of one request: what NBD_INFO_BLOCK_SIZE announces. */
export const MAX_PAYLOAD_BYTES = 32 << 20;

/** What a session must know of an export. Every BlockDevice has it. */
export interface ExportFacts {
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  readonly preferredBlockBytes: number;
  readonly fastZero?: boolean;
}

/** Flags of an export for a client that negotiated structured replies, or not. */
export function transmissionFlags(facts: ExportFacts, structured: boolean): number {
  let flags = TRANSMISSION_HAS_FLAGS | TRANSMISSION_SEND_FLUSH | TRANSMISSION_SEND_FUA | TRANSMISSION_SEND_CACHE;
  // All connections share one device and its one queue: a flush on any of them covers what completed on every other.
  flags |= TRANSMISSION_CAN_MULTI_CONN;
  if (facts.readOnly) flags |= TRANSMISSION_READ_ONLY;
  else flags |= TRANSMISSION_SEND_TRIM | TRANSMISSION_SEND_WRITE_ZEROES | TRANSMISSION_SEND_FAST_ZERO;
  if (structured) flags |= TRANSMISSION_SEND_DF;
  return flags;
}
