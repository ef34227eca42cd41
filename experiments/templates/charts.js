// Charts are drawn by Vega, many of them when they come into sight. A point that stands for an image shows it, and enlarges it on click.

const points = readTable("points");
const views = [];
const tip = element("div", { id: "tip", hidden: true, "aria-hidden": "true" });
document.body.append(tip);

function colours(view) {
  const style = getComputedStyle(document.body);
  const probe = element("span", { style: "color: var(--line)" });
  document.body.append(probe);
  const faint = getComputedStyle(probe).color;
  probe.remove();
  return view.signal("ink", style.color).signal("faint", faint);
}

function tell(handler, event, item, value) {
  tip.hidden = !value;
  if (!value) return;
  const told = Object.entries(value).filter(([, text]) => text !== "undefined" && text !== "null" && text !== "");
  const row = images[item.datum.index];
  tip.replaceChildren(
    ...(row ? [element("div", { className: "pictures" }, ...figures(row))] : []),
    element("dl", {}, ...told.flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, text)])));
  tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)) + "px";
  const below = event.clientY + 14;
  tip.style.top = (below + tip.offsetHeight < innerHeight ? below : Math.max(4, event.clientY - tip.offsetHeight - 14)) + "px";
}

function follow(event, item) {
  if (!item || !item.datum) return;
  if (item.datum.report) location.href = item.datum.report;
  if (!images[item.datum.index]) return;
  const at = () => chosen.findIndex((row) => row.index === item.datum.index);
  if (at() < 0) {
    filter.reset();
    again();
  }
  enlarge(at());
}

function draw(figure) {
  const block = figure.querySelector("script");
  if (figure.dataset.drawn || !block) return;
  figure.dataset.drawn = "yes";
  const spec = JSON.parse(block.textContent);
  if (spec.data.name) spec.datasets = { [spec.data.name]: points };
  const renderer = points.length > 1500 ? "canvas" : "svg";
  vegaEmbed(figure.querySelector(".plot"), spec, { renderer, actions: false, tooltip: tell }).then(({ view }) => {
    view.addEventListener("click", follow);
    colours(view).runAsync();
    views.push(view);
  });
}

if (window.vegaEmbed) {
  const figures = document.querySelectorAll("figure.chart");
  const sight = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => draw(entry.target)), { rootMargin: "400px" });
  const few = figures.length <= 12;  // pictures of the page, and previews, have them too
  figures.forEach((figure, place) => few ? setTimeout(() => draw(figure), 50 * place) : sight.observe(figure));
  document.addEventListener("theme", () => views.forEach((view) => colours(view).runAsync()));
  addEventListener("beforeprint", () => { figures.forEach(draw); views.forEach((view) => view.signal("ink", "#222").signal("faint", "#bbb").run()); });
  addEventListener("afterprint", () => views.forEach((view) => colours(view).run()));
}
