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

  setInterval(count, 1000);
  count();
  local(document);
  document.addEventListener("htmx:after:swap", () => { count(); local(document); });
})();
