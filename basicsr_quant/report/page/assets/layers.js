// What analyse found: SQNR of all layers, histograms of one, bounds of all.

function startLayers(data) {
  const runs = data.runs.filter((run) => run.analysis);
  if (runs.length === 0) {
    byId("no-layers").textContent = "No run was analysed. Do it by: python -m basicsr_quant analyse -opt OPTIONS, " +
      "where OPTIONS is the option file in the folder of a quantized run.";
    byId("no-layers").hidden = false;
    byId("layers").hidden = true;
    return;
  }
  let run = runs.find((each) => each.name === data.best) ?? runs[0];
  let chosen = 0;
  const decibels = (value) => (value === null ? "no error" : `${value.toFixed(1)} dB`);
  const curves = responsive(byId("sqnr-plot"), (width) => layerCurves(run.analysis.layers, chosen, width, choose));

  function choose(index) {
    chosen = index;
    const layer = run.analysis.layers[index];
    byId("layer").value = index;
    byId("layer-position").value = index;
    byId("layer-position").setAttribute("aria-valuetext", layer.name);
    byId("layer-heading").textContent = `${layer.name}: ${decibels(layer.teacher_forced)} by itself, ` +
      `${decibels(layer.cumulative)} with everything quantized`;
    byId("histograms").replaceChildren(...layer.tensors.map((tensor) => {
      const place = element("div");
      responsive(place, (width) => histogram(tensor, width));
      return element("figure", {}, element("figcaption", {}, describeTensor(tensor)), place);
    }));
    curves();
  }

  function describeTensor(tensor) {
    const place = tensor.name ? `${tensor.kind} (${tensor.name})` : tensor.kind;
    return `${place}: ${tensor.bits} bits, bounds ${short(tensor.lower)} to ${short(tensor.upper)}, values ` +
      `${short(tensor.minimum)} to ${short(tensor.maximum)}, ${(100 * tensor.clipped).toFixed(2)} % clipped, ` +
      `SQNR ${decibels(tensor.sqnr)}`;
  }

  function open(name) {
    run = runs.find((each) => each.name === name);
    const {layers, data: source, output} = run.analysis;
    byId("layers-data").textContent = `${source}. SQNR of the output: ${decibels(output)}.`;
    offer(byId("layer"), layers.map((layer, index) => [index, layer.name]), 0);
    byId("layer-position").max = layers.length - 1;
    byId("bounds-table").replaceChildren();
    choose(0);
    if (byId("bounds").open) fillBounds();
  }

  function fillBounds() {
    const rows = run.analysis.layers.flatMap((layer, index) => layer.tensors.map((tensor) => ({layer, index, tensor})));
    const number = (title, value, text = short) => (
      {title, value, text: (row) => (value(row) === null ? "no error" : text(value(row)))});
    const decimal = (value) => value.toFixed(1);
    const width = ({minimum, maximum, lower, upper}) => (upper - lower) / (maximum - minimum || 1);
    const show = (row) => element("button", {type: "button", onclick: () => {
      choose(row.index);
      byId("layer-heading").scrollIntoView({block: "nearest"});
    }}, row.layer.name);
    fillTable(byId("bounds-table"), [
      {title: "Layer", head: true, value: (row) => row.index, text: show},
      {title: "Tensor", value: (row) => row.tensor.kind, text: (row) => row.tensor.kind},
      number("Bits", (row) => row.tensor.bits, String),
      {title: "Values and bounds", value: (row) => width(row.tensor), text: (row) => strip(row.tensor)},
      number("Lower bound", (row) => row.tensor.lower),
      number("Upper bound", (row) => row.tensor.upper),
      number("Clipped", (row) => row.tensor.clipped, (value) => `${(100 * value).toFixed(2)} %`),
      number("SQNR of the tensor", (row) => row.tensor.sqnr, decimal),
      number("SQNR of the layer", (row) => row.layer.teacher_forced, decimal),
      number("with everything quantized", (row) => row.layer.cumulative, decimal),
    ], rows);
  }

  offer(byId("layers-run"), runs.map(({name}) => [name, name]), run.name);
  byId("layers-run").addEventListener("change", (event) => open(event.target.value));
  byId("layer").addEventListener("change", (event) => choose(Number(event.target.value)));
  byId("layer-position").addEventListener("input", (event) => choose(Number(event.target.value)));
  byId("bounds").addEventListener("toggle", () => {
    if (byId("bounds").open && byId("bounds-table").rows.length === 0) fillBounds();
  });
  open(run.name);
}
