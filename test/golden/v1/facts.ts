/** What is known of the golden store of version 1. Never changes. */
export const ROOT = "replica";
export const STORE_ID = "6f1de3a8-90ab-4cde-8f01-23456789abcd";
export const DISK_ID = "0b9c1f5e-4a37-4d11-9d0e-c5a1f2e3d4b5";
export const GROUP_ID = "payroll";
export const DISK_KEY: Uint8Array = new Uint8Array(32).fill(0x42);
/** 99 blocks and a half. */
export const SIZE_BYTES = 99 * 4096 + 2048;
