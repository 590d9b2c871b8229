"use strict";
// Tables that are sorted and filtered, and galleries whose masks are drawn anew where the threshold is moved.

const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];

// Tables

function sortBy(table, column, descending) {
  const value = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const isEmpty = text => text === "–";
  const rows = [...table.tBodies[0].rows];
  const order = new Intl.Collator("en", { numeric: true });
  rows.sort((one, other) => {
    const [a, b] = [value(one), value(other)];
    if (isEmpty(a) || isEmpty(b)) return isEmpty(a) - isEmpty(b); // last, whichever way
    const difference = isNaN(a) || isNaN(b) ? order.compare(a, b) : a - b;
    return descending ? -difference : difference;
  });
  table.tBodies[0].append(...rows);
  all("thead th", table).forEach((head, index) => {
    head.setAttribute("aria-sort", index !== column ? "none" : descending ? "descending" : "ascending");
  });
}

function filterRows(part) {
  const search = part.querySelector("input[type=search]").value.trim().toLowerCase();
  const choice = part.querySelector("select");
  const rows = [...part.querySelector("tbody").rows];
  for (const row of rows) {
    const chosen = !choice?.value || row.cells[choice.dataset.column].textContent === choice.value;
    row.hidden = !(chosen && row.textContent.toLowerCase().includes(search));
  }
  part.querySelector("output").textContent = `${rows.filter(row => !row.hidden).length} of ${rows.length} rows`;
}

for (const part of all(".table")) {
  const table = part.querySelector("table");
  all("thead th", table).forEach((head, index) => {
    head.firstElementChild.addEventListener("click", () => {
      sortBy(table, index, head.getAttribute("aria-sort") === "ascending");
    });
  });
  const form = part.querySelector("form");
  form?.addEventListener("input", () => filterRows(part));
  form?.addEventListener("submit", event => event.preventDefault());
}

// Galleries

const style = getComputedStyle(document.documentElement);
const colour = name => style.getPropertyValue(name).match(/\d+/g).map(Number);
const [FOUND, INVENTED, MISSED] = ["--tp", "--fp", "--fn"].map(colour);
const pixels = new WeakMap(); // of a figure: the bytes of its maps, read once

async function read(figure) {
  if (!pixels.has(figure)) {
    const maps = figure.querySelector(".maps");
    await maps.decode();
    const canvas = new OffscreenCanvas(maps.naturalWidth, maps.naturalHeight);
    const context = canvas.getContext("2d");
    context.drawImage(maps, 0, 0);
    pixels.set(figure, context.getImageData(0, 0, canvas.width, canvas.height).data);
  }
  return pixels.get(figure);
}

