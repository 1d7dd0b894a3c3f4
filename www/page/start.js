// A classic script, so that it runs where modules do not: says why the page's program (page.js) does not start.

(() => {
  const hasStarted = () => document.readyState !== "loading" && document.getElementById("status").textContent !== "Starting";

  function say(title, next) {
    if (document.readyState === "loading") return document.addEventListener("DOMContentLoaded", () => say(title, next));
    if (hasStarted()) return;
    document.getElementById("status").textContent = "The page could not start";
    document.getElementById("bar").classList.add("still");
    document.getElementById("model-word").textContent = "not loaded";
    const box = document.createElement("div");
    box.className = "error";
    box.setAttribute("role", "alert");
    const heading = document.createElement("strong");
    heading.textContent = title;
    box.append(heading, next);
    document.getElementById("load-error").replaceChildren(box);
  }

  if (location.protocol === "file:") {
    return say("This page was opened as a file.", "Browsers run its program only from a web server: `node scripts/serve.mjs dist` or `python3 -m http.server -d dist 8080`, then http://localhost:8080/.");
  }
  if (!("noModule" in HTMLScriptElement.prototype)) return say("This browser is too old for the page.", "Use a current Chrome, Edge, Firefox or Safari.");
  // If a script did not arrive, or something else arrived in its place, the event goes to the element and does not bubble.
  addEventListener("error", ({ target }) => {
    if (hasStarted() || !(target instanceof HTMLScriptElement || target === window)) return;
    say("A part of this page's program did not arrive correctly.", "Reload the page; if that does not help, tell its owner.");
    // A wrong response must not come from the browser's cache again.
    for (const { name } of performance.getEntriesByType("resource")) fetch(name, { cache: "reload" }).catch(() => {});
  }, true);
})();
