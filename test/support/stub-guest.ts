/**
 * A guest of 268 bytes for tests that move machines about: it boots in about a second without an operating system, keeps a ledger on its disks, and
 * goes off when its power button is pressed. So a move takes the time that we need for it, and not the time that a Linux needs.
 *
 * It writes record n to its first disk, then to its second if it has one, and only then says so on its serial line; 40 ms later comes n + 1. The line is a
 * file of the hypervisor, so what was acknowledged last can be read also when the machine is gone. When it boots it looks for the newest record of
 * each disk, says both (`A…`, `B…`) and goes on after the greater one.
 *
 * Invariants:
 * - what the serial line says is on every disk, for SeaBIOS leaves the write cache off and waits for each write;
 * - the disks differ by at most one record, and the first is ahead: anything else was not one instant. After a shutdown they are equal;
 * - record n is in slot n mod 64, one slot in each block from the second on; a record that was never written is told by its second word.
 *
 * Source: the bytes are those of the assembly beside them (GNU as, `.code16`, origin 0x7c00); ACPI 6.4, 4.8.3 (PM1 blocks; SeaBIOS puts them at 0x600
 * on QEMU's q35); Phoenix EDD 1.1 (INT 13h, AH 42h and 43h).
 */
import { open, readFile } from "node:fs/promises";
import { join } from "node:path";
import { siteFolder } from "../../src/embedded/layout.ts";
import { numberedImage } from "./system.ts";

/** Enough for SeaBIOS. */
export const STUB_CONFIG = { cpus: 1, memoryMiB: 16, firmware: "bios" } as const;
export const SLOTS = 64;
const SLOT_SECTORS = 8;
const SECTOR = 512;
/** "EWRD": the second word of a record is its number xor this. */
const MAGIC = 0x44525745;

/** A disk on which every block says which block it is, and the first one boots. */
export async function createStubDisk(file: string, sizeBytes: number, label: number): Promise<void> {
  await numberedImage(file, sizeBytes, label);
  const sector = Buffer.alloc(SECTOR);
  Buffer.from(CODE.join(""), "hex").copy(sector);
  sector.writeUInt16LE(0xaa55, SECTOR - 2);
  await using disk = await open(file, "r+");
  await disk.write(sector, 0, SECTOR, 0);
}

export interface Ledger {
  /** The newest record of each disk when it booted; the second is 0 without a second disk. Undefined until it has said so. */
  readonly found: readonly [number, number] | undefined;
  /** The newest that is on all disks. */
  readonly acknowledged: number;
}

/** What a machine has said since its last start; undefined when it is not there (any more). */
export async function readLedger(state: string, site: string, machineId: string): Promise<Ledger | undefined> {
  let text: string;
  try {
    text = await readFile(
      join(siteFolder(state, site), "master-target", "machines", machineId, "console.log"),
      "latin1",
    );
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined; // Removed, or never started.
    throw error;
  }
  // SeaBIOS may have said something before, and the last line may be half there.
  const [, first, second] = /A([0-9a-f]{8})\nB([0-9a-f]{8})\n/.exec(text) ?? [];
  if (first === undefined || second === undefined) return { found: undefined, acknowledged: 0 };
  const found = [Number.parseInt(first, 16), Number.parseInt(second, 16)] as const;
  const records = text.slice(0, text.lastIndexOf("\n")).split("\n");
  const last = records.findLast((line) => /^[0-9a-f]{8}$/.test(line));
  return { found, acknowledged: last === undefined ? Math.min(...found) : Number.parseInt(last, 16) };
}

/** The newest record of a disk that nobody writes; 0: none. */
export async function newestRecord(file: string): Promise<number> {
  await using disk = await open(file);
  const sector = Buffer.alloc(SECTOR);
  let newest = 0;
  for (let slot = 0; slot < SLOTS; slot += 1) {
    await disk.read(sector, 0, SECTOR, (slot + 1) * SLOT_SECTORS * SECTOR);
    const record = sector.readUInt32LE(0);
    if ((record ^ MAGIC) >>> 0 === sector.readUInt32LE(4)) newest = Math.max(newest, record);
  }
  return newest;
}

