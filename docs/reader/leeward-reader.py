#!/usr/bin/env python3
"""Restores a point of a Leeward replica store, from docs/format.md alone.

It shares no code with Leeward and needs nothing of it: Python 3.9 or later, its standard library, and two libraries that every Debian has
(libzstd.so.1 for unpacking, libcrypto.so.3 for AES-256-GCM), called through ctypes.

    leeward-reader.py --store FOLDER --keys disk-keys.json --list
    leeward-reader.py --store FOLDER --keys disk-keys.json --group ID [--point ID] --to FOLDER

FOLDER is a copy of the bucket below the store's root (the folder that has store.json in it), made with any S3 tool, for example
`aws s3 sync s3://bucket/root FOLDER` or `rclone copy`. The key file is the one of the master target.

Every block is verified: seal and digest. What does not hold ends the program with a message and exit code 1. It is written to be read, not to be fast.
"""

import argparse
import ctypes
import ctypes.util
import hashlib
import hmac
import json
import os
import re
import struct
import sys
from base64 import b64decode

BLOCK = 4096
PIECE = 65536
HEADER = 256
FOOTER = 80
KINDS = {1: "journal", 2: "segment", 3: "pack", 4: "fence", 5: "map"}


class Damaged(Exception):
    pass


# --- what the standard library does not have -------------------------------------------------------------------------------------------

zstd = ctypes.CDLL(ctypes.util.find_library("zstd") or "libzstd.so.1")
zstd.ZSTD_decompress.restype = ctypes.c_size_t
zstd.ZSTD_decompress.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]
zstd.ZSTD_isError.argtypes = [ctypes.c_size_t]
zstd.ZSTD_getFrameContentSize.restype = ctypes.c_ulonglong
zstd.ZSTD_getFrameContentSize.argtypes = [ctypes.c_char_p, ctypes.c_size_t]

crypto = ctypes.CDLL(ctypes.util.find_library("crypto") or "libcrypto.so.3")
for name in ("EVP_CIPHER_CTX_new", "EVP_aes_256_gcm"):
    getattr(crypto, name).restype = ctypes.c_void_p
crypto.EVP_CIPHER_CTX_free.argtypes = [ctypes.c_void_p]
crypto.EVP_DecryptInit_ex.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_char_p] * 2
crypto.EVP_DecryptUpdate.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]
crypto.EVP_DecryptFinal_ex.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
crypto.EVP_CIPHER_CTX_ctrl.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_char_p]
SET_TAG = 0x11  # EVP_CTRL_AEAD_SET_TAG


def unpack(stored, what, limit=256 << 20):
    size = zstd.ZSTD_getFrameContentSize(stored, len(stored))
    if size > limit:  # Also "unknown" and "no zstd frame", which are the two largest numbers.
        raise Damaged(f"{what}: not a zstd frame that states its size, or too large")
    target = ctypes.create_string_buffer(max(size, 1))
    done = zstd.ZSTD_decompress(target, size, stored, len(stored))
    if zstd.ZSTD_isError(done) or done != size:
        raise Damaged(f"{what}: it does not unpack")
    return target.raw[:size]


def open_sealed(key, nonce, additional, sealed, what):
    """AES-256-GCM with a 12-byte nonce and the 16-byte tag behind the ciphertext."""
    if len(sealed) < 16:
        raise Damaged(f"{what}: too short for a seal")
    body, tag = sealed[:-16], sealed[-16:]
    context = crypto.EVP_CIPHER_CTX_new()
    try:
        length = ctypes.c_int(0)
        plain = ctypes.create_string_buffer(len(body) + 16)
        end = ctypes.create_string_buffer(16)
        ok = crypto.EVP_DecryptInit_ex(context, crypto.EVP_aes_256_gcm(), None, key, nonce) == 1
        ok = ok and crypto.EVP_DecryptUpdate(context, None, ctypes.byref(length), additional, len(additional)) == 1
        ok = ok and crypto.EVP_DecryptUpdate(context, plain, ctypes.byref(length), body, len(body)) == 1
        ok = ok and crypto.EVP_CIPHER_CTX_ctrl(context, SET_TAG, 16, tag) == 1
        ok = ok and crypto.EVP_DecryptFinal_ex(context, end, ctypes.byref(length)) == 1
        if not ok:
            raise Damaged(f"{what}: its seal does not hold")
        return plain.raw[: len(body)]
    finally:
        crypto.EVP_CIPHER_CTX_free(context)


