"use strict";
// What every page of fl-sim's reports does: read its data, switch the theme, and give away tables as CSV.

function readJson(id) {
  const block = document.getElementById(id);
  return block ? JSON.parse(block.textContent) : null;
}

// A table as experiments/report/page.py writes it, as objects; "Infinity" stands for the number.
function readTable(id) {
  const table = readJson(id);
  if (!table) return [];
  const value = (cell) => (cell === "Infinity" ? Infinity : cell === "-Infinity" ? -Infinity : cell);
  return table.rows.map((row) => Object.fromEntries(table.columns.map((column, i) => [column, value(row[i])])));
}

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function csvField(value) {
  let text = value === null || value === undefined ? "" : String(value);
  // A spreadsheet would compute what begins like a formula.
  if (/^[=+\-@]/.test(text) && Number.isNaN(Number(text))) text = "'" + text;
  return /[",\n\r]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
}

function download(name, rows) {
  const text = rows.map((row) => row.map(csvField).join(",") + "\n").join("");
  const link = element("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: name + ".csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

for (const table of document.querySelectorAll("table[data-csv]")) {
  const cells = (row) => [...row.cells].map((cell) => cell.dataset.value ?? cell.textContent.trim());
  const button = element("button", { type: "button", className: "small" }, "CSV of this table");
  button.addEventListener("click", () => download(table.dataset.csv, [...table.rows].map(cells)));
  table.parentElement.tabIndex = 0;
  table.parentElement.setAttribute("role", "region");
  table.parentElement.setAttribute("aria-label", table.dataset.csv.replaceAll("-", " ") + ", table");
  table.parentElement.after(button);
}

// The theme: the system's until the reader chooses another one.
const themes = ["light dark", "light", "dark"];
const themeNames = { "light dark": "system", light: "light", dark: "dark" };
const themeButton = document.getElementById("theme");
const dark = matchMedia("(prefers-color-scheme: dark)");

function remembered(theme) {
  try {
    if (theme) localStorage.setItem("fl-sim-theme", theme);
    return localStorage.getItem("fl-sim-theme");
  } catch {
    return null; // Where a browser keeps nothing for files.
  }
}

function setTheme(theme) {
  document.documentElement.style.colorScheme = theme;
  themeButton.textContent = "Theme: " + themeNames[theme];
  document.dispatchEvent(new Event("theme"));
}

themeButton.hidden = false;
themeButton.addEventListener("click", () => {
  const next = themes[(themes.indexOf(document.documentElement.style.colorScheme) + 1) % themes.length];
  remembered(next);
  setTheme(next);
});
dark.addEventListener("change", () => document.dispatchEvent(new Event("theme")));
setTheme(themes.includes(remembered()) ? remembered() : themes[0]);
