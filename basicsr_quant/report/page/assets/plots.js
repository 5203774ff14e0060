// The two plots of all runs.

function startPlots(data) {
  const choice = {dataset: data.datasets[0]?.name, metric: Object.keys(data.metrics)[0]};
  const value = (run) => run.metrics[choice.dataset]?.[choice.metric];

  const plot = (container, key, xLabel, xText, reason) => responsive(container, (width) => {
    const points = data.runs.filter((run) => typeof run[key] === "number" && typeof value(run) === "number")
      .map((run) => ({name: run.name, x: run[key], y: value(run)}));
    if (points.length === 0) return element("p", {class: "missing"}, reason);
    const decimals = data.metrics[choice.metric].decimals;
    return scatter(points, width, {xLabel, yLabel: choice.metric, xText, yText: (number) => number.toFixed(decimals)});
  });
  const redraw = [
    plot(byId("size-plot"), "bytes", "bytes of parameters, counted", bytes, "No run has both a size and a quality."),
    plot(byId("time-plot"), "seconds", "seconds per image of test.py", (number) => `${short(number)} s`,
      "No run has both a time and a quality."),
  ];
  offer(byId("plot-dataset"), data.datasets.map(({name}) => [name, name]), choice.dataset);
  offer(byId("plot-metric"), Object.keys(data.metrics).map((name) => [name, name]), choice.metric);
  for (const key of ["dataset", "metric"]) {
    byId(`plot-${key}`).addEventListener("change", (event) => {
      choice[key] = event.target.value;
      redraw.forEach((draw) => draw());
    });
  }
}
