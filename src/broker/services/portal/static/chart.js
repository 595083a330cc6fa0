// Draws the table that stands beside it: hours, and a column for each line.
"use strict";
(() => {
  const box = document.querySelector("[data-chart]");
  if (!box) return;
  const table = document.getElementById(box.dataset.chart);
  const names = [...table.querySelectorAll("thead th")].slice(1).map((cell) => cell.textContent);
  const rows = [...table.querySelectorAll("tbody tr")];
  const data = [rows.map((row) => Date.parse(row.dataset.hour) / 1000)];
  names.forEach((_, column) => {
    data.push(rows.map((row) => Number(row.children[column + 1].dataset.value)));
  });
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axis = () => ({ stroke: colour("--pico-color"), grid: { stroke: colour("--pico-muted-border-color"), width: 1 } });
  const zone = (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC");
  const named = (seconds) => {
    const iso = new Date(seconds * 1000).toISOString();
    return iso.slice(11, 13) === "00" ? iso.slice(5, 10) : iso.slice(11, 16);
  };
  const draw = () => new uPlot(
    {
      width: box.clientWidth,
      height: 220,
      tzDate: zone,
      scales: { y: { range: (_, least, most) => [0, Math.max(1, most * 1.05)] } },
      axes: [{ ...axis(), values: (_, ticks) => ticks.map(named) }, { ...axis(), size: 60, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 1e6] }],
      series: [{ value: "{YYYY}-{MM}-{DD} {HH}:00" }].concat(
        names.map((name) => ({
          label: name,
          stroke: colour(`--line-${name.toLowerCase()}`),
          width: 2,
          points: { show: false },
        })),
      ),
    },
    data,
    box,
  );
  let chart = draw();
  addEventListener("resize", () => chart.setSize({ width: box.clientWidth, height: 220 }));
  // Colours are read when it is drawn.
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { chart.destroy(); chart = draw(); });
})();
