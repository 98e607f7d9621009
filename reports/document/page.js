"use strict";
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  if (body.rows.length < 3) continue;
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    if (!heading.textContent) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const direction = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      body.append(...[...body.rows].sort((a, b) => direction * compare(a.cells[column], b.cells[column])));
    });
  });
}
function compare(a, b) {
  if ("order" in a.dataset && "order" in b.dataset) {
    const [x, y] = [Number(a.dataset.order), Number(b.dataset.order)];
    return Number.isNaN(x) ? 1 : Number.isNaN(y) ? -1 : x - y;
  }
  return a.textContent.localeCompare(b.textContent, "en", { numeric: true });
}