// prettier-ignore
const CODE = [
  // start:
  "31c0", // xor ax,ax
  "8ed8", // mov ds,ax
  "8ec0", // mov es,ax
  "8ed0", // mov ss,ax
  "bc007c", // mov sp,0x7c00
  "fc", // cld
  "ba0206", // mov dx,0x602; PM1 enable: the power button is noticed
  "b80001", // mov ax,0x100
  "ef", // out dx,ax
  "b280", // mov dl,0x80
  "b041", // mov al,0x41
  "e84a00", // call 7c64 <scan>
  "6689ef", // mov edi,ebp
  "b281", // mov dl,0x81
  "b042", // mov al,0x42
  "e84000", // call 7c64 <scan>
  "6639fd", // cmp ebp,edi
  "7703", // ja 7c2c <next>
  "6689fd", // mov ebp,edi
  // next:
  "ba0006", // mov dx,0x600; PM1 status: was the button pressed?
  "ed", // in ax,dx
  "f6c401", // test ah,0x1
  "7525", // jne 7c5a <off>
  "6645", // inc ebp
  // again:
  "b280", // mov dl,0x80
  "e86600", // call 7ca2 <put>
  "72f9", // jb 7c37 <again>
  "803e750402", // cmp BYTE PTR ds:0x475,0x2; how many disks the BIOS found
  "7207", // jb 7c4c <done>
  // again2:
  "b281", // mov dl,0x81
  "e85800", // call 7ca2 <put>
  "72f9", // jb 7c45 <again2>
  // done:
  "e89000", // call 7cdf <tell>
  "b486", // mov ah,0x86
  "31c9", // xor cx,cx
  "ba409c", // mov dx,0x9c40
  "cd15", // int 0x15; wait 40 ms
  "ebd2", // jmp 7c2c <next>
  // off:
  "ba0406", // mov dx,0x604; PM1 control: soft off
  "b80020", // mov ax,0x2000
  "ef", // out dx,ax
  "f4", // hlt
  "ebf6", // jmp 7c5a <off>
  // scan:
  "6657", // push edi
  "52", // push dx
  "baf803", // mov dx,0x3f8
  "ee", // out dx,al
  "5a", // pop dx
  "6631ed", // xor ebp,ebp
  "6631db", // xor ebx,ebx
  "b442", // mov ah,0x42; read
  "e84900", // call 7cc0 <disk>
  "721d", // jb 7c96 <scan+0x32>
  "66a10080", // mov eax,ds:0x8000
  "6689c1", // mov ecx,eax
  "6681f145575244", // xor ecx,0x44525745
  "663b0e0480", // cmp ecx,DWORD PTR ds:0x8004
  "7508", // jne 7c96 <scan+0x32>
  "6639e8", // cmp eax,ebp
  "7603", // jbe 7c96 <scan+0x32>
  "6689c5", // mov ebp,eax
  "43", // inc bx
  "83fb40", // cmp bx,0x40
  "72d6", // jb 7c72 <scan+0xe>
  "e84000", // call 7cdf <tell>
  "665f", // pop edi
  "c3", // ret
  // put:
  "bf0080", // mov di,0x8000
  "6689e8", // mov eax,ebp
  "b98000", // mov cx,0x80
  "66f3ab", // rep stos DWORD PTR es:[di],eax
  "663545575244", // xor eax,0x44525745
  "66a30480", // mov ds:0x8004,eax
  "6689eb", // mov ebx,ebp
  "83e33f", // and bx,0x3f
  "b443", // mov ah,0x43; write
  // disk:
  "660fb7cb", // movzx ecx,bx
  "66c1e103", // shl ecx,0x3
  "6683c108", // add ecx,0x8
  "66890e047d", // mov DWORD PTR ds:0x7d04,ecx
  "befc7c", // mov si,0x7cfc
  "30c0", // xor al,al
  "53", // push bx
  "6655", // push ebp
  "cd13", // int 0x13
  "665d", // pop ebp
  "5b", // pop bx
  "c3", // ret
  // tell:
  "b90800", // mov cx,0x8
  "66c1c504", // rol ebp,0x4
  "89e8", // mov ax,bp
  "240f", // and al,0xf
  "0430", // add al,0x30
  "3c3a", // cmp al,0x3a
  "7202", // jb 7cf2 <tell+0x13>
  "0427", // add al,0x27
  "baf803", // mov dx,0x3f8
  "ee", // out dx,al
  "e2ea", // loop 7ce2 <tell+0x3>
  "b00a", // mov al,0xa
  "ee", // out dx,al
  "c3", // ret
  // dap: one sector to or from 0x8000; the sector number is filled in
  "1000010000800000",
  "0000000000000000",
];
