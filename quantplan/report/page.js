// The sliders: where they stand, what they say, and what is drawn anew.
"use strict";

const AXES = /** @type {const} */ (["preset", "cache", "slots", "context"]);
const plan = cellAt(data.planAt);
const inputs = AXES.map((axis) => /** @type {HTMLInputElement} */ (byId(axis)));

/** @returns {Position} */
function position() {
  const [a = 0, b = 0, c = 0, d = 0] = inputs.map((input) => Number(input.value));
  return [a, b, c, d];
}

/** A value of an axis in words; short for the marks. @param {number} axis @param {number} index @param {boolean} short */
function said(axis, index, short) {
  if (axis === 0) return data.presets[index]?.name ?? "";
  if (axis === 1) return data.caches[index] ?? "";
  const n = (axis === 2 ? data.slots : data.contexts)[index] ?? 0;
  if (axis === 2) return short ? String(n) : `${n} slot${n === 1 ? "" : "s"}`;
  return short ? tokens(n) : `${whole(n)} tokens a slot`;
}

/** @param {number} axis @param {number} index */
function move(axis, index) {
  const input = inputs[axis];
  if (!input) return;
  input.value = String(index);
  draw();
}

/** How wide the drawings are: asked once for all, since asking between changes makes the browser lay out anew. */
const widths = { memory: 0, layers: 0, contexts: 0, front: 0, marks: 0 };
function measure() {
  for (const name of /** @type {const} */ (["memory", "layers", "contexts", "front"])) {
    widths[name] = Math.max(byId(name).clientWidth, 200);
  }
  widths.marks = Math.max(byId("context-marks").clientWidth, 200);
}

/** Fills a folded table when somebody looks. @param {string} id @param {() => Node} make */
function whenOpen(id, make) {
  const box = byId(id), fold = box.closest("details");
  const fill = () => box.replaceChildren(make());
  if (!fold) return;
  fold.ontoggle = () => { if (fold.open) fill(); };
  if (fold.open) fill();
  else box.replaceChildren();
}

function draw() {
  const at = position();
  drawSliders(at);
  const cell = cellAt(at);
  const own = at.every((value, i) => value === data.planAt[i]);
  byId("position").textContent = at.map((index, axis) => (axis === 1 ? `cache ${said(1, index, false)}` : said(axis, index, false))).join(" · ");
  byId("is-plan").textContent = own ? "This is the plan." : "Not the plan:";
  byId("reset").toggleAttribute("disabled", own);
  byId("command").textContent = commandFor(at);
  byId("state").setAttribute("class", `state ${cell?.state ?? "none"}`);
  byId("verdict").textContent = cell ? verdict(cell) : "Does not fit, whatever the host's memory.";
  byId("moves").textContent = cell && plan ? moves(cell, plan) : "";
  drawTiles(at, cell);
  byId("charts").hidden = !cell;
  if (cell) {
    drawMemory(cell);
    drawLayers(cell, plan ?? cell);
  }
  drawContexts(at, (context) => move(3, context));
  drawFront(at, (preset) => move(0, preset));
}

/** The marks under each slider, made once. @type {HTMLElement[][]} */
const marks = inputs.map((input, axis) => {
  const count = Number(input.max) + 1;
  const made = Array.from({ length: count }, (_, i) => {
    const mark = html("span", { class: "mark" }, html("i"), html("b"));
    mark.style.left = `calc(10px + (100% - 20px) * ${count > 1 ? i / (count - 1) : 0})`;
    mark.addEventListener("click", () => move(axis, i));
    return mark;
  });
  byId(`${input.id}-marks`).replaceChildren(...made);
  return made;
});

/** @param {Position} at */
function drawSliders(at) {
  inputs.forEach((input, axis) => {
    const chosen = at[axis] ?? 0, text = said(axis, chosen, false), own = marks[axis] ?? [];
    byId(`${input.id}-value`).textContent = text;
    input.setAttribute("aria-valuetext", `${text}: ${STATES[stateAt(at)]}`);
    const room = (widths.marks - 20) / Math.max(own.length - 1, 1), labels = own.map((_, i) => said(axis, i, true));
    const every = Math.max(1, Math.ceil(Math.max(...labels.map((label) => widthOf(label, 11.5, true) + 3)) / room));
    own.forEach((mark, i) => {
      const there = /** @type {Position} */ (at.map((value, k) => (k === axis ? i : value)));
      const shown = i === chosen || ((own.length - 1 - i) % every === 0 && Math.abs(i - chosen) >= every);
      mark.className = `mark ${stateAt(there)}${i === chosen ? " chosen" : ""}`;
      if (mark.lastChild) mark.lastChild.textContent = shown ? labels[i] ?? "" : "";
    });
  });
}

