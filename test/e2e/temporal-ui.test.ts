/**
 * In a real browser, the Temporal Web UI alone tells what is going on: the group with phase and lag, each operation with readable steps.
 *
 * With LEEWARD_SCREENSHOTS=DIR the pages are kept as pictures (those in docs/images were made so).
 */
import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { chromium, type Page } from "playwright-core";
import { numberedImage, startSystem, startWriter, until } from "../support/system.ts";

const CHROMIUM_FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

test("the Temporal Web UI shows groups and operations in words", { timeout: 300_000 }, async (t) => {
  const system = await startSystem(t);
  const images = [join(system.folder, "web.img"), join(system.folder, "db.img")];
  for (const [index, image] of images.entries()) await numberedImage(image, 32 << 20, index);
  await system.client.protect({
    name: "web-tier",
    disks: images.map((image) => `tap:${image}`),
    policy: { intervalMs: 1_000 },
  });
  const taps = await until("taps", 30_000, async () => {
    const { disks } = await system.client.group("web-tier");
    return (
      disks.length === 2 && disks.every((disk) => disk.tapUrl !== undefined) && disks.map((disk) => disk.tapUrl ?? "")
    );
  });
  const writer = startWriter(t, taps, system.folder);
  await until("protected", 60_000, async () => (await system.client.group("web-tier")).phase === "protected");
  await system.client.bookmark("web-tier", "before-upgrade");
  const started = await system.client.startTestFailover("web-tier", { point: "@before-upgrade", leaseMs: 600_000 });
  await until(
    "the test machine",
    90_000,
    async () => ((await system.client.operation(started.operationId)).machines?.length ?? 0) > 0,
  );

  const ui = (await system.client.status()).temporal.uiUrl ?? "";
  assert.notEqual(ui, "");
  const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: CHROMIUM_FLAGS });
  t.after(() => browser.close());
  const page = await browser.newPage({ viewport: { width: 1500, height: 1300 } });

  await t.test("the list of runs names each by what it is for", async () => {
    await page.goto(`${ui}/namespaces/default/workflows`);
    await seen(page, "group/web-tier");
    await seen(page, "protectionGroup");
    await seen(page, "testFailover");
    await picture(page, "temporal-runs");
  });
  await t.test("the group's run says its phase, its lag, and what to type", async () => {
    await open(page, ui, "group/web-tier", "User Metadata");
    await seen(page, "web-tier: primary → secondary");
    await seen(page, "protected");
    await seen(page, "leeward group show web-tier");
    await picture(page, "temporal-group");
  });
  await t.test("an operation's steps can be read in its timeline", async () => {
    await open(page, ui, started.workflowId, undefined);
    await seen(page, "Open the exports", "open the export", "Open export", "Export");
    await picture(page, "temporal-test-failover");
  });
  await system.client.cleanUpTestFailover("web-tier", started.operationId);
  await until(
    "the clean-up",
    60_000,
    async () => (await system.client.operation(started.operationId)).state !== "running",
  );
  await writer.stop();
});

async function open(page: Page, ui: string, workflowId: string, tab: string | undefined): Promise<void> {
  await page.goto(`${ui}/namespaces/default/workflows?query=${encodeURIComponent(`WorkflowId="${workflowId}"`)}`);
  await page.getByRole("link", { name: workflowId }).first().click();
  if (tab !== undefined) {
    await page.waitForURL(/timeline|history/);
    await page
      .getByRole("tab", { name: tab })
      .or(page.getByRole("link", { name: tab }))
      .first()
      .click();
  }
}

/** Any of the texts is visible within half a minute. */
async function seen(page: Page, ...texts: string[]): Promise<void> {
  await until(`"${texts[0]}" on the page`, 30_000, async () => {
    // Markdown is shown in frames of its own.
    const parts = await Promise.all(page.frames().map((frame) => frame.locator("body").innerText()));
    const text = parts.join("\n").toLowerCase();
    return texts.some((one) => text.includes(one.toLowerCase()));
  });
}

async function picture(page: Page, name: string): Promise<void> {
  const folder = process.env["LEEWARD_SCREENSHOTS"];
  if (folder === undefined) return;
  mkdirSync(folder, { recursive: true });
  await page.screenshot({ path: join(folder, `${name}.png`) });
}
