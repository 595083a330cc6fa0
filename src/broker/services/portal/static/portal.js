// Everything here only adds to pages that work without it.
"use strict";
(() => {
  const pad = (number) => String(number).padStart(2, "0");

  function left(seconds) {
    if (seconds <= 0) return "now";
    if (seconds < 60) return `in ${seconds} s`;
    if (seconds < 3600) return `in ${Math.floor(seconds / 60)}:${pad(seconds % 60)} min`;
    return `in ${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  }

  // Next retries count down.
  function count() {
    for (const element of document.querySelectorAll("[data-due]")) {
      element.textContent = left(Math.ceil((Date.parse(element.dataset.due) - Date.now()) / 1000));
    }
  }

  // Times are UTC on the page; pointing at one tells it in the reader's own zone.
  function local(root) {
    for (const element of root.querySelectorAll("time[datetime]:not([title])")) {
      element.title = new Date(element.dateTime).toLocaleString();
    }
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const text = document.getElementById(button.dataset.copy).textContent;
    navigator.clipboard.writeText(text).then(() => { button.textContent = "Copied"; });
  });

  // Of a form with many boxes, one ticks all.
  document.addEventListener("change", (event) => {
    const all = event.target.closest("[data-all]");
    if (!all) return;
    for (const box of document.querySelectorAll(`input[name="${all.dataset.all}"]`)) box.checked = all.checked;
  });

  // What cannot be had stays as it was, with a word about it until it comes again.
  const AWAY = "Cannot be reached just now; trying again.";
  const GONE = "This is not there for you any more. Load the page anew.";
  const AGAIN_MS = 2000;
  const tell = (text) => { document.getElementById("away").textContent = text; };

  const passes = (status) => !status || status === 429 || status >= 500;

  function failed(source, status) {
    tell(passes(status) ? AWAY : GONE);
    if (!passes(status)) return;
    // What follows by itself does so again; a stream that never began, and a form, are asked for once more.
    const again = source.hasAttribute("hx-sse:connect") ? "again" : source.matches("form") && "submit";
    clearTimeout(source.again);
    if (again) source.again = setTimeout(() => htmx.trigger(source, again), AGAIN_MS);
  }

  // What somebody waits for says so; what follows by itself does not.
  document.addEventListener("htmx:before:request", ({ detail: { ctx } }) => {
    const form = ctx.sourceElement;
    if (form.matches("form")) document.querySelector(form.getAttribute("hx-target")).setAttribute("aria-busy", "true");
  });

  document.addEventListener("htmx:finally:request", ({ detail: { ctx } }) => {
    for (const part of document.querySelectorAll("div[aria-busy]")) part.removeAttribute("aria-busy");
    const status = ctx.response?.status;
    // Overtaken by another request: that one will say.
    if (!status && ctx.request?.signal?.aborted && ctx.request.signal.reason !== "timeout") return;
    clearTimeout(ctx.sourceElement.again);
    // A filter that is wrong (400) is said in the list's place.
    if (status <= 400) tell("");
    else failed(ctx.sourceElement, status);
  });
  document.addEventListener("htmx:before:history:update", (event) => {
    if (event.detail.response?.status > 400) event.preventDefault();
  });
  document.addEventListener("htmx:sse:error", ({ detail }) => tell(passes(detail.status) ? AWAY : GONE));
  document.addEventListener("htmx:sse:after:connection", () => tell(""));
  document.addEventListener("htmx:sse:after:message", ({ detail }) => { if (!detail.message.event) tell(""); });
  document.addEventListener("away", ({ detail }) => tell(`${detail.data} Trying again.`));

  // The page of what is away stands still, however long somebody reads it, and gives way once the other is there.
  const away = document.querySelector("[data-again]");
  async function look() {
    const answer = await fetch(location.href, { method: "HEAD" }).catch(() => null);
    if (answer && !passes(answer.status)) location.reload();
    else setTimeout(look, away.dataset.again * 1000);
  }
  if (away) setTimeout(look, away.dataset.again * 1000);

  setInterval(count, 1000);
  count();
  local(document);
  document.addEventListener("htmx:after:swap", () => { count(); local(document); });
})();