def hkdf(key, salt, info):
    """HKDF-SHA-256, 32 bytes (RFC 5869)."""
    secret = hmac.new(salt, key, hashlib.sha256).digest()
    return hmac.new(secret, info + b"\x01", hashlib.sha256).digest()


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def crc_table():
    table = []
    for number in range(256):
        for _ in range(8):
            number = (number >> 1) ^ (0x82F63B78 if number & 1 else 0)
        table.append(number)
    return table


CRC_TABLE = crc_table()


# --- "A container" ---------------------------------------------------------------------------------------------------------------------


def u48(data, at):
    return int.from_bytes(data[at : at + 6], "little")


def u32(data, at):
    return int.from_bytes(data[at : at + 4], "little")


def text(field):
    return field.rstrip(b"\0").decode("ascii")


def read_header(data, what):
    if len(data) < HEADER or data[:4] != b"LWRD":
        raise Damaged(f"{what}: no container")
    if crc32c(data[:252]) != u32(data, 252):
        raise Damaged(f"{what}: the CRC of its header does not hold")
    if struct.unpack_from("<H", data, 4)[0] != 1 or u32(data, 16) != 0 or data[10] != 1 or data[11] != 1 or data[8] not in KINDS:
        raise Damaged(f"{what}: of a format that this program does not read")
    return {
        "kind": KINDS[data[8]],
        "cipher": data[9],
        "store": data[20:36],
        "epoch": u48(data, 36),
        "seq": u48(data, 42),
        "chain": data[72:88].hex(),
        "size": u48(data, 88),
        "index_bytes": u32(data, 96),
        "frames": u32(data, 100),
        "extents": u32(data, 104),
        "id": data[116:128],
        "salt": data[128:160],
        "index_salt": data[160:176],
        "data_key": data[176:184].hex(),
        "disk": text(data[192:228]),
        "branch": text(data[228:248]),
    }


class Cursor:
    """LEB128 numbers and bytes, in order."""

    def __init__(self, data, what):
        self.data, self.at, self.what = data, 0, what

    def varint(self):
        value, shift = 0, 0
        while True:
            (byte,) = self.bytes(1)
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def signed(self):
        value = self.varint()
        return -(value + 1) // 2 if value & 1 else value // 2

    def bytes(self, length):
        if self.at + length > len(self.data):
            raise Damaged(f"{self.what}: its index ends too early")
        self.at += length
        return self.data[self.at - length : self.at]


def read_directory(cursor):
    """Frames as (first block, blocks, codec, stored bytes without the tag)."""
    frames, end = [], 0
    for _ in range(cursor.varint()):
        block = end + cursor.signed()
        shape = cursor.varint()
        blocks, codec = shape >> 1, shape & 1
        stored = cursor.varint() if codec == 1 else blocks * BLOCK
        frames.append((block, blocks, codec, stored))
        end = block + blocks
    return frames


