// Sorting and filtering of the main tables. Without it the page shows every row in the official order.
"use strict";

function sortable(table) {
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  const official = [...body.rows];
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = header.textContent;
    header.replaceChildren(button);
    header.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const first = header.hasAttribute("data-falling") ? "descending" : "ascending";
      const second = first === "ascending" ? "descending" : "ascending";
      const next = header.getAttribute("aria-sort") === first ? second : first;
      headers.forEach((other) => other.setAttribute("aria-sort", "none"));
      header.setAttribute("aria-sort", next);
      const text = header.hasAttribute("data-text");
      const sign = next === "ascending" ? 1 : -1;
      const keyed = official.map((row, place) => {
        const key = row.cells[column].getAttribute("data-key");
        return { row, place, key: key === null ? null : text ? key : Number(key) };
      });
      keyed.sort((a, b) => {
        if (a.key === null || b.key === null) return (a.key === null) - (b.key === null) || a.place - b.place;
        const order = text ? a.key.localeCompare(b.key, "en", { numeric: true }) : a.key - b.key;
        return sign * order || a.place - b.place;
      });
      body.append(...keyed.map((item) => item.row));
    });
  });
}

function filterable(tools) {
  const table = tools.parentElement.querySelector("table[data-sortable]");
  const rows = [...table.tBodies[0].rows];
  const count = tools.querySelector("[data-count]");
  const text = tools.querySelector("[data-filter=text]");
  const complete = tools.querySelector("[data-filter=complete]");
  const stamped = tools.querySelector("[data-filter=stamped]");
  const apply = () => {
    const wanted = text.value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const fits =
        row.cells[0].dataset.key.toLowerCase().includes(wanted) &&
        (!complete.value || row.dataset.complete === complete.value) &&
        (!stamped.value || row.dataset.stamped === stamped.value);
      row.hidden = !fits;
      shown += fits;
    }
    count.textContent = `${shown} of ${rows.length} rows`;
  };
  for (const control of [text, complete, stamped]) control.addEventListener("input", apply);
  tools.hidden = false;
  apply(); // a browser may have kept what was typed
}

document.querySelectorAll("table[data-sortable]").forEach(sortable);
document.querySelectorAll(".tools").forEach(filterable);
