// Memory by device, where the layers lie, and context against memory.
"use strict";

const TEXT = 12;

/** A bar of each device: what the plan takes, what stays free, the reserve, what others hold. @param {Cell} cell */
function drawMemory(cell) {
  const box = byId("memory");
  const many = cell.needs.length > 3, charts = byId("charts");
  if (many !== charts.classList.contains("many")) {
    charts.classList.toggle("many", many);
    measure();
  }
  const width = widths.memory, bar = 26, row = 62, right = width - 1;
  const shown = cell.needs.filter((need) => need.total > 0);
  const picture = frame(width, shown.length * row - 4, describeMemory(cell));
  shown.forEach((need, i) => {
    const device = data.devices[need.device];
    if (!device) return;
    const held = heldBy(cell, need.device), most = Math.max(device.capacity, held);
    const x = (/** @type {number} */ bytes) => (bytes / most) * right;
    const top = i * row + 22;
    picture.append(
      svg("text", { x: 0, y: top - 8, class: "strong" }, device.name),
      svg("text", { x: right, y: top - 8, "text-anchor": "end", class: held > device.usable ? "over" : "muted" },
        `${mib(held)} of ${mibDown(device.usable)} MiB${width > 320 ? " that may be used" : ""}`),
      svg("rect", { x: 0, y: top, width: right, height: bar, class: "room" }));
    let from = 0;
    [...need.parts, held - need.total].forEach((part, k) => {
      if (part <= 0) return;
      const start = x(from), end = x(from + part);
      from += part;
      picture.append(svg("rect", { x: start, y: top, width: Math.max(end - start - (end - start > 3 ? 1 : 0), 0.5),
        height: bar, class: `part${k}` }));
    });
    const free = x(Math.min(device.free, most)), usable = x(Math.min(device.usable, most)), all = x(device.capacity);
    if (all > free) picture.append(svg("rect", { x: free, y: top, width: all - free, height: bar, class: "others" }));
    if (held <= device.usable && free > usable) {
      picture.append(svg("rect", { x: usable, y: top, width: free - usable, height: bar, fill: "url(#reserve)" }));
    }
    if (held > device.usable) {
      picture.append(svg("rect", { x: usable, y: top, width: x(held) - usable, height: bar, fill: "url(#over)" }));
    }
    picture.append(svg("line", { x1: usable, x2: usable, y1: top - 4, y2: top + bar + 4, class: "limit" }));
  });
  box.replaceChildren(picture);
  byId("memory-table").replaceChildren(memoryTable(cell));
}

/** @param {Cell} cell */
function describeMemory(cell) {
  return cell.needs.map((need) => `${data.devices[need.device]?.name}: ${mib(need.total)} of ` +
    `${mibDown(data.devices[need.device]?.usable ?? 0)} MiB`).join("; ");
}

/** The same numbers in a table, which is the legend too. @param {Cell} cell */
function memoryTable(cell) {
  const used = PARTS.map((_, k) => k).filter((k) => cell.needs.some((need) => need.parts[k]));
  const devices = cell.needs.map((need) => data.devices[need.device]).filter((one) => one !== undefined);
  const rows = [["MiB", ...devices.map((one) => one.name)]];
  /** @type {(Node | string)[][]} */
  const told = rows;
  for (const k of used) {
    told.push([swatch(`part${k}`, PARTS[k] ?? ""), ...cell.needs.map((need) => mib(need.parts[k] ?? 0))]);
  }
  told.push([html("strong", {}, "in all"), ...cell.needs.map((need) => html("strong", {}, mib(need.total)))]);
  told.push([swatch("line", "may be used"), ...devices.map((one) => mibDown(one.usable))]);
  told.push([swatch("hatched", "reserve"), ...devices.map((one) => mib(one.margin))]);
  if (devices.some((one) => one.capacity > one.free)) {
    told.push([swatch("others", "in use by others"), ...devices.map((one) => mib(one.capacity - one.free))]);
  }
  told.push(["capacity", ...devices.map((one) => mibDown(one.capacity))]);
  const made = table("Memory by device and part, in MiB", told);
  made.dataset["promptCache"] = String(cell.promptCache);
  return made;
}