def read_index(plain, what):
    sections, cursor = {}, Cursor(plain, what)
    while cursor.at < len(plain):
        number = cursor.varint()
        payload = cursor.bytes(cursor.varint())
        if number in sections or (number < 128 and number not in (1, 2, 3, 4)):
            raise Damaged(f"{what}: section {number} is unknown and critical, or there twice")
        sections[number] = payload

    cursor = Cursor(sections[1], what)
    segments = []
    for _ in range(cursor.varint()):
        segment = {"id": cursor.bytes(12), "sha256": cursor.bytes(32), "salt": cursor.bytes(32), "data_key": cursor.bytes(8).hex()}
        segment["index_bytes"], segment["body_bytes"] = cursor.varint(), cursor.varint()
        segments.append(segment)
    cursor = Cursor(sections[2], what)
    directories = [read_directory(cursor) for _ in range(len(segments) + 1)]
    digests = [sections[3][at : at + 16] for at in range(0, len(sections[3]), 16)]

    cursor = Cursor(sections[4], what)
    extents, end, expected = [], 0, 0
    for _ in range(cursor.varint()):
        start = end + cursor.varint()
        shape = cursor.varint()
        length, kind = shape >> 2, shape & 3
        source = frame = None
        if kind == 0:
            source = cursor.varint()
            frame = expected + cursor.signed()
            expected = frame + 1
        extents.append((start, length, source, frame))
        end = start + length
    return {"segments": segments, "directories": directories, "digests": digests, "extents": extents}


# --- the store -------------------------------------------------------------------------------------------------------------------------


class Store:
    def __init__(self, folder, keys_file):
        self.folder = folder
        self.id = self.record("store.json")["storeId"]
        with open(keys_file, encoding="utf-8") as file:
            held = json.load(file)
        self.tenant_key = b64decode(held["tenantKey"])
        self.disk_keys = {disk: b64decode(key) for disk, key in held["disks"].items()}
        self.data_keys = {}

    def get(self, key):
        try:
            with open(os.path.join(self.folder, *key.split("/")), "rb") as file:
                return file.read()
        except FileNotFoundError:
            raise Damaged(f"{key}: it is missing") from None

    def names(self, prefix):
        folder = os.path.join(self.folder, *prefix.split("/"))
        return sorted(os.listdir(folder)) if os.path.isdir(folder) else []

    def record(self, key):
        try:
            value = json.loads(self.get(key))
        except ValueError:
            raise Damaged(f"{key}: it is not JSON") from None
        if value.get("format") != 1:
            raise Damaged(f"{key}: of a format that this program does not read")
        return value

    def data_key(self, disk, key_id):
        """A wrapped key, opened with the disk's key ("Keys")."""
        if (disk, key_id) not in self.data_keys:
            if disk not in self.disk_keys:
                raise Damaged(f"disk {disk}: the key file has no key for it")
            key = f"disks/{disk}/keys/{key_id}"
            record = self.record(key)
            sealed = bytes.fromhex(record.pop("sealed"))
            additional = canonical({name: record[name] for name in WRAPPED})
            self.data_keys[disk, key_id] = open_sealed(self.disk_keys[disk], bytes.fromhex(record["nonce"]), additional, sealed, key)
        return self.data_keys[disk, key_id]

    def head(self, key, disk):
        """Header, index and the SHA-256 over both, of a container."""
        data = self.get(key)
        header = read_header(data, key)
        if header["disk"] != disk or header["store"] != bytes.fromhex(self.id.replace("-", "")) or header["cipher"] != 1:
            raise Damaged(f"{key}: it belongs elsewhere, or is not sealed")
        end = HEADER + header["index_bytes"]
        index_key = hkdf(self.data_key(disk, header["data_key"]), header["salt"] + header["index_salt"], b"leeward/1/index")
        packed = open_sealed(index_key, bytes(12), data[:252], data[HEADER:end], key)
        index = read_index(unpack(packed, key), key)
        return header, index, hashlib.sha256(data[:end]).digest(), data


WRAPPED = ("format", "keyId", "storeId", "diskId", "month", "createdAtMs", "cipher", "nonce")


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


# --- "Reading a disk" ------------------------------------------------------------------------------------------------------------------


