/* A picture and what is drawn on it by mouse, pen or finger, in the picture's own pixels.

   mode "view": only the picture; "mask": one colour, hard edges; "colour": a sketch.
   The value: {picture: file or null, layer: PNG as data URI or null}, see tabs/canvas.py. */
(() => {
  const MOST_LAYER_PX = 16e6; // what phones give a canvas; the server enlarges a smaller layer
  const MOST_STEPS = 40; // to undo
  const ICONS = {
    brush: "M4 20c0-3 1-5 4-5 2 0 3 1 3 3 0 2-2 3-4 3-1 0-2 0-3-1zM11 15 20 4l1 1-8 11",
    eraser: "M8 19 3 14 13 4l7 7-8 8zM8 19h12M8 9l7 7",
    undo: "M9 14 4 9l5-5M4 9h9a6 6 0 0 1 0 12h-3",
    redo: "m15 14 5-5-5-5M20 9h-9a6 6 0 0 0 0 12h3",
    wipe: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
    invert: "M12 3a9 9 0 1 0 0 18zM12 3a9 9 0 0 1 0 18",
    hand: "M12 3v18M3 12h18M12 3l-3 3M12 3l3 3M12 21l-3-3M12 21l3-3M3 12l3-3M3 12l3 3M21 12l-3-3M21 12l-3 3",
    minus: "M5 12h14",
    plus: "M5 12h14M12 5v14",
    fit: "M4 5h16v14H4zM8.5 9.5h7v5h-7z",
    wide: "M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5",
    other: "M12 16V5M7 9l5-5 5 5M4 16v4h16v-4",
    remove: "M5 5l14 14M19 5 5 19",
  };
  const icon = (name) =>
    `<svg viewBox="0 0 24 24" aria-hidden="true"><path d="${ICONS[name]}"/></svg>`;
  const tool = (name, title, more = "") =>
    `<button type="button" class="tool ${more}" data-do="${name}" title="${title}" aria-label="${title}">${icon(name)}</button>`;

  function skeleton(mode, label) {
    const draws = mode !== "view";
    const drawing = `
      <span class="group">${tool("brush", "Draw (B)")}${tool("eraser", "Erase (E)")}
        ${mode === "colour" ? '<input type="color" class="colour" value="#e23b3b" title="Colour (Alt+click takes one from the picture)" aria-label="Colour">' : ""}
        <label class="width" title="Brush width in pixels ([ and ], or Ctrl+wheel)">
          <input type="range" min="0" max="100" step="1" aria-label="Brush width"><output></output></label></span>
      <span class="group">${tool("undo", "Undo (Ctrl+Z)")}${tool("redo", "Redo (Ctrl+Y)")}
        ${mode === "mask" ? tool("invert", "Turn the mask round") : ""}${tool("wipe", "Clear the drawing")}</span>`;
    return `
      <div class="tools">${draws ? drawing : ""}
        <span class="group zoom">${tool("hand", "Move (hold F or Space)")}${tool("minus", "Smaller")}${tool("plus", "Larger (Shift+wheel)")}${tool("fit", "Fit (R)")}${tool("wide", "Over the whole window (S)")}</span>
        <span class="group last">${tool("other", "Another picture")}${tool("remove", "Remove the picture")}</span></div>
      <div class="view" tabindex="0" role="application" aria-label="${label}">
        <div class="stage"><img alt="" draggable="false"><canvas></canvas></div>
        <div class="ring"></div>
        <button type="button" class="empty"><svg viewBox="0 0 24 24" aria-hidden="true"><path d="${ICONS.other}"/></svg>
          <b>Drop a picture here</b><span>or click to choose one · Ctrl+V pastes</span></button></div>
      <div class="status"><span class="what"></span><span class="zoomed"></span></div>
      <input type="file" accept="image/*" hidden tabindex="-1" aria-hidden="true">`;
  }

  class Canvas {
    constructor(element, props, trigger, upload) {
      Object.assign(this, { props, trigger, upload, mode: props.mode });
      this.root = element.querySelector(".fsd-canvas");
      this.root.innerHTML = skeleton(this.mode, props.about);
      const find = (selector) => this.root.querySelector(selector);
      this.view = find(".view");
      this.stage = find(".stage");
      this.image = find("img");
      this.layer = find("canvas");
      this.ring = find(".ring");
      this.file = find("input[type=file]");
      this.colour = find(".colour");
      this.range = find(".width input");
      this.context = this.layer.getContext("2d", { willReadFrequently: true });
      this.picture = null; // the file, as the server knows it
      this.history = [null]; // layers as data URIs, null = nothing drawn
      this.at = 0;
      this.erases = this.moves = this.held = false;
      this.widthPx = 0;
      this.zoom = 1;
      this.left = this.top = 0;
      this.fingers = new Map();
      this.loading = 0;
      this.shapes = new Map(); // brushes by width
      this.listen();
      this.show(props.value);
      new ResizeObserver(() => this.resized()).observe(this.view);
    }

    // -------------------------------------------------------------- value

    get value() {
      return this.picture ? { picture: this.picture, layer: this.history[this.at] } : null;
    }

    tell() {
      this.told = JSON.stringify(this.value);
      this.props.value = this.value;
    }

    /* What the server (or a tab that is shown again) gives: the picture, and what was drawn on it. */
    show(value) {
      if (JSON.stringify(value || null) === this.told) return;
      this.told = JSON.stringify(value || null);
      if (!value || !value.picture) return this.removed();
      this.picture = value.picture;
      this.load(value.picture.url, value.layer || null);
    }

    load(address, layer) {
      const now = ++this.loading;
      return new Promise((done) => {
        this.image.onload = () => {
          if (now !== this.loading) return done(false);
          this.opened(layer);
          done(true);
        };
        this.image.onerror = () => {
          if (now === this.loading) this.failed("The browser cannot show this file as a picture.");
          done(false);
        };
        this.image.src = address;
      });
    }

    opened(layer) {
      const [width, height] = [this.image.naturalWidth, this.image.naturalHeight];
      const smaller = Math.min(1, Math.sqrt(MOST_LAYER_PX / (width * height)));
      this.layer.width = Math.max(1, Math.round(width * smaller));
      this.layer.height = Math.max(1, Math.round(height * smaller));
      this.layer.style.width = `${width}px`;
      this.layer.style.height = `${height}px`;
      this.history = [layer];
      this.at = 0;
      if (layer) this.restore();
      this.root.classList.add("full");
      this.root.classList.remove("bad");
      this.setWidth(Math.max(1, Math.round(Math.min(width, height) / 12)));
      this.fit();
      this.says();
    }

    removed() {
      this.loading++;
      this.picture = null;
      this.history = [null];
      this.at = 0;
      this.view.style.height = "";
      this.image.removeAttribute("src");
      if (this.root.classList.contains("wide")) this.widen();
      this.root.classList.remove("full", "bad");
      this.says();
    }

    failed(text) {
      this.removed();
      this.root.classList.add("bad");
      this.root.querySelector(".what").textContent = text;
    }

    /* A file of the user's: shown at once, sent to the server beside. */
    async take(file) {
      if (!file) return;
      const local = URL.createObjectURL(file);
      this.picture = null;
      if (await this.load(local, null)) {
        const now = this.loading;
        this.root.classList.add("sending");
        this.says();
        try {
          const sent = await this.upload(file);
          if (now === this.loading) {
            this.picture = {
              path: sent.path, url: sent.url, orig_name: file.name || "picture.png",
              mime_type: file.type, size: file.size, meta: { _type: "gradio.FileData" },
            };
            this.says();
          }
        } catch (error) {
          if (now === this.loading) this.failed(`The server did not take the picture: ${error.message || error}`);
        }
        this.root.classList.remove("sending");
      }
      URL.revokeObjectURL(local);
      this.tell();
      this.trigger("upload");
    }

    says() {
      const [width, height] = [this.image.naturalWidth, this.image.naturalHeight];
      const full = this.root.classList.contains("full");
      const what = this.root.querySelector(".what");
      if (!this.root.classList.contains("bad")) {
        what.textContent = !full ? "" : `${width} × ${height} px${this.picture ? "" : " · sending …"}`;
      }
      this.root.querySelector(".zoomed").textContent = full ? `${Math.round(this.zoom * 100)} %` : "";
      for (const button of this.root.querySelectorAll(".tool")) {
        const does = button.dataset.do;
        button.disabled = does !== "other" && (!full || (does === "undo" && !this.at) ||
          (does === "redo" && this.at === this.history.length - 1));
        button.classList.toggle("on", (does === "brush" && !this.erases && !this.moves) ||
          (does === "eraser" && this.erases && !this.moves) || (does === "hand" && this.moves) ||
          (does === "wide" && this.root.classList.contains("wide")));
      }
    }

    // -------------------------------------------------------------- drawing

    /* From the window's pixels to the layer's; whole numbers are corners of pixels. */
    place(event) {
      const box = this.stage.getBoundingClientRect();
      return [(event.clientX - box.left) * (this.layer.width / box.width),
        (event.clientY - box.top) * (this.layer.height / box.height)];
    }

    setWidth(px) {
      const most = Math.max(4, Math.round(Math.min(this.layer.width, this.layer.height) / 2));
      this.widthPx = Math.min(Math.max(1, Math.round(px)), most);
      if (this.range) {
        this.most = most;
        this.range.value = 100 * Math.log(this.widthPx) / Math.log(most);
        this.root.querySelector(".width output").textContent = `${this.widthPx} px`;
      }
      this.size();
    }

    /* A disc of whole pixels: what is masked is masked, without half-tones at the edge. */
    shape(colour) {
      const name = `${this.widthPx}${colour}`;
      if (!this.shapes.has(name)) {
        const disc = document.createElement("canvas");
        disc.width = disc.height = this.widthPx;
        const context = disc.getContext("2d");
        context.fillStyle = colour;
        const half = this.widthPx / 2;
        for (let row = 0; row < this.widthPx; row++) {
          const reach = Math.sqrt(Math.max(half * half - (row + 0.5 - half) ** 2, 0.25));
          const from = Math.round(half - reach);
          context.fillRect(from, row, Math.max(Math.round(half + reach) - from, 1), 1);
        }
        if (this.shapes.size > 20) this.shapes.clear();
        this.shapes.set(name, disc);
      }
      return this.shapes.get(name);
    }

    line([fromX, fromY], [toX, toY]) {
      const disc = this.shape(this.mode === "mask" ? this.props.shade : this.colour.value);
      const half = this.widthPx / 2;
      const far = Math.hypot(toX - fromX, toY - fromY);
      const steps = Math.max(1, Math.ceil(far / Math.max(1, half / 4)));
      this.context.globalCompositeOperation = this.erases ? "destination-out" : "source-over";
      for (let step = 0; step <= steps; step++) {
        const x = fromX + (toX - fromX) * step / steps, y = fromY + (toY - fromY) * step / steps;
        this.context.drawImage(disc, Math.round(x - half), Math.round(y - half));
      }
      this.context.globalCompositeOperation = "source-over";
    }

    drawn() {
      const pixels = this.context.getImageData(0, 0, this.layer.width, this.layer.height).data;
      let marked = false;
      for (let at = 3; at < pixels.length && !marked; at += 4) marked = pixels[at] > 0;
      const now = marked ? this.layer.toDataURL("image/png") : null;
      if (now === this.history[this.at]) return;
      this.history = [...this.history.slice(0, this.at + 1), now].slice(-MOST_STEPS - 1);
      this.at = this.history.length - 1;
      this.says();
      this.tell();
    }

    /* The layer as it is at this step of the history. */
    restore() {
      const address = this.history[this.at], at = this.at;
      this.context.clearRect(0, 0, this.layer.width, this.layer.height);
      if (!address) return;
      const earlier = new Image();
      earlier.onload = () => {
        if (this.history[at] !== address || this.at !== at) return;
        this.context.clearRect(0, 0, this.layer.width, this.layer.height);
        this.context.drawImage(earlier, 0, 0, this.layer.width, this.layer.height);
      };
      earlier.src = address;
    }

    step(by) {
      const to = Math.min(Math.max(this.at + by, 0), this.history.length - 1);
      if (to === this.at) return;
      this.at = to;
      this.restore();
      this.says();
      this.tell();
    }

    wipe() {
      this.context.clearRect(0, 0, this.layer.width, this.layer.height);
      this.drawn();
    }

    invert() {
      this.context.globalCompositeOperation = "xor";
      this.context.fillStyle = this.props.shade;
      this.context.fillRect(0, 0, this.layer.width, this.layer.height);
      this.context.globalCompositeOperation = "source-over";
      this.drawn();
    }

    pick(point) {
      const one = document.createElement("canvas");
      one.width = one.height = 1;
      const context = one.getContext("2d");
      const [x, y] = point.map(Math.floor);
      const scale = this.image.naturalWidth / this.layer.width;
      context.drawImage(this.image, x * scale, y * scale, 1, 1, 0, 0, 1, 1);
      context.drawImage(this.layer, x, y, 1, 1, 0, 0, 1, 1);
      const levels = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
      this.colour.value = `#${levels.map((level) => level.toString(16).padStart(2, "0")).join("")}`;
    }

    // -------------------------------------------------------------- zoom and pan

    resized() {
      if (this.view.clientWidth && this.fitted !== false) this.fit();
    }

    fit() {
      const [width, height] = [this.image.naturalWidth, this.image.naturalHeight];
      const across = this.view.clientWidth;
      if (!width || !across) return;
      const wide = this.root.classList.contains("wide"); // else as tall as the picture needs, within what is allowed
      this.view.style.height = wide ? "" : `min(var(--tall), 68vh, ${Math.max(Math.ceil(across * height / width), 160)}px)`;
      const down = this.view.clientHeight;
      this.zoom = Math.min(across / width, down / height);
      this.left = (across - width * this.zoom) / 2;
      this.top = (down - height * this.zoom) / 2;
      this.fitted = true;
      this.arrange();
    }

    widen() {
      document.body.classList.toggle("fsd-behind", this.root.classList.toggle("wide"));
      this.fit();
    }

    /* Larger or smaller by a factor; what is at (x, y) of the view stays there. */
    zoomBy(factor, x = this.view.clientWidth / 2, y = this.view.clientHeight / 2) {
      const zoom = Math.min(Math.max(this.zoom * factor, 0.02), 64);
      this.left = x - (x - this.left) * zoom / this.zoom;
      this.top = y - (y - this.top) * zoom / this.zoom;
      this.zoom = zoom;
      this.fitted = false;
      this.arrange();
    }

    arrange() {
      this.stage.style.transform = `translate(${this.left}px, ${this.top}px) scale(${this.zoom})`;
      this.stage.classList.toggle("pixels", this.zoom > 2);
      this.size();
      this.says();
    }

    /* The ring shows what the brush would touch. */
    size(event) {
      const px = this.widthPx * this.zoom * (this.image.naturalWidth / this.layer.width || 1);
      this.ring.style.width = this.ring.style.height = `${px}px`;
      if (event) {
        const box = this.view.getBoundingClientRect();
        this.ring.style.transform =
          `translate(${event.clientX - box.left - px / 2}px, ${event.clientY - box.top - px / 2}px)`;
        this.ring.style.opacity = event.pointerType === "touch" || this.panning ? 0 : 1;
      }
    }

    get panning() {
      return this.mode === "view" || this.moves || this.held;
    }

    // -------------------------------------------------------------- hands

    listen() {
      const on = (target, names, action, more) =>
        names.split(" ").forEach((name) => target.addEventListener(name, action.bind(this), more));
      on(this.root, "click", this.pressed);
      on(this.root.querySelector(".empty"), "click", () => this.file.click());
      on(this.file, "change", () => {
        this.take(this.file.files[0]);
        this.file.value = "";
      });
      if (this.range) {
        on(this.range, "input", () => this.setWidth(this.most ** (this.range.value / 100)));
      }
      on(this.view, "pointerdown", this.down);
      on(this.view, "pointermove", this.move);
      on(this.view, "pointerup pointercancel", this.up);
      on(this.view, "pointerleave", () => (this.ring.style.opacity = 0));
      on(this.view, "wheel", this.wheel, { passive: false });
      on(this.view, "keydown", this.key);
      on(this.view, "keyup blur", (event) => {
        if (event.type === "blur" || [" ", "f", "F"].includes(event.key)) this.held = false;
      });
      on(this.root, "dragover dragenter", (event) => {
        event.preventDefault();
        event.stopPropagation();
        this.root.classList.add("over");
      });
      on(this.root, "dragleave", () => this.root.classList.remove("over"));
      on(this.root, "drop", (event) => {
        event.preventDefault();
        event.stopPropagation(); // a picture for the prompt is another thing
        this.root.classList.remove("over");
        this.take([...event.dataTransfer.files].find((file) => file.type.startsWith("image/")));
      });
      on(document, "paste", (event) => {
        const file = [...(event.clipboardData?.files || [])].find((one) => one.type.startsWith("image/"));
        const meant = this.root.contains(document.activeElement) || this.root.matches(":hover");
        if (!file || !meant || !this.view.clientWidth) return;
        event.preventDefault();
        this.take(file);
      });
    }

    pressed(event) {
      const does = event.target.closest("[data-do]")?.dataset.do;
      const actions = {
        brush: () => (this.erases = this.moves = false),
        eraser: () => ((this.erases = true), (this.moves = false)),
        hand: () => (this.moves = !this.moves),
        undo: () => this.step(-1),
        redo: () => this.step(1),
        wipe: () => this.wipe(),
        invert: () => this.invert(),
        minus: () => this.zoomBy(1 / 1.25),
        plus: () => this.zoomBy(1.25),
        fit: () => this.fit(),
        wide: () => this.widen(),
        other: () => this.file.click(),
        remove: () => {
          this.removed();
          this.tell();
          this.trigger("clear");
        },
      };
      if (!does) return;
      actions[does]();
      this.view.classList.toggle("moves", this.panning);
      this.says();
    }

    down(event) {
      if (!this.root.classList.contains("full") || event.button > 1) return;
      event.preventDefault();
      this.view.focus({ preventScroll: true });
      this.view.setPointerCapture(event.pointerId);
      this.fingers.set(event.pointerId, [event.clientX, event.clientY]);
      if (this.fingers.size === 2) { // a pinch began as a stroke: take it back
        if (this.last) this.restore();
        this.last = null;
        return;
      }
      if (this.panning || event.button === 1) return;
      const point = this.place(event);
      if (event.altKey && this.colour) return this.pick(point);
      this.last = point;
      this.line(point, point);
    }

    move(event) {
      this.size(event);
      const before = this.fingers.get(event.pointerId);
      if (!before) return;
      if (this.last && this.fingers.size === 1) {
        const all = event.getCoalescedEvents?.() ?? [];
        for (const one of all.length ? all : [event]) {
          const point = this.place(one);
          this.line(this.last, point);
          this.last = point;
        }
      } else {
        const old = [...this.fingers.values()];
        this.fingers.set(event.pointerId, [event.clientX, event.clientY]);
        this.pan(old, [...this.fingers.values()]);
      }
      this.fingers.set(event.pointerId, [event.clientX, event.clientY]);
    }

    /* One finger moves the picture, two move and zoom it. */
    pan(old, now) {
      const middle = (all) => [0, 1].map((axis) => all.reduce((sum, one) => sum + one[axis], 0) / all.length);
      const [from, to] = [middle(old), middle(now)];
      this.left += to[0] - from[0];
      this.top += to[1] - from[1];
      const apart = (all) => (all.length < 2 ? 1 : Math.hypot(all[0][0] - all[1][0], all[0][1] - all[1][1]));
      const box = this.view.getBoundingClientRect();
      this.zoomBy(apart(now) / Math.max(apart(old), 1), to[0] - box.left, to[1] - box.top);
    }

    up(event) {
      this.fingers.delete(event.pointerId);
      if (!this.last) return;
      this.last = null;
      this.drawn();
    }

    wheel(event) {
      if (!this.root.classList.contains("full")) return;
      const up = (event.deltaY || event.deltaX) < 0;
      if (event.shiftKey) {
        const box = this.view.getBoundingClientRect();
        this.zoomBy(up ? 1.15 : 1 / 1.15, event.clientX - box.left, event.clientY - box.top);
      } else if (event.ctrlKey && this.range) {
        this.setWidth(up ? Math.max(this.widthPx * 1.1, this.widthPx + 1) : this.widthPx / 1.1);
        this.size(event);
      } else {
        return; // the page scrolls
      }
      event.preventDefault();
    }

    key(event) {
      const command = event.ctrlKey || event.metaKey;
      const letter = event.key.toLowerCase();
      const draws = this.mode !== "view";
      if (command && letter === "z" && draws) this.step(event.shiftKey ? 1 : -1);
      else if (command && letter === "y" && draws) this.step(1);
      else if (command || event.altKey) return;
      else if (letter === "r") this.fit();
      else if (letter === "s") this.widen();
      else if (letter === "+") this.zoomBy(1.25);
      else if (letter === "-") this.zoomBy(1 / 1.25);
      else if (letter === "f" || letter === " ") this.held = true;
      else if (letter === "b" && draws) this.erases = this.moves = false;
      else if (letter === "e" && draws) [this.erases, this.moves] = [true, false];
      else if (letter === "[" && draws) this.setWidth(Math.min(this.widthPx / 1.2, this.widthPx - 1));
      else if (letter === "]" && draws) this.setWidth(Math.max(this.widthPx * 1.2, this.widthPx + 1));
      else return;
      event.preventDefault();
      event.stopPropagation();
      this.says();
    }
  }

  window.fastsdCanvas = (element, props, trigger, upload, watch) => {
    const canvas = new Canvas(element, props, trigger, upload);
    watch("value", () => canvas.show(props.value));
  };
})();
