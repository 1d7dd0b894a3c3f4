// Markdown in answers: rendered, made only of elements and text, and without raw markup while it grows.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { newPage, startChromium, startSite } from "./support.mjs";

let browser;
let site;
before(async () => ([browser, site] = await Promise.all([startChromium(), startSite()])));
after(() => Promise.all([browser.close(), site.stop()]));

/** A page with `draw(text)`, the HTML of a complete answer, and `grow(text)`, the HTML after every letter. */
async function openPage(t) {
  const { page, seen } = await newPage(browser, t);
  await page.goto(`${site.url}icon.svg`);
  await page.evaluate(async (url) => {
    const { loadMarkdown, Markdown } = await import(url);
    await loadMarkdown();
    const body = document.implementation.createHTMLDocument("").body;
    window.make = () => {
      const root = body.ownerDocument.createElement("div");
      window.root = root;
      return new Markdown(root);
    };
    document.createElement = (name) => body.ownerDocument.createElement(name); // this page is an SVG
    window.draw = (text) => (window.make().draw(text, true), window.root.innerHTML);
    window.grow = (text) => {
      const markdown = window.make();
      const shown = Array.from(text, (_, idx) => (markdown.draw(text.slice(0, idx + 1), false), window.root.innerHTML));
      markdown.draw(text, true);
      return { shown, last: window.root.innerHTML };
    };
  }, `${site.url}page/markdown.js`);
  return { page, seen, draw: (text) => page.evaluate((text) => window.draw(text), text), grow: (text) => page.evaluate((text) => window.grow(text), text) };
}

const REPORT = `## Findings

The heart is **enlarged** (*probably*), see \`CTR\` 0.6.
Lungs: clear.

1. Effusion:
   - left: **none**
   - right: small
2. Nodule, 3 * 4 * 5 mm

| Side | Size |
|------|-----:|
| left | **9** mm |

\`\`\`
**raw** <b>code</b>
\`\`\`

Done.`;

test("bold, lists, tables and code become elements", async (t) => {
  const { draw } = await openPage(t);
  const table = '<div class="table" tabindex="0" role="group" aria-label="Table"><table><thead><tr><th>Side</th><th class="right">Size</th></tr></thead>'
    + '<tbody><tr><td>left</td><td class="right"><strong>9</strong> mm</td></tr></tbody></table></div>';
  assert.equal(await draw(REPORT), "<p><strong>Findings</strong></p>"
    + "<p>The heart is <strong>enlarged</strong> (<em>probably</em>), see <code>CTR</code> 0.6.\nLungs: clear.</p>"
    + '<ol start="1"><li>Effusion:<ul><li>left: <strong>none</strong></li><li>right: small</li></ul></li><li>Nodule, 3 * 4 * 5 mm</li></ol>'
    + `${table}<pre tabindex="0"><code>**raw** &lt;b&gt;code&lt;/b&gt;</code></pre><p>Done.</p>`);
});

test("text without markup stays unchanged, and so do sizes, signs and numbers that look like markup", async (t) => {
  const { draw } = await openPage(t);
  for (const [text, html] of [["Yes.", "<p>Yes.</p>"], ["a < b & c_d_e, 2*3", "<p>a &lt; b &amp; c_d_e, 2*3</p>"], ["One\nTwo", "<p>One\nTwo</p>"], ["", ""], ["نعم", "<p>نعم</p>"],
    ["2.", "<p>2.</p>"], ["-", "<p>-</p>"], ["#", "<p>#</p>"], ["12*15*9 mm", "<p>12*15*9 mm</p>"], ["~5-~7 mm", "<p>~5-~7 mm</p>"],
    ["> 5 mm", "<blockquote><p>&gt; 5 mm</p></blockquote>"], ["- > 5 mm", '<ul><li><blockquote><p>&gt; 5 mm</p></blockquote></li></ul>']]) {
    assert.equal(await draw(text), html);
  }
});

