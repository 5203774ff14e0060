// Curves of the trainings: one line for each, of a loss and of a validation metric.

const COLOURS = 6;

function startTrainings(data) {
  const {trainings} = data;
  if (trainings.length === 0) {
    byId("no-trainings").textContent = "No training of these runs is there. Name them by --trainings experiments/NAME.";
    byId("no-trainings").hidden = false;
    byId("trainings").hidden = true;
    return;
  }
  byId("training-key").append(...trainings.map(({name}, index) => element("li", {class: styleOf(index)}, name)));
  for (const [kind, figure] of [["losses", "loss"], ["metrics", "validation"]]) {
    const names = [...new Set(trainings.flatMap((training) => Object.keys(training[kind])))];
    let chosen = names[0];
    const redraw = responsive(byId(`${figure}-plot`), (width) => {
      if (names.length === 0) return element("p", {class: "missing"}, `No training recorded a ${figure}.`);
      const series = trainings.flatMap((training, index) => (
        training[kind][chosen] ? [{name: training.name, points: training[kind][chosen], style: styleOf(index)}] : []));
      return trainingCurves(series, width, chosen, kind === "losses");
    });
    offer(byId(`${figure}-choice`), names.map((name) => [name, name]), chosen);
    byId(`${figure}-choice`).addEventListener("change", (event) => {
      chosen = event.target.value;
      redraw();
    });
  }
}

/** Colour, and a dash pattern for each time that the colours are used up. */
function styleOf(index) {
  return `series c${index % COLOURS} d${Math.floor(index / COLOURS) % 3}`;
}

/**
 * Values over iterations; on a logarithmic axis if that is wanted and all are positive.
 * @param series {name, points: [[iteration, value]], style}
 */
function trainingCurves(series, width, yLabel, logarithmic) {
  const height = 280;
  const values = series.flatMap(({points}) => points.map(([, value]) => value));
  const curved = logarithmic && Math.min(...values) > 0;
  const axis = curved ? Math.log10 : (value) => value;
  const [low, high] = spread(values.map(axis));
  const last = Math.max(...series.flatMap(({points}) => points.map(([iteration]) => iteration)));
  const x = scale(0, last, MARGIN.left + 4, width - MARGIN.right);
  const place = scale(low, high, height - MARGIN.bottom, MARGIN.top);
  const y = (value) => place(axis(value));
  const told = ({name, points}) => `${name}: ${short(points[0][1])} to ${short(points.at(-1)[1])}`;
  const svg = frame(width, height, `${yLabel} over ${last} iterations. ${series.map(told).join("; ")}`);
  axes(svg, x, y, ticks(0, last, width < 400 ? 3 : 5).filter(Number.isInteger),
    curved ? powers(10 ** low, 10 ** high) : ticks(low, high, 5),
    {width, height, xLabel: "iteration", yLabel, xText: compact, yText: short});
  for (const {name, points, style} of series) {
    const title = svgElement("title", {}, told({name, points}));
    const corners = points.map(([iteration, value]) => `${x(iteration)},${y(value)}`).join(" ");
    svg.append(points.length === 1
      ? svgElement("circle", {class: style, cx: x(points[0][0]), cy: y(points[0][1]), r: 3}, title)
      : svgElement("polyline", {class: style, points: corners}, title));
  }
  return svg;
}

/** Lowest and highest value with a little room. */
function spread(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = (high - low) * 0.05 || Math.abs(low) * 0.05 || 1;
  return [low - room, high + room];
}

/** Numbers 1, 2 and 5 times a power of ten from low to high; powers alone if that is enough, evenly spaced else. */
function powers(low, high) {
  const found = (factors) => {
    const numbers = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
      numbers.push(...factors.map((factor) => factor * 10 ** power).filter((each) => each >= low && each <= high));
    }
    return numbers;
  };
  const choices = [[1], [1, 2, 5]].map(found);
  return choices.find((numbers) => numbers.length > 2) ?? ticks(low, high, 5).filter((each) => each > 0);
}