/** @param {string} kind @param {string} text */
function swatch(kind, text) {
  const icon = svg("svg", { width: 12, height: 12, "aria-hidden": "true" });
  if (kind === "line") icon.append(svg("line", { x1: 6, x2: 6, y1: 0, y2: 12, class: "limit" }));
  else if (kind === "hatched") icon.append(svg("rect", { width: 12, height: 12, fill: "url(#reserve)" }));
  else icon.append(svg("rect", { width: 12, height: 12, rx: 2, class: kind }));
  return html("span", { class: "swatch" }, icon, text);
}

/** Every layer as a box on its device; what lies elsewhere than in the plan is marked. @param {Cell} cell @param {Cell} plan */
function drawLayers(cell, plan) {
  const box = byId("layers");
  const width = widths.layers, mine = layerDevices(cell), its = layerDevices(plan);
  const step = width / mine.length, gap = step > 6 ? 2 : step > 3 ? 1 : 0;
  const picture = frame(width, 44, `${cell.place}. ${moves(cell, plan)}`);
  mine.forEach((device, i) => {
    const split = device !== HOST && i < cell.moe, x = i * step;
    picture.append(svg("rect", { x, y: 0, width: step - gap, height: 22, class: device === HOST ? "host" : `gpu gpu${device % 4}` }));
    if (split) picture.append(svg("rect", { x, y: 11, width: step - gap, height: 11, class: "host" }));
    if (device !== its[i] || (split !== (i < plan.moe && its[i] !== HOST))) {
      picture.append(svg("rect", { x, y: 25, width: step - gap, height: 3, class: "moved" }));
    }
  });
  picture.append(svg("text", { x: 0, y: 42, class: "muted" }, "0"),
    svg("text", { x: width - 1, y: 42, class: "muted", "text-anchor": "end" }, "head"),
    svg("text", { x: width / 2, y: 42, class: "muted", "text-anchor": "middle" }, "layer"));
  box.replaceChildren(picture);
  const names = [...new Set(mine)].map((i) =>
    swatch(i === HOST ? "host" : `gpu gpu${i % 4}`, i === HOST ? "RAM, computed by the CPU" : data.devices[i]?.name ?? ""));
  if (cell.moe) names.push(swatch("host", "half a box: a layer's experts in RAM"));
  if (moves(cell, plan)) names.push(swatch("moved", "elsewhere than in the plan"));
  byId("layers-legend").replaceChildren(...names);
}

/** A column of each context on each device, with the limit. @param {Position} at @param {(context: number) => void} choose */
function drawContexts(at, choose) {
  const box = byId("contexts");
  const cells = data.contexts.map((_, i) => cellAt([at[0], at[1], at[2], i]));
  const panels = data.devices.map((_, i) => i).filter((i) => i === HOST ? hostMatters(cells) : cells.some((c) => c && heldBy(c, i)));
  const all = widths.contexts, width = panels.length > 2 && all >= 680 ? (all - 32) / 2 : all;
  const height = 168, left = 46;
  box.replaceChildren(...panels.map((device) => contextPanel(cells, device, at[3], { width, height, left, choose })));
  whenOpen("contexts-table", () => contextTable(cells));
  byId("contexts-limit").textContent = limitText(at, cells);
}

/** The host is worth a panel where it holds more than what every plan leaves there. @param {(Cell | null)[]} cells */
function hostMatters(cells) {
  const usable = data.devices[HOST]?.usable ?? 0;
  return HOST === 0 || cells.some((cell) => cell && (cell.state !== "whole" || heldBy(cell, HOST) > usable / 10));
}

/**
 * @param {(Cell | null)[]} cells @param {number} index @param {number} chosen
 * @param {{width: number, height: number, left: number, choose: (context: number) => void}} size
 */
