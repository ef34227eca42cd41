// Originals and reconstructions: chosen, sorted, shown page by page, enlarged. Pictures are decoded when they are shown.

const gallery = readJson("gallery");
const images = readTable("leakage").map((row, index) => ({ ...row, index }));
const filter = document.getElementById("filter");
let chosen = images;
let page = 0;

const known = (value) => value !== null && value !== undefined;
const pictureUri = (number) => "data:image/webp;base64," + gallery.pictures[number];

function figureText(value, decimals) {
  if (!known(value)) return "–";
  if (decimals === null || typeof value !== "number") return String(value);
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  return decimals < 0 ? value.toExponential(-decimals) : value.toFixed(decimals);
}

const decibels = (value) => (known(value) ? figureText(value, 1) + " dB" : "no result");
const where = (row) => `round ${row.round}, ${row.name}`;

function picture(row, column, what, absent) {
  if (!known(row[column])) return element("div", { className: "missing" }, absent);
  return element("img", { src: pictureUri(row[column]), alt: `${what}, ${where(row)}` });
}

// What the client drew and what was found of it: the timestep and the label; green where they agree.
function drawn(row, ending) {
  const parts = [];
  const add = (text, column) => {
    const value = row[column + ending];
    const agrees = known(row[column]) && row[column] === value;
    parts.push(element("span", { className: !ending ? "" : agrees ? "good" : "bad" }, `${text} ${figureText(value, 0)}`));
  };
  if (gallery.timesteps && row.image !== "user") add("t =", "timestep");
  if (gallery.labels) add("label", "label");
  return parts.flatMap((part, i) => (i ? [", ", part] : [part]));
}

function figures(row) {
  const original = element("figcaption", {}, element("b", {}, row.image === "user" ? "mean of originals" : "original"),
    element("br"), ...drawn(row, ""));
  if (row.blank) original.append(element("br"), "without content: " + gallery.no_evidence);
  const found = element("figcaption", {}, element("b", {}, decibels(row.psnr)), element("br"));
  if (row.status === gallery.ok) found.append(...drawn(row, "_recovered"));
  const shown = [
    element("figure", {}, picture(row, "original", "original", "not loaded"), original),
    element("figure", {}, picture(row, "found", `reconstruction by ${row.attack}`, row.status === gallery.ok ? "not kept" : row.status), found),
  ];
  if (known(row.nearest)) {
    const caption = element("figcaption", {}, element("b", {}, decibels(row.nearest_psnr)), element("br"), "nearest public");
    shown.push(element("figure", {}, picture(row, "nearest", "nearest public image", ""), caption));
  }
  return shown;
}

function card(row, place) {
  const button = element("button", { type: "button", "aria-label": `Enlarge ${where(row)}, ${row.attack}` });
  button.addEventListener("click", () => enlarge(place));
  return element("article", { className: "card" },
    element("header", {}, `Round ${row.round} · ${row.name}`, element("span", {}, gallery.attacks > 1 ? row.attack : gallery.size)),
    element("div", { className: "pictures" }, ...figures(row)), button);
}

const orders = {
  table: (first, second) => first.index - second.index,
  best: (first, second) => (second.psnr ?? -1) - (first.psnr ?? -1) || first.index - second.index,
  worst: (first, second) => (first.psnr ?? 1e9) - (second.psnr ?? 1e9) || first.index - second.index,
  gain: (first, second) => gain(second) - gain(first) || first.index - second.index,
};
const gain = (row) => (known(row.psnr) && known(row.nearest_psnr) ? Math.min(row.psnr, 999) - row.nearest_psnr : -999);

function choose() {
  const wanted = new FormData(filter);
  const is = (name, row) => !wanted.get(name) || String(row[name]) === wanted.get(name);
  const from = wanted.get("from") === "" ? -Infinity : Number(wanted.get("from"));
  const to = wanted.get("to") === "" ? Infinity : Number(wanted.get("to"));
  const everyLevel = from === -Infinity && to === Infinity;
  chosen = images
    .filter((row) => ["attack", "client", "round", "status", "observer"].every((name) => is(name, row)))
    .filter((row) => everyLevel || (known(row.psnr) && row.psnr >= from && row.psnr <= to))
    .sort(orders[wanted.get("sort")]);
}

function show() {
  const wanted = new FormData(filter);
  const size = Number(wanted.get("size"));
  const pages = Math.max(1, Math.ceil(chosen.length / size));
  page = Math.min(Math.max(page, 0), pages - 1);
  const shown = chosen.slice(page * size, (page + 1) * size);
  const asTable = wanted.get("view") === "table";
  document.getElementById("cards").hidden = asTable;
  document.getElementById("listed").hidden = !asTable;
  if (asTable) list(shown);
  else document.getElementById("cards").replaceChildren(...shown.map((row, i) => card(row, page * size + i)));
  document.getElementById("count").textContent = chosen.length
    ? `${page * size + 1} to ${page * size + shown.length} of ${chosen.length} reconstructions` +
      (chosen.length < images.length ? ` (${images.length} in all)` : "")
    : "No reconstruction is like that.";
  document.getElementById("previous").disabled = page === 0;
  document.getElementById("next").disabled = page === pages - 1;
  document.getElementById("page").textContent = `page ${page + 1} of ${pages}`;
}

