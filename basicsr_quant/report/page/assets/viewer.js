// Two images on top of each other: the left one up to a border, both at the same place and zoom.

const MAX_ZOOM = 40;
const ZOOM_STEP = 1.25;
const MOVE_STEP = 0.1;
const PIXELATED_FROM = 2;

class Viewer {
  /** @param changed Called after the zoom has changed, with (zoom, screen pixels per image pixel). */
  constructor(changed) {
    this.root = byId("viewer");
    this.divider = byId("divider");
    this.leftLayer = byId("left-layer");
    this.images = {left: byId("left-image"), right: byId("right-image")};
    this.panels = {left: null, right: null};
    this.changed = changed;
    this.split = 0.5;
    this.view = {zoom: 1, x: 0.5, y: 0.5};
    this.size = [1, 1];
    this.pointers = new Map();
    this.listen();
    new ResizeObserver(() => this.draw()).observe(this.root);
  }

  /** Show a panel ({label, file, pixels}) on a side; size is that of the enlarged image. */
  show(side, panel, name, [width, height]) {
    this.panels[side] = panel;
    this.images[side].src = panel.file;
    this.images[side].alt = `${name}, ${panel.label}`;
    this.size = [width, height];
    this.root.style.aspectRatio = `${width} / ${height}`;
    byId("compare").style.setProperty("--image-width", `calc(75vh * ${width / height})`);
    this.draw();
  }

  draw() {
    const {zoom} = this.view;
    const margin = 0.5 / zoom;
    this.view.x = clamp(this.view.x, margin, 1 - margin);
    this.view.y = clamp(this.view.y, margin, 1 - margin);
    const [across, down] = [this.view.x, this.view.y].map((place) => 50 - 100 * place * zoom);
    const magnification = (this.root.clientWidth * zoom) / this.size[0];
    for (const [side, image] of Object.entries(this.images)) {
      image.style.transform = `translate(${across}%, ${down}%) scale(${zoom})`;
      image.classList.toggle("pixels", magnification >= PIXELATED_FROM || Boolean(this.panels[side]?.pixels));
    }
    const percent = 100 * this.split;
    this.leftLayer.style.clipPath = `inset(0 ${100 - percent}% 0 0)`;
    this.divider.style.left = `${percent}%`;
    this.divider.setAttribute("aria-valuenow", Math.round(percent));
    this.divider.setAttribute("aria-valuetext",
      `${Math.round(percent)} percent ${this.panels.left?.label}, the rest ${this.panels.right?.label}`);
    this.root.classList.toggle("zoomed", zoom > 1);
    this.changed(zoom, magnification);
  }

  moveSplit(fraction) {
    this.split = clamp(fraction, 0, 1);
    this.draw();
  }

  /** Zoom by a factor while the image point under (x, y), in parts of the viewer, stays where it is. */
  zoomBy(factor, x = 0.5, y = 0.5) {
    const before = this.view.zoom;
    const after = clamp(before * factor, 1, MAX_ZOOM);
    this.view.x += (x - 0.5) * (1 / before - 1 / after);
    this.view.y += (y - 0.5) * (1 / before - 1 / after);
    this.view.zoom = after;
    this.draw();
  }

  /** Move the image by parts of the viewer. */
  pan(across, down) {
    this.view.x -= across / this.view.zoom;
    this.view.y -= down / this.view.zoom;
    this.draw();
  }

  reset() {
    this.view = {zoom: 1, x: 0.5, y: 0.5};
    this.draw();
  }

  listen() {
    const {root, divider} = this;
    root.addEventListener("pointerdown", (event) => this.press(event));
    root.addEventListener("pointermove", (event) => this.drag(event));
    for (const end of ["pointerup", "pointercancel"]) {
      root.addEventListener(end, (event) => this.pointers.delete(event.pointerId));
    }
    root.addEventListener("wheel", (event) => {
      const meant = event.ctrlKey || root.contains(document.activeElement); // else the page scrolls
      if (!meant) return;
      event.preventDefault();
      this.zoomBy(Math.exp(-event.deltaY * 0.002), ...this.place(event));
    }, {passive: false});
    root.addEventListener("keydown", (event) => this.key(event, event.target === divider));
  }

  place(event) {
    const box = this.root.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }

  press(event) {
    if (event.button !== 0) return;
    const dividing = event.target === this.divider;
    this.pointers.set(event.pointerId, {at: this.place(event), dividing});
    this.root.setPointerCapture(event.pointerId);
    (dividing ? this.divider : this.root).focus({preventScroll: true});
    event.preventDefault();
  }

  drag(event) {
    const pointer = this.pointers.get(event.pointerId);
    if (!pointer) return;
    const [x, y] = this.place(event);
    const [oldX, oldY] = pointer.at;
    const other = [...this.pointers.values()].find((each) => each !== pointer);
    if (other) {
      const distance = (px, py) => Math.hypot(px - other.at[0], py - other.at[1]);
      this.zoomBy(distance(x, y) / Math.max(distance(oldX, oldY), 0.01), (x + other.at[0]) / 2, (y + other.at[1]) / 2);
      this.pan((x - oldX) / 2, (y - oldY) / 2);
    } else if (pointer.dividing || this.view.zoom === 1) {
      this.moveSplit(pointer.dividing ? x : this.split + x - oldX);
    } else {
      this.pan(x - oldX, y - oldY);
    }
    pointer.at = [x, y];
  }

  key(event, onDivider) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = event.shiftKey ? 0.1 : 0.01;
    const border = {ArrowLeft: () => this.split - step, ArrowDown: () => this.split - step,
      ArrowRight: () => this.split + step, ArrowUp: () => this.split + step, PageDown: () => this.split - 0.1,
      PageUp: () => this.split + 0.1, Home: () => 0, End: () => 1};
    const move = {ArrowLeft: [MOVE_STEP, 0], ArrowRight: [-MOVE_STEP, 0], ArrowUp: [0, MOVE_STEP],
      ArrowDown: [0, -MOVE_STEP]};
    if (onDivider && border[event.key]) this.moveSplit(border[event.key]());
    else if (!onDivider && move[event.key] && this.view.zoom > 1) this.pan(...move[event.key]);
    else if (event.key === "+" || event.key === "=") this.zoomBy(ZOOM_STEP);
    else if (event.key === "-") this.zoomBy(1 / ZOOM_STEP);
    else if (event.key === "0") this.reset();
    else return;
    event.preventDefault();
  }
}