function contextPanel(cells, index, chosen, { width, height, left, choose }) {
  const device = data.devices[index];
  if (!device) throw new Error("no such device");
  const bottom = height - 34, top = 26, step = (width - left) / cells.length, bar = Math.min(step * 0.72, 56);
  const most = Math.min(Math.max(device.usable * 1.06, ...cells.map((c) => (c ? heldBy(c, index) : 0))), device.usable * 1.3);
  const unit = most >= 2 * GIB ? GIB : MIB, name = unit === GIB ? "GiB" : "MiB";
  const y = (/** @type {number} */ bytes) => bottom - (Math.min(bytes, most) / most) * (bottom - top);
  const picture = frame(width, height, `${device.name}: memory at each context, ${mibDown(device.usable)} MiB may be used`);
  picture.append(svg("text", { x: 0, y: 12, class: "strong" }, device.name),
    svg("text", { x: width - 1, y: 12, class: "muted", "text-anchor": "end" }, `limit ${mibDown(device.usable)} MiB`));
  for (const tick of ticks(most / unit, 4)) {
    const at = y(tick * unit);
    picture.append(svg("line", { x1: left, x2: width, y1: at, y2: at, class: "grid" }),
      svg("text", { x: left - 6, y: at + 4, "text-anchor": "end", class: "muted" }, tick ? `${tick} ${name}` : "0"));
  }
  cells.forEach((cell, i) => {
    const x = left + i * step + (step - bar) / 2;
    const group = svg("g", { class: i === chosen ? "column chosen" : "column", "data-context": i });
    group.append(svg("rect", { x: left + i * step, y: top, width: step, height: height - top, class: "hit" }));
    const need = cell?.needs.find((one) => one.device === index);
    let from = 0;
    for (const [k, part] of (need?.parts ?? []).entries()) {
      if (part && y(from) - y(from + part) > 0.2) {
        group.append(svg("rect", { x, y: y(from + part), width: bar, height: y(from) - y(from + part), class: `part${k}` }));
      }
      from += part;
    }
    if (cell && from > device.usable) {
      group.append(svg("rect", { x, y: y(from), width: bar, height: y(device.usable) - y(from), fill: "url(#over)" }));
    }
    group.append(svg("text", { x: x + bar / 2, y: bottom + 15, "text-anchor": "middle", class: i === chosen ? "strong" : "muted" },
      tokens(data.contexts[i] ?? 0)));
    const mark = !cell || cell.lacks ? "✕" : cell.state === "moved" && HOST ? "◐" : "●";
    group.append(svg("text", { x: x + bar / 2, y: bottom + 30, "text-anchor": "middle", class: `mark ${cell?.state ?? "none"}` }, mark));
    group.append(svg("title", {}, `${whole(data.contexts[i] ?? 0)} tokens: ${mib(from)} MiB, ${STATES[cell?.state ?? "none"]}`));
    group.addEventListener("click", () => choose(i));
    picture.append(group);
  });
  picture.append(svg("line", { x1: left, x2: width, y1: y(device.usable), y2: y(device.usable), class: "limit" }));
  return picture;
}

/** @param {(Cell | null)[]} cells */
function contextTable(cells) {
  const rows = cells.map((cell, i) => [whole(data.contexts[i] ?? 0),
    ...data.devices.map((_, device) => (cell ? mib(heldBy(cell, device)) : "–")), cell?.place ?? "–", STATES[cell?.state ?? "none"]]);
  return table("Memory at each context, in MiB", [["tokens a slot", ...data.devices.map((one) => `${one.name}, MiB`), "layers", ""], ...rows]);
}

/** How far the context reaches. @param {Position} at @param {(Cell | null)[]} cells */
function limitText(at, cells) {
  const own = at.slice(0, 3).every((value, i) => value === data.planAt[i]);
  const last = whole(data.contexts[data.contexts.length - 1] ?? 0);
  /** @type {(test: (cell: Cell) => boolean, exact: number | null) => string} */
  const reach = (test, exact) => {
    const good = cells.map((cell) => cell !== null && test(cell)).lastIndexOf(true);
    if (good === cells.length - 1) return `${last} tokens, the longest shown`;
    if (own && exact) return `${whole(exact)} tokens`;
    return good < 0 ? "" : `${whole(data.contexts[good] ?? 0)} tokens (${whole(data.contexts[good + 1] ?? 0)} is too long)`;
  };
  const fits = reach((cell) => !cell.lacks, data.fitsUpTo);
  const all = HOST ? reach((cell) => cell.state === "whole", data.wholeUpTo) : "";
  const told = fits ? `With this preset, cache and these slots it fits up to ${fits}.` : "No context fits with this preset, cache and these slots.";
  return all && fits ? `${told} Every layer stays on the GPU${HOST > 1 ? "s" : ""} up to ${all}.` : told;
}

/** An empty picture with its description. @param {number} width @param {number} height @param {string} label */
function frame(width, height, label) {
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, "font-size": TEXT });
}
