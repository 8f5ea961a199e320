import { memoryStore } from "../../../src/adapters/memory/memory-store.ts";
import { objectStoreContract } from "../../contract/object-store.contract.ts";

objectStoreContract("memory", () => Promise.resolve({ store: memoryStore(), close: () => Promise.resolve() }));