/** @param {Position} at @param {Cell | null} cell */
function drawTiles(at, cell) {
  const plain = /^(f16|bf16|f32)$/.test(data.caches[at[1]] ?? "");
  const preset = data.presets[at[0]], slots = data.slots[at[2]] ?? 1;
  /** @type {[string, string, string, string][]} */
  const told = [];
  const [noValue = "", why = ""] = cell?.lacks === "memory" || !cell ? ["–", "does not fit"] : ["not known", "a bandwidth is not known"];
  const speed = (/** @type {string} */ id, /** @type {string} */ name, /** @type {Figure | null} */ figure) =>
    told.push([id, name, figure ? `${rate(figure[0])} tokens/s` : noValue, figure ? `${rate(figure[1])} to ${rate(figure[2])}` : why]);
  if (data.generates) speed("decode", "Decode, context full", cell?.decode ?? null);
  speed("prefill", "Prompt, context full", cell?.prefill ?? null);
  if (slots > 1 && cell?.total && data.generates) told.push(["total", "All slots together", `${rate(cell.total)} tokens/s`, `${slots} slots decoding`]);
  told.push(["quality", "Expected damage", preset?.value ? `${preset.value} nats` : "no figure yet", preset?.range ? `${preset.range}, mean KLD${plain ? "" : "; a quantized cache adds its own"}` : ""]);
  told.push(["size", "Weights in the file", `${mib(preset?.bytes ?? 0)} MiB`, preset?.name ?? ""]);
  if (cell) told.push(["prompt-cache", "Prompt cache in RAM", cell.lacks ? "–" : `${mibDown(cell.promptCache)} MiB`, "at most, while serving"]);
  byId("tiles").replaceChildren(...told.map(([id, name, value, beside]) => html("div", { "data-tile": id },
    html("dt", {}, name), html("dd", {}, html("strong", {}, ...withUnit(value)), html("span", {}, beside)))));
  byId("objection").textContent = preset?.objection ? `${preset.name} is advised against: ${preset.objection}` : "";
  byId("place").textContent = cell ? `${cell.lacks === "memory" ? "With enough RAM" : "Layers"}: ${cell.place}.` : "";
  const origins = [cell?.decode, cell?.prefill].flatMap((figure) => (figure ? [data.origins[figure[3]] ?? ""] : []));
  byId("origins").textContent = [...new Set(origins)].map((one) => `Speed: ${one}.`)
    .concat(preset?.origin ? [`Damage: ${preset.origin}.`] : []).join(" ");
}

/** A number, and its unit in smaller letters. @param {string} text */
function withUnit(text) {
  const at = text.indexOf(" ");
  return at < 0 || !/\d/.test(text) ? [text] : [text.slice(0, at), html("small", {}, text.slice(at))];
}

/** Waits for a frame, so that many events make one picture. */
let waiting = false;
function drawSoon() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    draw();
  });
}

for (const input of inputs) input.addEventListener("input", drawSoon);
byId("reset").addEventListener("click", () => {
  inputs.forEach((input, axis) => { input.value = String(data.planAt[axis]); });
  draw();
  inputs[3]?.focus();
});
const theme = /** @type {HTMLSelectElement} */ (byId("theme"));
theme.addEventListener("change", () => { document.documentElement.dataset["theme"] = theme.value; });
new ResizeObserver(() => {
  measure();
  drawSoon();
}).observe(byId("result"));

/** @type {HTMLDetailsElement[]} */
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details")].filter((one) => !one.open);
  for (const one of opened) one.open = true;
});
addEventListener("afterprint", () => {
  for (const one of opened) one.open = false;
});
document.documentElement.classList.add("drawn");
measure();
draw();
