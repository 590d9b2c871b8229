// <sa2va-viewer src="views/NAME">: a clip, what models say of it and their masks, which a slider thresholds here.
// The server sends each picture once, and of each object a byte a pixel: how many steps of the slider it exceeds.
"use strict";
(() => {
  const FRAME_MS = 125; // of a clip that plays
  const KEPT_BYTES = 256e6; // of frames that stay decoded
  // What is kept when a clip is segmented anew.
  const kept = { step: null, clip: null, frame: 0 };

  const STYLE = `
    :host { display: block; color: var(--body-text-color, #1f2937); font: 14px/1.5 system-ui, sans-serif; }
    * { box-sizing: border-box; }
    [hidden] { display: none !important; }
    .bar { display: flex; flex-wrap: wrap; gap: 8px 24px; margin-bottom: 12px; padding: 10px 14px;
      border: 1px solid var(--border-color-primary, #e5e7eb); border-radius: 8px;
      background: var(--background-fill-secondary, #f9fafb); }
    .slider { display: grid; grid-template-columns: auto 1fr; align-items: center; gap: 0 10px; flex: 1 1 220px; }
    .slider span { white-space: nowrap; }
    output { display: inline-block; font-variant-numeric: tabular-nums; font-weight: 600; }
    input[type="range"] { width: 100%; min-width: 60px; margin: 6px 0; accent-color: #0284c7; }
    .frames { grid-template-columns: auto auto 1fr; }
    button { width: 34px; height: 30px; border: 1px solid var(--border-color-primary, #d1d5db); border-radius: 6px;
      color: inherit; background: var(--button-secondary-background-fill, #e5e7eb); cursor: pointer; font: inherit; }
    :focus-visible { outline: 2px solid var(--color-accent, #0284c7); outline-offset: 2px; }
    .cards { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); }
    figure { margin: 0; min-width: 0; }
    h2 { margin: 0 0 6px; font-size: 14px; font-weight: 600; overflow-wrap: anywhere; }
    canvas { display: block; width: 100%; max-height: 72vh; object-fit: contain; object-position: left top;
      border-radius: 6px; }
    p { margin: 8px 0; overflow-wrap: anywhere; }
    .answer { max-height: 6em; overflow: auto; }
    .answer mark { padding: 0 4px; border-radius: 4px; color: #000; font-size: 12px; }
    ul { margin: 8px 0; padding: 0; list-style: none; }
    li { display: grid; grid-template-columns: 1fr auto; gap: 0 10px; padding: 6px 0;
      border-top: 1px solid var(--border-color-primary, #e5e7eb); }
    li label { display: flex; align-items: center; gap: 8px; min-width: 0; overflow-wrap: anywhere; }
    .swatch { flex: none; width: 14px; height: 14px; border-radius: 4px; border: 1px solid rgb(0 0 0 / 30%); }
    .numbers { grid-row: 2; grid-column: 1 / -1; padding-left: 22px; opacity: 0.75; font-variant-numeric: tabular-nums; }
    a { color: var(--link-text-color, #0369a1); }
    .files { display: flex; flex-wrap: wrap; gap: 4px 14px; }`;

  const make = (tag, properties = {}, ...children) => {
    const { aria = {}, ...rest } = properties;
    const element = Object.assign(document.createElement(tag), rest);
    for (const [name, value] of Object.entries(aria)) element.setAttribute(`aria-${name}`, value);
    element.append(...children);
    return element;
  };
  const css = (colour) => `rgb(${colour.join(" ")})`;

  const fetched = async (address) => {
    const reply = await fetch(address);
    if (!reply.ok) throw new Error((await reply.json().catch(() => ({}))).detail || `${reply.status}`);
    return reply;
  };

  class Viewer extends HTMLElement {
    static observedAttributes = ["src"];

    connectedCallback() {
      if (!this.shadowRoot) this.attachShadow({ mode: "open" });
      this.open();
    }

    // Gradio keeps the element and changes its attribute.
    attributeChangedCallback() {
      if (this.isConnected && this.shadowRoot) this.open();
    }

    async open() {
      const source = this.getAttribute("src");
      try {
        const view = await (await fetched(source)).json();
        if (source !== this.getAttribute("src") || !this.isConnected) return;
        this.play(false);
        Object.assign(this, { source, view, data: null, frames: new Map(), hiddenLabels: new Set() });
        this.build();
        const { name, frames, start } = view;
        await this.show(kept.clip === name && kept.frame < frames ? kept.frame : start);
      } catch (error) {
        this.fail(error);
      }
    }

    disconnectedCallback() {
      this.play(false);
      this.frames?.clear();
    }

    fail(error) {
      this.play(false);
      this.shadowRoot.append(make("p", { role: "alert", textContent: error.message }));
    }

    // The parts of the page

    build() {
      const { steps, step, frames, moving, models, name } = this.view;
      this.step = kept.step ?? step;
      this.threshold = make("input", { type: "range", min: 1, max: steps - 1, step: 1, value: this.step });
      this.thresholdText = make("output");
      this.threshold.addEventListener("input", () => {
        this.step = kept.step = Number(this.threshold.value);
        this.draw();
      });
      this.position = make("input", { type: "range", min: 0, max: frames - 1, step: 1, value: 0 });
      this.positionText = make("output");
      this.position.addEventListener("input", () => {
        this.play(false);
        this.show(Number(this.position.value)).catch((error) => this.fail(error));
      });
      this.button = make("button", { type: "button", textContent: "▶", title: "Play", aria: { label: "Play" } });
      this.button.addEventListener("click", () => this.play(!this.timer));
      // (A label around both would be the output's.)
      const slider = (kind, text, output, input, ...before) => {
        input.id = kind;
        const label = make("label", { htmlFor: kind, textContent: text });
        return make("div", { className: `slider ${kind}` }, ...before, make("span", {}, label, " ", output), input);
      };
      const bar = make("div", { className: "bar", hidden: !models.length && !moving });
      if (models.length) bar.append(slider("threshold", "Threshold", this.thresholdText, this.threshold));
      if (moving) bar.append(slider("frames", "Frame", this.positionText, this.position, this.button));
      this.cards = (models.length ? models : [null]).map((model, index) => this.card(model, index, name));
      const cards = make("div", { className: "cards" }, ...this.cards.map((card) => card.element));
      this.shadowRoot.replaceChildren(make("style", { textContent: STYLE }), bar, cards);
    }

    card(model, index, name) {
      const [width, height] = this.view.size;
      const canvas = make("canvas", { width, height, role: "img" });
      const context = canvas.getContext("2d");
      const card = { model, index, canvas, context, pixels: context.createImageData(width, height) };
      card.element = make("figure", {}, make("h2", { textContent: model ? model.title : name }), canvas);
      if (model) {
        card.answer = make("p", { className: "answer" });
        card.list = make("ul", { aria: { label: `Objects of ${model.title}` } });
        const link = (text) => make("a", { textContent: text, download: "" });
        card.links = { overlay: link("Overlay (PNG)"), json: link("JSON") };
        card.links.zip = link(this.view.moving ? "All frames (ZIP)" : "All files (ZIP)");
        card.files = make("p", { className: "files" }, ...Object.values(card.links));
        card.element.append(card.answer, card.list, card.files);
      }
      return card;
    }

    // The answer, with each [SEG] in the colour of its object, and the list of objects.
    tell(card) {
      const { text, objects, predicted_iou: scores } = card.model.answers[this.frame];
      if (card.told === this.frame) return;
      card.told = this.frame;
      let seen = 0;
      card.answer.replaceChildren();
      for (const part of text.split(/(\[SEG\])/)) {
        if (part !== "[SEG]") card.answer.append(part.replace(/<\/?p>/g, ""));
        else {
          const mark = make("mark", { textContent: part });
          mark.style.background = css(this.view.colours[objects[seen++]] ?? [229, 231, 235]);
          card.answer.append(mark);
        }
      }
      card.files.hidden = !objects.length;
      const labels = objects.join("\n");
      if (card.labels === undefined || card.labels !== labels) {
        card.labels = labels;
        card.rows = objects.map((label) => this.row(label));
        card.list.replaceChildren(...card.rows.map((row) => row.element));
        if (!objects.length) card.list.append(make("li", { textContent: "No mask: the answer holds no [SEG]." }));
      }
      card.rows.forEach((row, index) => (row.score = scores[index]));
    }

    row(label) {
      const box = make("input", { type: "checkbox", checked: !this.hiddenLabels.has(label) });
      const swatch = make("span", { className: "swatch" });
      swatch.style.background = css(this.view.colours[label]);
      box.addEventListener("change", () => {
        this.hiddenLabels[box.checked ? "delete" : "add"](label);
        for (const card of this.cards)
          for (const row of card.rows ?? []) if (row.label === label) row.box.checked = box.checked;
        this.draw();
      });
      const row = { label, box, numbers: make("span", { className: "numbers" }) };
      row.link = make("a", { textContent: "Mask (PNG)", download: "" });
      row.element = make("li", {}, make("label", {}, box, swatch, label), row.link, row.numbers);
      return row;
    }

    // Frames

    load(frame) {
      if (!this.frames.has(frame)) {
        this.frames.set(frame, this.fetchFrame(frame));
        const [width, height] = this.view.size;
        const objects = this.view.models.map((model) => model.answers[frame].objects.length);
        const bytes = width * height * (4 + objects.reduce((sum, count) => sum + count, 0));
        for (const old of [...this.frames.keys()].slice(0, -Math.max(4, Math.floor(KEPT_BYTES / bytes))))
          this.frames.delete(old);
      }
      return this.frames.get(frame);
    }

    async fetchFrame(frame) {
      const { source, view } = this;
      const [width, height] = view.size;
      const picture = async () => {
        const blob = await (await fetched(`${source}/frames/${frame}`)).blob();
        const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
        const canvas = make("canvas", { width, height });
        const context = canvas.getContext("2d", { willReadFrequently: true });
        context.drawImage(bitmap, 0, 0);
        return context.getImageData(0, 0, width, height).data;
      };
      const levels = async (model, index) => {
        const count = model.answers[frame].objects.length;
        if (!count) return [];
        const bytes = await (await fetched(`${source}/${index}/levels/${frame}`)).arrayBuffer();
        return Array.from({ length: count }, (_, i) => new Uint8Array(bytes, i * width * height, width * height));
      };
      const [pixels, ...rest] = await Promise.all([picture(), ...view.models.map(levels)]);
      return { pixels, levels: rest };
    }

    async show(frame) {
      const { view } = this;
      this.wanted = frame;
      const data = await this.load(frame);
      if (this.view !== view || this.wanted !== frame || !this.isConnected) return;
      Object.assign(this, { frame, data });
      Object.assign(kept, { clip: this.view.name, frame });
      this.draw();
      for (const next of [1, 2]) this.load((frame + next) % this.view.frames).catch(() => {});
    }

    play(on) {
      clearTimeout(this.timer);
      this.timer = null;
      if (!this.button) return;
      this.button.textContent = on ? "❚❚" : "▶";
      this.button.title = on ? "Pause" : "Play";
      this.button.setAttribute("aria-label", this.button.title);
      if (!on) return;
      const next = async () => {
        const start = performance.now();
        const timer = this.timer;
        try {
          await this.show((this.frame + 1) % this.view.frames);
        } catch (error) {
          this.fail(error);
        }
        if (this.timer === timer) this.timer = setTimeout(next, FRAME_MS - (performance.now() - start));
      };
      this.timer = setTimeout(next, 0);
    }

    // The picture

    draw() {
      if (!this.data) return;
      const { steps, frames } = this.view;
      this.thresholdText.value = (this.step / steps).toFixed(3);
      this.threshold.value = this.step;
      this.threshold.setAttribute("aria-valuetext", this.thresholdText.value);
      this.position.value = this.frame;
      this.positionText.value = `${this.frame + 1} / ${frames}`;
      this.position.setAttribute("aria-valuetext", `${this.frame + 1} of ${frames}`);
      for (const card of this.cards) {
        card.pixels.data.set(this.data.pixels);
        if (card.model) {
          this.tell(card);
          this.paint(card);
        }
        card.context.putImageData(card.pixels, 0, 0);
        const labels = card.rows?.map((row) => row.label).join(", ");
        card.canvas.setAttribute("aria-label", `${this.view.name}, frame ${this.frame + 1}. Masks: ${labels || "none"}.`);
      }
    }

    paint(card) {
      const out = card.pixels.data;
      const { opacity, colours } = this.view;
      const [step, at, base] = [this.step, this.frame, `${this.source}/${card.index}`];
      card.rows.forEach((row, index) => {
        const level = this.data.levels[card.index][index];
        const [red, green, blue] = colours[row.label];
        const drawn = row.box.checked;
        let area = 0;
        for (let i = 0, p = 0; i < level.length; i++, p += 4) {
          if (level[i] < step) continue;
          area++;
          if (!drawn) continue;
          out[p] += (red - out[p]) * opacity;
          out[p + 1] += (green - out[p + 1]) * opacity;
          out[p + 2] += (blue - out[p + 2]) * opacity;
        }
        const share = ((100 * area) / level.length).toFixed(1);
        row.numbers.textContent = `${share} % of the picture · predicted IoU ${row.score.toFixed(2)}`;
        row.link.href = `${base}/mask/${at}/${index}?step=${step}`;
      });
      card.links.overlay.href = `${base}/overlay/${at}?step=${step}`;
      card.links.json.href = `${base}/json?step=${step}`;
      card.links.zip.href = `${base}/zip?step=${step}`;
    }
  }

  customElements.get("sa2va-viewer") || customElements.define("sa2va-viewer", Viewer);
})();