def line(store, disk, branch, seq, commit_hash):
    """The commits that count, oldest first: those of the parents up to where each branch starts, then its own up to `seq`."""
    origin = store.record(f"disks/{disk}/branches/{branch}/origin.json")
    last, epoch = "0" * 32, 0
    commits = []
    if "parent" in origin:
        parent = origin["parent"]
        commits = line(store, disk, parent["branch"], parent["seq"], parent["commitHash"])
        last = parent["commitHash"]
    for number in range(1, seq + 1):
        key = f"disks/{disk}/branches/{branch}/journal/{number:016x}"
        header, index, sha256, data = store.head(key, disk)
        if header["branch"] != branch or header["seq"] != number:
            raise Damaged(f"{key}: it is another commit")
        if header["epoch"] < epoch:
            continue  # Of a fenced writer: it does not count.
        if header["chain"] != last:
            raise Damaged(f"{key}: it does not chain to the commit before it")
        last, epoch = sha256[:16].hex(), header["epoch"]
        if header["kind"] == "journal":
            commits.append((key, header, index, data))
    if last != commit_hash:
        raise Damaged(f"disk {disk}: commit {seq} of branch {branch} is not the one that the point names")
    return commits


class Container:
    """Opens and verifies the frames of one container, one after the other."""

    def __init__(self, store, disk, key, place, frames, load):
        self.store, self.disk, self.key, self.id, self.frames, self.load = store, disk, key, place["id"], frames, load
        self.frame_key = hkdf(store.data_key(disk, place["data_key"]), place["salt"], b"leeward/1/frames")
        self.offsets, self.pieces = [HEADER + place["index_bytes"]], [0]
        for _, blocks, _, stored in frames:
            self.offsets.append(self.offsets[-1] + stored + 16)
            self.pieces.append(self.pieces[-1] + -(-blocks * BLOCK // PIECE))
        self.content = None

    def frame(self, number):
        if self.content is None:
            self.content = self.load()  # The object, and the digests of its frames.
        data, digests = self.content
        block, blocks, codec, _ = self.frames[number]
        what = f"{self.key}, frame {number} (blocks {block} to {block + blocks - 1})"
        additional = (
            bytes.fromhex(self.store.id.replace("-", ""))
            + self.disk.encode().ljust(36, b"\0")
            + self.id
            + struct.pack("<I", number)
            + block.to_bytes(6, "little")
            + struct.pack("<HB3x", blocks, codec)
        )
        nonce = struct.pack("<I8x", number)
        plain = open_sealed(self.frame_key, nonce, additional, data[self.offsets[number] : self.offsets[number + 1]], what)
        if codec == 1:
            plain = unpack(plain, what, blocks * BLOCK)
        if len(plain) != blocks * BLOCK:
            raise Damaged(f"{what}: it has another length")
        for piece in range(self.pieces[number + 1] - self.pieces[number]):
            part = plain[piece * PIECE : (piece + 1) * PIECE]
            if hashlib.sha256(part).digest()[:16] != digests[self.pieces[number] + piece]:
                raise Damaged(f"{what}: it is not what the source hashed")
        return block, plain


def restore_disk(store, member, path):
    disk = member["diskId"]
    size, where = None, {}  # For each block: container and frame, or None for zeroes.
    for key, header, index, data in line(store, disk, member["branch"], member["seq"], member["commitHash"]):
        size = header["size"]
        own = Container(store, disk, key, header, index["directories"][0], lambda data=data, index=index: (data, index["digests"]))
        containers = [own] + [
            segment_of(store, disk, segment, frames) for segment, frames in zip(index["segments"], index["directories"][1:])
        ]
        for start, length, source, frame in index["extents"]:
            for block in range(start, start + length):
                where[block] = None if source is None else (containers[source], frame)
    if size is None:
        raise Damaged(f"disk {disk}: nothing was written by this point")

    with open(path + ".partial", "wb") as image:
        image.truncate(size)
        wanted = {}
        for block, place in where.items():
            if place is not None:
                wanted.setdefault(place[0], {}).setdefault(place[1], []).append(block)
        for container, frames in wanted.items():
            for number, blocks in sorted(frames.items()):
                first, plain = container.frame(number)
                for block in blocks:
                    at = (block - first) * BLOCK
                    image.seek(block * BLOCK)
                    image.write(plain[at : at + min(BLOCK, size - block * BLOCK)])
            container.content = None
        os.fsync(image.fileno())
    os.replace(path + ".partial", path)
    return size


def segment_of(store, disk, segment, frames):
    epoch, counter = int.from_bytes(segment["id"][2:6], "big"), int.from_bytes(segment["id"][6:12], "big")
    key = f"disks/{disk}/segments/{epoch:08x}-{counter:012x}"

    def load():
        _, index, sha256, data = store.head(key, disk)
        if sha256 != segment["sha256"]:
            raise Damaged(f"{key}: it is not the segment that its commit names")
        return data, index["digests"]

    return Container(store, disk, key, segment, frames, load)


# --- points ----------------------------------------------------------------------------------------------------------------------------


def points_of(store, group):
    """Barriers by their point id, and the names that points were kept under. A damaged one is left out, and said."""
    found, mac_key = {}, hkdf(store.tenant_key, store.id.encode(), b"leeward/1/points")
    for name in store.names(f"groups/{group}/barriers"):
        key = f"groups/{group}/barriers/{name}"
        try:
            barrier = store.record(key)
            if f"{barrier['barrier']:016x}" != name or barrier["groupId"] != group:
                raise Damaged(f"{key}: it is another barrier")
            found[point_id(barrier)] = {"barrier": barrier, "name": ""}
        except (Damaged, KeyError) as error:
            print(f"Left out: {error}", file=sys.stderr)
    for name in store.names(f"groups/{group}/points"):
        key = f"groups/{group}/points/{name}"
        try:
            point = store.record(key)
            mac = point.pop("mac")
            if not hmac.compare_digest(mac, hmac.new(mac_key, canonical(point), hashlib.sha256).hexdigest()):
                raise Damaged(f"{key}: its MAC does not hold")
            found[point_id(point["barrier"])] = point
        except (Damaged, KeyError) as error:
            print(f"Left out: {error}", file=sys.stderr)
    return dict(sorted(found.items(), key=lambda item: item[1]["barrier"]["barrier"]))


def point_id(barrier):
    return f"{barrier['cutAtMs']:013d}-{barrier['barrier']:016x}"


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    options.add_argument("--store", required=True, help="folder with a copy of the store: the one that has store.json")
    options.add_argument("--keys", required=True, help="key file of the master target")
    options.add_argument("--group", help="id of the group")
    options.add_argument("--point", default="latest", help="point id; latest, if left out")
    options.add_argument("--to", help="folder for the images")
    options.add_argument("--list", action="store_true", help="list groups and points")
    given = options.parse_args()
    store = Store(given.store, given.keys)
    if given.list or given.group is None or given.to is None:
        for group in store.names("groups"):
            for identity, point in points_of(store, group).items():
                branches = ",".join(sorted({member["branch"] for member in point["barrier"]["members"]}))
                print(" ".join([group, identity, branches, point["name"]]).rstrip())
        return
    points = points_of(store, given.group)
    if not points:
        raise Damaged(f"group {given.group} has no points")
    identity = list(points)[-1] if given.point == "latest" else given.point
    if identity not in points:
        raise Damaged(f"group {given.group} has no point {identity}")
    os.makedirs(given.to, exist_ok=True)
    for member in points[identity]["barrier"]["members"]:
        path = os.path.join(given.to, re.sub(r"[^A-Za-z0-9._-]", "_", member["diskId"]) + ".raw")
        print(path, restore_disk(store, member, path), "bytes, verified")


if __name__ == "__main__":
    try:
        main()
    except Damaged as error:
        print(error, file=sys.stderr)
        sys.exit(1)