test("nothing of an answer becomes HTML, a link or an image", async (t) => {
  const { page, draw, seen } = await openPage(t);
  const attacks = ["<img src=x onerror=alert(1)>", "a <script>alert(1)</script> b", "[x](javascript:alert(1))", "![x](https://evil.test/a.png)", "<a href='https://evil.test'>x</a>",
    "[a]: https://evil.test\n\n[a]", "| <img src=x> |\n|---|\n| <svg onload=alert(1)> |", "- <iframe src=//evil.test>", "```<x\">\n<img src=x>\n```", "https://evil.test/auto", "# <b>x</b>"];
  for (const text of attacks) {
    await draw(text);
    const made = await page.evaluate(() => [...window.root.querySelectorAll("*")].map((element) => [element.localName, ...element.getAttributeNames()].join(" ")));
    for (const each of made) assert.match(each, /^(p|strong|em|del|code|pre tabindex|ul|ol start|li|blockquote|hr|div class tabindex role aria-label|table|thead|tbody|tr|t[hd]( class)?)$/, text);
  }
  assert.ok(seen.requests.every((url) => url.startsWith(site.url)), seen.requests.join(" "));
});

test("a growing answer shows no raw markup, keeps finished elements, and ends like the complete one", async (t) => {
  const { page, draw, grow } = await openPage(t);
  const { shown, last } = await grow(REPORT);
  assert.equal(last, await draw(REPORT));
  const outside = (html) => html.replace(/<pre.*?<\/pre>/s, "").replace(/<[^>]*>/g, "").replace("3 * 4 * 5", "").replace(/3 \*( 4( \*)?)?/, "");
  for (const html of shown) assert.doesNotMatch(outside(html), /[*`|#]|^- /m);
  const isSame = await page.evaluate((text) => {
    const markdown = window.make();
    markdown.draw(text.slice(0, 60), false);
    const [heading, first] = window.root.children;
    const words = first.firstChild;
    for (let end = 61; end <= text.length; end++) markdown.draw(text.slice(0, end), false);
    return window.root.children[0] === heading && window.root.children[1] === first && first.firstChild === words;
  }, REPORT);
  assert.ok(isSame);
});

test("a long answer costs in proportion to its length", async (t) => {
  const { page } = await openPage(t);
  // Letters that are split into tokens, over the whole growth: if everything were rebuilt for every piece, it would be the square.
  const nLetters = (n_blocks) => page.evaluate((n_blocks) => {
    const markdown = window.make();
    const block = "A **sentence** of a block.\n\n";
    let n_made = 0;
    const observer = new MutationObserver(() => {});
    observer.observe(window.root, { childList: true });
    for (let n = 1; n <= n_blocks; n++) {
      markdown.draw(block.repeat(n), false);
      n_made += observer.takeRecords().reduce((sum, { addedNodes, removedNodes }) => sum + addedNodes.length + removedNodes.length, 0);
    }
    return n_made;
  }, n_blocks);
  assert.deepEqual([await nLetters(50), await nLetters(200)], [50, 200]);
});

test("the page renders markup and does not speak it; copying gives what the model wrote", async (t) => {
  const standIn = await startSite({ fake: true });
  t.after(() => standIn.stop());
  const { page, context, answer, ...on } = await newPage(browser, t);
  await context.grantPermissions(["clipboard-read", "clipboard-write"]);
  await on.open(standIn, "fake=markdown");
  await on.ready();
  await on.show();
  await on.answerTo("What is this?");
  assert.deepEqual(await answer.locator("strong, em, code, li, th, td").allTextContents(), ["Findings", "not enlarged", "Opacity, left upper zone", "Opacity", "CTR 0.48", "CTR", "Side", "Size", "left", "9 mm"]);
  assert.deepEqual(await page.locator("#spoken p").allTextContents(), ["Findings", "The heart is not enlarged.", "Two signs:", "1. Opacity, left upper zone", "2. CTR 0.48", "Side Size", "left 9 mm", "Nothing else."]);
  await page.locator("#copy").click();
  await page.getByText("Copied").waitFor();
  assert.ok((await page.evaluate(() => navigator.clipboard.readText())).includes("\n\nModel:\n## Findings\n\nThe heart is **not enlarged**. Two signs:\n\n1. *Opacity*, left upper zone\n"));
});

test("an answer that arrives before the Markdown library is shown as written, then rendered", async (t) => {
  let release;
  const held = new Promise((resolve) => (release = resolve));
  const standIn = await startSite({ fake: true, fault: (path) => path === "page/marked/marked.esm.js" && held.then(() => false) });
  t.after(() => standIn.stop());
  const { page, answer, ...on } = await newPage(browser, t);
  await on.open(standIn, "fake=markdown");
  await on.ready();
  await on.show();
  assert.match(await on.answerTo("What is this?"), /^## Findings\n\nThe heart is \*\*not enlarged\*\*\./);
  release();
  await answer.locator("strong", { hasText: "not enlarged" }).waitFor();
  assert.doesNotMatch(await answer.textContent(), /\*\*|## /);
});