// Red has the first run's probabilities, blue the second's, green the target. Without colour vision the pattern tells
// them apart: what was found is plain, what was invented striped, what was missed dotted.
function paint(canvas, data, channel, threshold, mode) {
  const { width, height } = canvas;
  const image = new ImageData(width, height);
  const step = Math.max(2, Math.round(width / 120));
  const limit = 255 * threshold;
  const drawsPrediction = mode === "difference" || mode === "prediction";
  const drawsTarget = mode === "difference" || mode === "target";
  let [both, predicted, target] = [0, 0, 0];
  for (let index = 0, at = 0; at < data.length; index++, at += 4) {
    const isPredicted = data[at + channel] > limit;
    const isTarget = data[at + 1] > 127;
    both += isPredicted && isTarget;
    predicted += isPredicted;
    target += isTarget;
    if (!(isPredicted && drawsPrediction) && !(isTarget && drawsTarget)) continue;
    let ink = FOUND, alpha = 170;
    if (mode === "difference" && isPredicted !== isTarget) {
      const x = Math.floor((index % width) / step), y = Math.floor(index / width / step);
      const isOn = isPredicted ? (x + y) % 3 > 0 : (x + y) % 2 > 0;
      ink = isPredicted ? INVENTED : MISSED;
      alpha = isOn ? 230 : 90;
    }
    image.data.set(ink, at);
    image.data[at + 3] = alpha;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  const dice = predicted + target ? (2 * both) / (predicted + target) : 1;
  return { dice, found: both, invented: predicted - both, missed: target - both };
}

function view(gallery) {
  const slider = gallery.controls.querySelector("input[type=range]");
  const moved = slider?.dataset.moved;
  return {
    // As evaluated it may lie between two steps of the slider; without one the masks are 0 and 1.
    threshold: slider ? Number(moved ? slider.value : slider.dataset.threshold) : 0.5,
    mode: gallery.controls.querySelector("input[type=radio]:checked").value,
  };
}

async function draw(gallery, figure, stacks = figure) {
  const data = await read(figure);
  const { threshold, mode } = view(gallery);
  const said = all(".stack", stacks).map(stack => {
    const found = paint(stack.querySelector("canvas"), data, Number(stack.dataset.channel), threshold, mode);
    return `Dice ${found.dice.toFixed(3)} at ${threshold}: found ${found.found}, invented ${found.invented}, missed ${found.missed} px`;
  });
  const text = said.join("; ");
  figure.querySelector("output").textContent = text;
  return text;
}

const galleries = all(".gallery").map(element => {
  const gallery = { element, controls: element.querySelector(".controls"), figures: all(".picture", element) };
  gallery.visible = new Set();
  const watch = new IntersectionObserver(entries => {
    for (const { target, isIntersecting } of entries) {
      gallery.visible[isIntersecting ? "add" : "delete"](target);
      if (isIntersecting) draw(gallery, target);
    }
  }, { rootMargin: "300px" });
  gallery.figures.forEach(figure => watch.observe(figure));
  const redraw = () => {
    gallery.visible.forEach(figure => draw(gallery, figure));
    if (enlarged?.gallery === gallery) enlarge(gallery, enlarged.figure);
  };
  gallery.controls.addEventListener("submit", event => event.preventDefault());
  gallery.controls.addEventListener("input", event => {
    if (event.target.type === "range") {
      event.target.dataset.moved = "yes";
      event.target.nextElementSibling.textContent = Number(event.target.value).toFixed(2);
    }
    redraw();
  });
  gallery.controls.querySelector(".reset")?.addEventListener("click", () => {
    const slider = gallery.controls.querySelector("input[type=range]");
    delete slider.dataset.moved;
    slider.value = slider.dataset.threshold;
    slider.nextElementSibling.textContent = slider.dataset.threshold;
    redraw();
  });
  gallery.figures.forEach(figure => {
    figure.querySelector(".stacks").addEventListener("click", () => enlarge(gallery, figure));
  });
  return gallery;
});
const drawAll = () => {
  return Promise.all(galleries.flatMap(gallery => gallery.figures.map(figure => draw(gallery, figure))));
};
addEventListener("beforeprint", drawAll);
// What is printed cannot wait for pictures to be read.
addEventListener("load", () => requestIdleCallback(drawAll));

// One picture, enlarged. The controls of its gallery move into the dialog as long as it is open.

const dialog = document.querySelector("dialog");
const stage = dialog.querySelector(".stage");
let enlarged = null;

async function enlarge(gallery, figure) {
  const isOther = enlarged?.figure !== figure;
  if (isOther) {
    const shown = document.createElement("div");
    shown.className = "shown";
    shown.append(...all(".stack", figure).map(stack => stack.cloneNode(true)));
    stage.replaceChildren(shown);
  }
  enlarged = { gallery, figure, width: isOther ? 0 : enlarged.width };
  if (!dialog.open) {
    dialog.querySelector(".place").append(gallery.controls);
    dialog.showModal();
    stage.focus();
  }
  if (isOther) zoom(0);
  const about = await draw(gallery, figure, stage);
  dialog.querySelector(".about").textContent = `${figure.dataset.name}. ${about}`;
}

function zoom(factor) {
  const stacks = all(".stack", stage);
  const { width, height } = stacks[0].querySelector("canvas");
  const fitting = Math.min((stage.clientWidth - 6 * stacks.length) / stacks.length, (stage.clientHeight * width) / height);
  const most = Math.max(16 * width, 8 * fitting);
  enlarged.width = factor ? Math.min(Math.max(enlarged.width * factor, 60), most) : fitting;
  stage.style.setProperty("--width", enlarged.width);
}

function step(by) {
  const { gallery, figure } = enlarged;
  const count = gallery.figures.length;
  enlarge(gallery, gallery.figures[(gallery.figures.indexOf(figure) + by + count) % count]);
}

dialog.addEventListener("click", event => {
  const { step: by, zoom: factor } = event.target.dataset;
  if (by) step(Number(by));
  if (factor) zoom(Number(factor));
  if (event.target.classList.contains("close")) dialog.close();
});
dialog.addEventListener("keydown", event => {
  const isControl = event.target.matches("input");
  const does = {
    ArrowLeft: () => step(-1), ArrowRight: () => step(1),
    "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(0.8), 0: () => zoom(0),
  };
  if (isControl && event.key.startsWith("Arrow")) return; // they move the threshold
  const mode = all("input[type=radio]", dialog)[Number(event.key) - 1];
  if (mode) mode.click();
  else if (does[event.key]) does[event.key]();
  else return;
  event.preventDefault();
});
dialog.addEventListener("close", () => {
  enlarged.gallery.element.prepend(enlarged.gallery.controls);
  enlarged.figure.querySelector(".stacks").focus();
  enlarged = null;
});
