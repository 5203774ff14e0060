// Plots as SVG, drawn at the width that there is.

const MARGIN = {left: 52, right: 12, top: 10, bottom: 40};
const LABEL_HEIGHT = 15;

/** A few round numbers from low to high. */
function ticks(low, high, wanted) {
  const rough = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough);
  const found = [];
  for (let number = Math.ceil(low / step); number * step <= high + step * 1e-9; number += 1) found.push(number * step);
  return found;
}

/** Linear scale from [low, high] to [from, to]. */
function scale(low, high, from, to) {
  return (value) => from + ((value - low) / (high - low || 1)) * (to - from);
}

function frame(width, height, description) {
  return svgElement("svg", {viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": description});
}

function line(style, x1, y1, x2, y2) {
  return svgElement("line", {class: style, x1, y1, x2, y2});
}

/** Rectangle between two corners. */
function box(style, left, top, right, bottom) {
  return svgElement("rect", {class: style, x: left, y: top, width: Math.max(right - left, 0), height: bottom - top});
}

function label(x, y, anchor, text, style = null) {
  return svgElement("text", {class: style, x, y, "text-anchor": anchor}, text);
}

/** Ticks, horizontal lines and the names of both axes; `area` is {width, height, xLabel, yLabel, xText, yText}. */
function axes(svg, x, y, xTicks, yTicks, area) {
  const right = area.width - MARGIN.right;
  const bottom = area.height - MARGIN.bottom;
  const middle = (MARGIN.top + bottom) / 2;
  for (const value of yTicks) {
    svg.append(line("axis", MARGIN.left, y(value), right, y(value)),
      label(MARGIN.left - 6, y(value) + 4, "end", area.yText(value), "tick"));
  }
  for (const value of xTicks) svg.append(label(x(value), bottom + 16, "middle", area.xText(value), "tick"));
  const name = label(12, middle, "middle", area.yLabel);
  name.setAttribute("transform", `rotate(-90 12 ${middle})`);
  svg.append(label((MARGIN.left + right) / 2, area.height - 6, "middle", area.xLabel), name);
}

/**
 * One labelled point for each run.
 * @param points {name, x, y}
 */
function scatter(points, width, {xLabel, yLabel, xText, yText}) {
  const height = 300;
  const [xs, ys] = [points.map((point) => point.x), points.map((point) => point.y)];
  const high = Math.max(...xs) || 1;
  const room = (Math.max(...ys) - Math.min(...ys)) * 0.1 || Math.abs(ys[0]) * 0.01 || 1;
  const [low, top] = [Math.min(...ys) - room, Math.max(...ys) + room];
  const x = scale(0, high * 1.05, MARGIN.left + 6, width - MARGIN.right);
  const y = scale(low, top, height - MARGIN.bottom, MARGIN.top);
  const told = (point) => `${point.name}: ${xText(point.x)}, ${yText(point.y)}`;
  const svg = frame(width, height, `${yLabel} against ${xLabel}. ${points.map(told).join("; ")}`);
  axes(svg, x, y, ticks(0, high, width < 400 ? 3 : 5), ticks(low, top, 5),
    {width, height, xLabel, yLabel, xText, yText: short});
  for (const {point, at} of labelPlaces(points, y)) {
    const [px, py] = [x(point.x), y(point.y)];
    const side = px > width * 0.65 ? -1 : 1;
    svg.append(line("leader", px, py, px + 10 * side, at),
      svgElement("circle", {class: "point", cx: px, cy: py, r: 5}, svgElement("title", {}, told(point))),
      label(px + 13 * side, at + 4, side < 0 ? "end" : "start", point.name));
  }
  return svg;
}

/** Heights of labels, far enough from each other to be read. */
function labelPlaces(points, y) {
  let last = -Infinity;
  return [...points].sort((first, second) => y(first.y) - y(second.y)).map((point) => {
    last = Math.max(y(point.y), last + LABEL_HEIGHT);
    return {point, at: last};
  });
}

/** SQNR of all layers by itself and with everything quantized; `choose(index)` is called on a click. */
function layerCurves(layers, chosen, width, choose) {
  const height = 240;
  const bottom = height - MARGIN.bottom;
  const values = layers.flatMap((layer) => [layer.teacher_forced, layer.cumulative]).filter((value) => value !== null);
  const [low, high] = values.length ? [Math.min(...values, 0), Math.max(...values)] : [0, 1];
  const x = scale(0, Math.max(layers.length - 1, 1), MARGIN.left + 4, width - MARGIN.right);
  const y = scale(low, high, bottom, MARGIN.top);
  const svg = frame(width, height, `SQNR of ${layers.length} layers from ${short(low)} to ${short(high)} dB`);
  svg.classList.add("clickable");
  axes(svg, x, y, ticks(0, layers.length - 1, 6).filter(Number.isInteger), ticks(low, high, 5),
    {width, height, xLabel: "layer", yLabel: "SQNR (dB)", xText: String, yText: short});
  svg.append(line("chosen", x(chosen), MARGIN.top, x(chosen), bottom));
  for (const [key, style] of [["teacher_forced", "alone"], ["cumulative", "all"]]) {
    const points = layers.flatMap((layer, index) => (layer[key] === null ? [] : [`${x(index)},${y(layer[key])}`]));
    svg.append(svgElement("polyline", {class: style, points: points.join(" ")}));
  }
  svg.addEventListener("click", (event) => {
    const part = (event.clientX - svg.getBoundingClientRect().left - x(0)) / (x(1) - x(0));
    choose(clamp(Math.round(part), 0, layers.length - 1));
  });
  return svg;
}

/** Counts of a tensor's values, and its bounds; what lies outside of them is shaded. */
function histogram(tensor, width) {
  const height = 170;
  const {minimum, maximum, lower, upper, counts} = tensor;
  const [low, high, most] = [Math.min(minimum, lower), Math.max(maximum, upper), Math.max(...counts, 1)];
  const x = scale(low, high, MARGIN.left, width - MARGIN.right);
  const y = scale(0, most, height - MARGIN.bottom, MARGIN.top);
  const [from, to, first, last] = [minimum, maximum, lower, upper].map(short);
  const svg = frame(width, height, `Histogram from ${from} to ${to}, bounds ${first} and ${last}`);
  const edge = (index) => x(minimum + (index * (maximum - minimum)) / counts.length);
  svg.append(
    ...counts.map((count, index) => box("bar", edge(index), y(count), edge(index + 1) - 0.5, y(0))),
    box("outside", x(low), MARGIN.top, x(lower), y(0)),
    box("outside", x(upper), MARGIN.top, x(high), y(0)),
    ...[lower, upper].map((bound) => line("bound", x(bound), MARGIN.top, x(bound), y(0))));
  axes(svg, x, y, ticks(low, high, 4), ticks(0, most, 3),
    {width, height, xLabel: "value", yLabel: "count", xText: short, yText: compact});
  return svg;
}

/** A tensor's values as a thin line, the part between its bounds as a thick one. */
function strip({minimum, maximum, lower, upper}) {
  const x = scale(Math.min(minimum, lower), Math.max(maximum, upper), 2, 98);
  return svgElement("svg", {class: "strip", viewBox: "0 0 100 16", preserveAspectRatio: "none", "aria-hidden": "true"},
    line("values", x(minimum), 8, x(maximum), 8), line("between", x(lower), 8, x(upper), 8));
}
