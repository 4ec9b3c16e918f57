// Search over titles and headings, and tables that sort by a click. The only script that a page may run: its hash is in
// the policy of the page. Text of the index reaches the page as text, never as markup.
"use strict";
const pages = JSON.parse(document.getElementById("index").textContent);
const root = document.body.dataset.root;
const NOTHING = "No page or heading has these words.";

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
  if (words.length && !hits.length) found.append(Object.assign(document.createElement("li"), { textContent: NOTHING }));
});

// A number, which a unit or an interval may follow: not a date, nor a name that begins with a digit.
const NUMBER = /^(?:[<>≤≥] )?([+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)(?=%|\s|$)/i;
const numberOf = (text) => parseFloat(NUMBER.exec(text)?.[1].replaceAll(",", ""));
const isMissing = (text) => text === "" || /^n\/a\b/.test(text);

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
      const keyed = rows.map((row) => [row.cells[column]?.textContent.trim() ?? "", row]);
      const known = keyed.filter(([text]) => !isMissing(text));
      const numeric = known.every(([text]) => !Number.isNaN(numberOf(text)));
      const order = numeric ? (a, b) => numberOf(a) - numberOf(b) : new Intl.Collator("en", { numeric: true }).compare;
      known.sort(([a], [b]) => sign * order(a, b));
      const sorted = next === "none" ? keyed : [...known, ...keyed.filter(([text]) => isMissing(text))];
      body.append(...sorted.map(([, row]) => row));
    });
  }
}