function list(shown) {
  const cell = (row, { name, decimals }) =>
    element("td", { className: decimals === null ? "" : "n", title: decimals === null ? (row[name] ?? "") : "" }, figureText(row[name], decimals));
  document.querySelector("#listed tbody").replaceChildren(
    ...shown.map((row) => element("tr", {}, ...gallery.headings.map((heading) => cell(row, heading)))));
}

// The chosen rows with every column of the leakage table.
function downloadChosen() {
  const inner = ["index", "original", "found", "nearest", "blank", "name"];
  const columns = Object.keys(images[0]).filter((name) => !inner.includes(name));
  const text = (value) => (value === Infinity ? "inf" : value);
  download("leakage", [columns, ...chosen.map((row) => columns.map((name) => text(row[name])))]);
}

const dialog = document.getElementById("enlarged");
let place = 0;

function enlarge(at) {
  place = Math.min(Math.max(at, 0), chosen.length - 1);
  const row = chosen[place];
  document.getElementById("enlarged-name").textContent = `Round ${row.round} · ${row.name} · ${row.attack}`;
  const difference = element("canvas", { role: "img", "aria-label": "difference of original and reconstruction, black where equal" });
  const factor = Number(document.getElementById("factor").value);
  const last = element("figure", {}, known(row.original) && known(row.found) ? difference : element("div", { className: "missing" }, "no difference"),
    element("figcaption", {}, element("b", {}, "difference"), element("br"), `times ${factor}, black where equal`));
  document.getElementById("large").replaceChildren(...figures(row), last);
  if (known(row.original) && known(row.found)) drawDifference(difference, row, factor);
  document.getElementById("told").replaceChildren(...gallery.headings.flatMap(({ name, label, decimals }) =>
    known(row[name]) ? [element("div", {}, element("dt", {}, label), element("dd", {}, figureText(row[name], decimals)))] : []));
  document.getElementById("before").disabled = place === 0;
  document.getElementById("after").disabled = place === chosen.length - 1;
  if (!dialog.open) dialog.showModal();
}

async function drawDifference(canvas, row, factor) {
  const pixels = async (number) => {
    const image = element("img", { src: pictureUri(number) });
    await image.decode();
    const drawing = element("canvas", { width: image.width, height: image.height }).getContext("2d", { willReadFrequently: true });
    drawing.drawImage(image, 0, 0);
    return drawing.getImageData(0, 0, image.width, image.height);
  };
  const [first, second] = await Promise.all([pixels(row.original), pixels(row.found)]);
  const difference = new ImageData(first.width, first.height);
  first.data.forEach((value, i) => {
    difference.data[i] = i % 4 === 3 ? 255 : factor * Math.abs(value - second.data[i]);
  });
  canvas.width = first.width;
  canvas.height = first.height;
  canvas.getContext("2d").putImageData(difference, 0, 0);
}

// Arrows walk from card to card; up and down by rows of the grid.
function walk(event) {
  const buttons = [...document.querySelectorAll(".card > button")];
  const at = buttons.indexOf(document.activeElement);
  const top = (button) => button.parentElement.offsetTop;
  const perRow = Math.max(1, buttons.filter((button) => top(button) === top(buttons[0])).length);
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -perRow, ArrowDown: perRow }[event.key];
  if (at < 0 || !step || !buttons[at + step]) return;
  event.preventDefault();
  buttons[at + step].focus();
}

function again() {
  page = 0;
  choose();
  show();
}

function showOnly(name, value) {
  filter.reset();
  filter.elements[name].value = value;
  again();
  filter.scrollIntoView();
}

if (filter) {
  const offer = (name, label = String) => {
    const values = [...new Set(images.map((row) => row[name]))].filter(known);
    if (typeof values[0] === "number") values.sort((first, second) => first - second);
    filter.elements[name].append(...values.map((value) => element("option", { value: String(value) }, label(value))));
    filter.elements[name].closest("label").hidden = values.length < 2;
  };
  const short = (text) => (text.length > 60 ? text.slice(0, 59) + "…" : text);
  ["attack", "round", "observer"].forEach((name) => offer(name));
  offer("status", short);
  offer("client", (client) => (client < 0 ? "sum of clients" : `client ${client}`));
  filter.addEventListener("input", again);
  filter.addEventListener("reset", () => setTimeout(again));
  filter.addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("previous").addEventListener("click", () => { page -= 1; show(); });
  document.getElementById("next").addEventListener("click", () => { page += 1; show(); });
  document.getElementById("download").addEventListener("click", downloadChosen);
  document.getElementById("cards").addEventListener("keydown", walk);
  document.getElementById("before").addEventListener("click", () => enlarge(place - 1));
  document.getElementById("after").addEventListener("click", () => enlarge(place + 1));
  document.getElementById("factor").addEventListener("input", () => enlarge(place));
  document.getElementById("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", (event) => {
    if (event.target.tagName === "SELECT") return;
    if (event.key === "ArrowLeft") enlarge(place - 1);
    if (event.key === "ArrowRight") enlarge(place + 1);
  });
  document.querySelector("#listed thead tr").append(...gallery.headings.map(({ label, decimals }) =>
    element("th", { className: decimals === null ? "" : "n", scope: "col" }, label)));
  for (const cell of document.querySelectorAll("td[data-client]")) {
    const button = element("button", { type: "button", className: "small" }, "show");
    button.setAttribute("aria-label", `Show client ${cell.dataset.client}`);
    button.addEventListener("click", () => showOnly("client", cell.dataset.client));
    cell.append(button);
  }
  choose();
  show();
}
