// Clicks "Try it out" and "Execute" at every operation of Swagger UI and compares the request that is sent with the
// one that is shown. Examples are sent as they are: each is answered with success, or with 404 where it names
// something by an id or a name that was never written. Run with the browser, the document and the address of the API.
import { readFileSync } from "node:fs";
import { chromium } from "playwright-core";

const [executablePath, documentPath, url] = process.argv.slice(2);
const paths = JSON.parse(readFileSync(documentPath, "utf8")).paths;
const count = Object.values(paths).reduce((sum, item) => sum + Object.keys(item).length, 0);
const failures = [];

const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
try {
  const page = await browser.newPage({ viewport: { width: 1280, height: 4000 } });
  page.on("pageerror", (error) => failures.push(`the page: ${error}`));
  await page.goto(`${url}/docs/`);
  await page.locator(".opblock").first().waitFor();
  const blocks = await page.locator(".opblock").all();
  if (blocks.length !== count) failures.push(`${blocks.length} operations are shown, ${count} documented`);
  for (const block of blocks) await tryOut(page, block);
  console.log(`${blocks.length} operations were tried, ${failures.length} failed`);
} finally {
  await browser.close();
}
if (failures.length) {
  console.error(failures.join("\n"));
  process.exit(1);
}

async function tryOut(page, block) {
  const method = (await block.locator(".opblock-summary-method").innerText()).trim();
  const path = await block.locator(".opblock-summary-path").getAttribute("data-path");
  const shown = `${method} ${path}`;
  const fail = (why) => failures.push(`${shown}: ${why}`);
  await block.locator(".opblock-summary-control").click();
  await block.locator(".try-out__btn").click();
  const expected = await filledIn(block, path);
  try {
    const sent = page.waitForRequest((request) => request.resourceType() === "fetch", { timeout: 15000 });
    await block.locator(".execute").click();
    const request = await sent;
    const response = await request.response();
    const { pathname } = new URL(request.url());
    if (request.method() !== method || pathname !== expected) fail(`sent ${request.method()} ${pathname}`);
    const mayBeMissing = path.includes("{") && method !== "POST";
    const isTaken = response?.ok() || (mayBeMissing && response?.status() === 404);
    if (!isTaken) fail(`answered ${response?.status()} ${await response?.text()}`);
    const hasKey = "idempotency-key" in request.headers() || request.postData()?.includes("idempotency_key");
    if (hasKey) fail("sent an idempotency key that nobody gave");
  } catch (error) {
    fail(String(error));
  }
  await block.locator(".opblock-summary-control").click();
}

// The path with the values that stand in the form.
async function filledIn(block, path) {
  for (const row of await block.locator('tr[data-param-in="path"]').all()) {
    const name = await row.getAttribute("data-param-name");
    path = path.replace(`{${name}}`, encodeURIComponent(await row.locator("input").inputValue()));
  }
  return path;
}
