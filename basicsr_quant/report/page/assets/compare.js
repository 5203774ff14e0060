// Which image, and what of it on the left and on the right.

function startComparison(data) {
  const images = data.datasets.flatMap((dataset) => dataset.images.map((image) => ({dataset, image})));
  const shown = images.filter(({image}) => image.panels.some((panel) => panel.file));
  if (shown.length === 0) {
    byId("no-images").textContent = "No images are there; test with val:save_img=true.";
    byId("no-images").hidden = false;
    byId("comparison").hidden = true;
    return;
  }
  const zoom = byId("zoom");
  const viewer = new Viewer((factor, magnification) => {
    zoom.textContent = `${factor.toFixed(1)}×, 1 pixel = ${magnification.toFixed(1)} on the screen`;
  });
  const selects = {left: byId("left"), right: byId("right")};
  const wanted = {...data.start};
  let current = 0;

  const panelOf = (side) => {
    const there = shown[current].image.panels.filter((panel) => panel.file);
    return there.find((panel) => panel.key === wanted[side]) ?? there[side === "left" ? 0 : there.length - 1];
  };

  function describe(side, panel) {
    const {image} = shown[current];
    const values = Object.entries(image.metrics[panel.run] ?? {}).map(
      ([name, value]) => `${name} ${value.toFixed(data.metrics[name].decimals)}`);
    byId(`${side}-caption`).replaceChildren(
      element("strong", {}, panel.label), values.length ? `: ${values.join(", ")}` : "");
  }

  function update() {
    const {image} = shown[current];
    const choices = image.panels.map((panel) => [
      panel.key, panel.file ? panel.label : `${panel.label} (${panel.missing})`, !panel.file]);
    for (const side of ["left", "right"]) {
      const panel = panelOf(side);
      offer(selects[side], choices, panel.key);
      viewer.show(side, panel, image.name, [image.width, image.height]);
      describe(side, panel);
    }
  }

  offer(byId("image"), shown.map(({dataset, image}, index) => [index, `${dataset.name}: ${image.name}`]), 0);
  byId("image").addEventListener("change", (event) => {
    current = Number(event.target.value);
    update();
  });
  for (const side of ["left", "right"]) {
    selects[side].addEventListener("change", (event) => {
      wanted[side] = event.target.value;
      update();
    });
  }
  byId("swap").addEventListener("click", () => {
    [wanted.left, wanted.right] = [panelOf("right").key, panelOf("left").key];
    update();
  });
  byId("zoom-in").addEventListener("click", () => viewer.zoomBy(ZOOM_STEP));
  byId("zoom-out").addEventListener("click", () => viewer.zoomBy(1 / ZOOM_STEP));
  byId("zoom-reset").addEventListener("click", () => viewer.reset());
  update();
}
