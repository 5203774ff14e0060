// Small helpers: elements, formats, choices.

const SVG = "http://www.w3.org/2000/svg";

/** Element with attributes and children (texts or nodes); `on...` attributes are listeners. */
function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function svgElement(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function byId(id) {
  return document.getElementById(id);
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

/** Number with a few significant digits, for bounds and ticks. */
function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

/** Count with a letter for thousands and millions. */
function compact(value) {
  return new Intl.NumberFormat("en-US", {notation: "compact"}).format(value);
}

function bytes(value) {
  if (value >= 1e6) return `${(value / 1e6).toFixed(2)} MB`;
  return value >= 1e3 ? `${(value / 1e3).toFixed(1)} kB` : `${value} B`;
}

/** Fill a select with [value, text, disabled] and choose one. */
function offer(select, choices, chosen) {
  select.replaceChildren(...choices.map(([value, text, disabled]) => element("option", {value, disabled}, text)));
  select.value = chosen;
}

/** Draw into a container at its width, again whenever that changes; returns a function that draws at once. */
function responsive(container, draw) {
  let width = 0;
  const redraw = () => { if (width > 0) container.replaceChildren(draw(width)); };
  new ResizeObserver(() => {
    if (container.clientWidth === width) return;
    width = container.clientWidth;
    redraw();
  }).observe(container);
  return redraw;
}
