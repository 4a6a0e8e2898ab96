// Pictures of each screen, in both themes, for docs/console: `node test/screenshots.mjs [folder] [width]`.

import { mkdir, writeFile } from "node:fs/promises";
import { chromium } from "playwright-core";
import { startMesh, startReceiver, until } from "./mesh.mjs";

const folder = process.argv[2] ?? new URL("../../docs/console", import.meta.url).pathname;
const width = Number(process.argv[3] ?? 1280);
const QUALITY = 80;

const receiver = await startReceiver();
const mesh = await startMesh(receiver);
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu"] });
try {
  const base = mesh.admin;
  const types = ["order.paid", "order.created", "order.shipped", "stock.moved", "stock.counted", "refund.requested"];
  let sample = "";
  for (let n = 0; n < 120; n++) {
    const fail = n % 11 === 7 ? [500, 503, 422][n % 3] : undefined;
    const receipt = await mesh.send(types[n % types.length], { orderId: `order-${1000 + (n % 23)}`, total: (n * 37) % 400, currency: "EUR", items: [{ sku: `A-${n}`, quantity: 1 + (n % 3) }], ...(fail ? { fail } : {}) });
    if (fail && n % types.length < 3) sample = receipt.eventId;
  }
  await mesh.send("order.paid", { orderId: "order-1", total: 5 }, { secret: "whsec_YW5vdGhlci1zZWNyZXQtYW5vdGhlci1zZWNyZXQ=" });
  await mesh.send("typed.order", { orderId: "typed-1", total: "much" });
  await mesh.send("order.paid", { total: 5 });
  const screens = [
    ["overview", "/"],
    ["stream", "/stream"],
    ["event", `/events/${sample}`],
    ["workflow", "/workflows/order-1007"],
    ["dead-letters", "/dead-letters"],
    ["stuck", "/stuck"],
    ["subscriptions", "/subscriptions"],
    ["subscription", "/subscriptions/billing"],
    ["sources", "/sources"],
    ["source", "/sources/shop"],
    ["new-source", "/sources/new?create=1"],
    ["keys", "/keys"],
    ["schemas", "/schemas"],
    ["rejected", "/rejected"],
    ["rejected-request", "/rejected/1"],
    ["replays", "/replays?type=order.paid"],
    ["alerts", "/alerts"],
    ["audit", "/audit"],
    ["cluster", "/cluster"],
  ];
  await mkdir(folder, { recursive: true });
  for (const theme of ["light", "dark"]) {
    const context = await browser.newContext({ viewport: { width, height: 800 }, colorScheme: theme });
    const page = await context.newPage();
    await page.goto(base);
    await page.getByLabel("API key").fill(mesh.token);
    await page.getByRole("button", { name: "Sign in" }).click();
    await page.getByRole("navigation").waitFor();
    if (theme === "light") {
      await page.goto(`${base}/dead-letters`);
      await until(async () => Number.parseInt((await page.getByTestId("total").textContent()) ?? "", 10) >= 4);
    }
    for (const [name, path] of screens) {
      await page.goto(base + path);
      await page.getByRole("heading", { level: 1 }).waitFor();
      await page.waitForLoadState("networkidle", { timeout: 1500 }).catch(() => {});
      await page.getByText(/^(Loading|Counting)/).first().waitFor({ state: "detached", timeout: 5000 }).catch(() => {});
      const png = await page.screenshot({ fullPage: width < 600 });
      // The browser itself makes the smaller file.
      const webp = await page.evaluate(
        async ({ data, quality }) => {
          const image = await createImageBitmap(new Blob([Uint8Array.from(atob(data), (char) => char.charCodeAt(0))]));
          const canvas = new OffscreenCanvas(image.width, image.height);
          canvas.getContext("2d").drawImage(image, 0, 0);
          const blob = await canvas.convertToBlob({ type: "image/webp", quality });
          const bytes = new Uint8Array(await blob.arrayBuffer());
          let text = "";
          for (const byte of bytes) text += String.fromCharCode(byte);
          return btoa(text);
        },
        { data: png.toString("base64"), quality: QUALITY / 100 },
      );
      await writeFile(`${folder}/${name}-${theme}.webp`, Buffer.from(webp, "base64"));
      if (process.env.PNG) await writeFile(`${process.env.PNG}/${name}-${theme}.png`, png);
    }
    await context.close();
  }
} finally {
  await browser.close();
  await mesh.stop();
  await receiver.stop();
}
