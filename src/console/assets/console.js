"use strict";
// What pages do beyond HTML: follow progress, estimate, filter, ask before what cannot be undone.
(() => {
  const $$ = (selector, from = document) => from.querySelectorAll(selector);

  for (const panel of $$("[data-events]")) {
    const events = new EventSource(panel.dataset.events);
    events.addEventListener("news", (event) => { panel.innerHTML = event.data; localise(panel); });
    events.addEventListener("end", () => { events.close(); location.reload(); });
  }

  document.addEventListener("submit", (event) => {
    const asker = event.submitter?.closest("[data-ask]") ?? event.target.closest("[data-ask]");
    if (asker && !confirm(asker.dataset.ask)) event.preventDefault();
  });

  for (const search of $$("input[data-filters]")) {
    const tiles = $$(search.dataset.filters);
    const none = document.getElementById("nothing-found");
    const filter = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const tile of tiles) {
        const text = tile.textContent.toLowerCase();
        tile.hidden = !words.every((word) => text.includes(word));
        shown += tile.hidden ? 0 : 1;
      }
      if (none) none.hidden = shown > 0;
    };
    search.addEventListener("input", filter);
    filter();
  }

  for (const picker of $$("input[data-picks]")) {
    const field = document.getElementById(picker.dataset.picks);
    picker.hidden = false;
    if (/^\d{4}-\d\d-\d\d/.test(field.value)) picker.value = field.value.slice(0, 10);
    picker.addEventListener("change", () => {
      field.value = picker.value;
      field.dispatchEvent(new Event("change", { bubbles: true }));
    });
  }

  for (const form of $$("form[data-estimates]")) {
    const shown = document.getElementById("estimate");
    let timer, running;
    const estimate = async () => {
      running?.abort();
      running = new AbortController();
      try {
        const body = new URLSearchParams(new FormData(form));
        const answer = await fetch(form.dataset.estimates, { method: "POST", body, signal: running.signal });
        shown.innerHTML = answer.ok ? await answer.text() : "";
      } catch (error) {
        if (error.name !== "AbortError") shown.textContent = "";
      }
    };
    const soon = () => { clearTimeout(timer); timer = setTimeout(estimate, 400); };
    form.addEventListener("input", soon);
    form.addEventListener("change", soon);
    estimate();
  }

  // Instants are written in UTC; whoever reads them sees their own clock.
  function localise(from) {
    for (const time of $$("time[datetime]", from)) {
      const at = new Date(time.dateTime);
      if (Number.isNaN(at.valueOf())) continue;
      time.title = time.textContent;
      time.textContent = at.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
    }
  }
  localise(document);
})();
