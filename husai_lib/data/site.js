// Search over titles and headings, and tables that sort by a click. The only script that a page may run: its hash is in
// the policy of the page. Text of the index reaches the page as text, never as markup.
"use strict";
const pages = JSON.parse(document.getElementById("index").textContent);
const root = document.body.dataset.root;

const box = document.getElementById("search");
const input = box.querySelector("input");
const found = box.querySelector("ul");
box.hidden = false;
input.addEventListener("input", () => {
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  const hits = [];
  for (const [path, title, run, headings] of words.length ? pages : []) {
    for (const [anchor, heading] of [["", ""], ...headings]) {
      const text = [title, heading, run].filter(Boolean).join(" · ");
      if (words.every((word) => text.toLowerCase().includes(word))) hits.push([path, anchor, text]);
    }
  }
  found.replaceChildren(...hits.slice(0, 20).map(([path, anchor, text]) => {
    const link = document.createElement("a");
    link.href = root + path + (anchor && "#" + anchor);
    link.textContent = text;
    const item = document.createElement("li");
    item.append(link);
    return item;
  }));
  if (words.length && !hits.length) found.textContent = "No page or heading has these words.";
});

const valueOf = (row, column) => {
  const text = row.cells[column]?.textContent.trim() ?? "";
  const number = /^[+−-]?[\d.,]+/.exec(text);
  return number ? parseFloat(number[0].replaceAll(",", "").replace("−", "-")) : text;
};
const isMissing = (value) => value === "" || value === "n/a" || Number.isNaN(value);
const compare = (a, b) =>
  typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));

for (const table of document.querySelectorAll("main table")) {
  const body = table.tBodies[0];
  const rows = body ? [...body.rows] : [];
  const heads = [...(table.tHead?.rows[0]?.cells ?? [])];
  for (const [column, head] of rows.length > 1 ? heads.entries() : []) {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "Sort by this column";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const next = { ascending: "descending", descending: "none" }[head.getAttribute("aria-sort")] ?? "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      if (next !== "none") head.setAttribute("aria-sort", next);
      const sign = next === "descending" ? -1 : 1;
      const keyed = rows.map((row) => [valueOf(row, column), row]);
      const known = keyed.filter(([value]) => !isMissing(value)).sort(([a], [b]) => sign * compare(a, b));
      const sorted = next === "none" ? keyed : [...known, ...keyed.filter(([value]) => isMissing(value))];
      body.append(...sorted.map(([, row]) => row));
    });
  }
}
