import { memoryStore } from "../../../src/adapters/memory/memory-store.ts";
import { objectStoreContract } from "../../contract/object-store.contract.ts";

objectStoreContract("memory", async () => ({ store: memoryStore(), close: async () => undefined }));
