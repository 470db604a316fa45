// Size against quality and speed: every preset at the chosen context, slots and cache.
"use strict";

/**
 * @typedef {{index: number, name: string, bytes: number, state: "whole" | "moved" | "none", low: number, high: number,
 *   value: number, front: boolean}} Point
 */

/** @param {Position} at @param {(preset: number) => void} choose */
function drawFront(at, choose) {
  const cells = data.presets.map((_, i) => cellAt([i, at[1], at[2], at[3]]));
  const front = frontOf(cells);
  const quality = data.presets.flatMap((preset, i) => preset.kld === null ? [] : [
    point(i, cells, front, preset.kld, preset.low ?? preset.kld, preset.high ?? preset.kld)]);
  const figure = data.generates ? (/** @type {Cell} */ cell) => cell.decode : (/** @type {Cell} */ cell) => cell.prefill;
  const speed = cells.flatMap((cell, i) => {
    const found = cell && figure(cell);
    return found ? [point(i, cells, front, found[0], found[1], found[2])] : [];
  });
  const what = data.generates ? "decode, tokens/s: more is better" : "prompt, tokens/s: more is better";
  const box = byId("front");
  const width = widths.front, half = width >= 680 ? (width - 32) / 2 : width;
  box.replaceChildren(
    panel(quality, { width: half, title: "damage, mean KLD in nats: less is better", log: true, chosen: at[0], choose }),
    panel(speed, { width: half, title: what, log: false, chosen: at[0], choose }));
  whenOpen("front-table", () => frontTable(cells, front, what));
}

/**
 * @param {number} index @param {(Cell | null)[]} cells @param {boolean[]} front
 * @param {number} value @param {number} low @param {number} high @returns {Point}
 */
function point(index, cells, front, value, low, high) {
  const preset = data.presets[index];
  return { index, name: preset?.name ?? "", bytes: preset?.bytes ?? 0, state: cells[index]?.state ?? "none", value, low, high,
    front: front[index] ?? false };
}

/** Presets that fit and that no other is better than in size, damage and speed. @param {(Cell | null)[]} cells */
function frontOf(cells) {
  const goods = data.presets.map((preset, i) => [-preset.bytes, -(preset.kld ?? 1e9), cells[i]?.decode?.[0] ?? cells[i]?.prefill?.[0] ?? 0]);
  const fits = cells.map((cell) => cell !== null && !cell.lacks);
  return goods.map((mine, i) => (fits[i] ?? false) && !goods.some((other, j) => j !== i && fits[j]
    && other.every((good, k) => good >= (mine[k] ?? 0)) && other.some((good, k) => good > (mine[k] ?? 0))));
}

/**
 * @param {Point[]} points
 * @param {{width: number, title: string, log: boolean, chosen: number, choose: (preset: number) => void}} how
 */
function panel(points, { width, title, log, chosen, choose }) {
  const height = 260, left = 46, top = 34, bottom = height - 42, right = width - 14;
  const picture = frame(width, height, `${title}, by size: ${points.map((p) => `${p.name} ${p.value}`).join(", ")}`);
  picture.append(svg("text", { x: 0, y: 14, class: "strong" }, title));
  if (!points.length) {
    picture.append(svg("text", { x: 0, y: 44, class: "muted" }, "not known for this host or these presets"));
    return picture;
  }
  const largest = Math.max(...points.map((p) => p.bytes)), unit = largest >= 2 * GIB ? GIB : MIB;
  const sizes = ticks((largest / unit) * 1.12, width < 420 ? 4 : 6), values = points.flatMap((p) => [p.value, p.low, p.high]);
  const farthest = Math.max(largest * 1.12, (sizes[sizes.length - 1] ?? 1) * unit);
  const x = (/** @type {number} */ bytes) => left + (bytes / farthest) * (right - left);
  const floor = log ? Math.log10(Math.max(Math.min(...values.filter((v) => v > 0)), 1e-6)) - 0.1 : 0;
  const roof = log ? Math.log10(Math.max(...values)) + 0.1 : Math.max(...values) * 1.05;
  const y = (/** @type {number} */ value) => {
    const on = log ? Math.log10(Math.max(value, 10 ** floor)) : value;
    return bottom - ((on - floor) / (roof - floor)) * (bottom - top);
  };
  for (const tick of log ? decades(floor, roof) : ticks(roof, 4)) {
    picture.append(svg("line", { x1: left, x2: right, y1: y(tick), y2: y(tick), class: "grid" }),
      svg("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end", class: "muted" }, DIGITS.format(tick)));
  }
  for (const tick of sizes) {
    picture.append(svg("text", { x: x(tick * unit), y: bottom + 16, "text-anchor": "middle", class: "muted" }, String(tick)));
  }
  picture.append(svg("text", { x: (left + right) / 2, y: bottom + 34, "text-anchor": "middle", class: "muted" },
    `weights in the file, ${unit === GIB ? "GiB" : "MiB"}`));
  const path = [...points].sort((a, b) => a.bytes - b.bytes).filter((p) => p.front).map((p) => `${x(p.bytes).toFixed(1)} ${y(p.value).toFixed(1)}`);
  if (path.length > 1) picture.append(svg("path", { d: `M${path.join("L")}`, class: "front" }));
  const dots = points.map((p) => ({ x: x(p.bytes), y: y(p.value) }));
  const ends = points.map((p) => ({ low: y(p.low), high: y(p.high) }));
  const line = path.map((pair) => pair.split(" ").map(Number));
  const labels = placed(points, dots, ends, line, { left, right, top, bottom, chosen });
  points.forEach((p, i) => {
    const dot = dots[i] ?? { x: 0, y: 0 }, label = labels[i] ?? dot;
    const group = svg("g", { class: `point ${p.state}${p.front ? "" : " behind"}${p.index === chosen ? " chosen" : ""}` });
    group.append(svg("line", { x1: dot.x, x2: dot.x, y1: y(p.low), y2: y(p.high), class: "whisker" }));
    if (p.index === chosen) group.append(svg("circle", { cx: dot.x, cy: dot.y, r: 10, class: "ring" }));
    group.append(svg("circle", { cx: dot.x, cy: dot.y, r: 5.5, class: "dot" }));
    if (p.state === "none") group.append(svg("path", { d: `M${dot.x - 3} ${dot.y - 3}l6 6m0 -6l-6 6`, class: "cross" }));
    group.append(svg("text", { x: label.x, y: label.y, class: p.index === chosen ? "strong" : "muted" }, p.name));
    group.append(svg("title", {}, `${p.name}: ${p.value} (${p.low} to ${p.high}), ${mib(p.bytes)} MiB, ${STATES[p.state]}`));
    group.addEventListener("click", () => choose(p.index));
    picture.append(group);
  });
  return picture;
}

/** 1, 2 and 5 of each decade between two exponents. @param {number} low @param {number} high */
function decades(low, high) {
  const found = [];
  const factors = high - low > 3.2 ? [1] : high - low > 1.8 ? [1, 3] : [1, 2, 5];
  for (let power = Math.floor(low); power <= Math.ceil(high); power++) {
    for (const factor of factors) {
      const value = factor * 10 ** power;
      if (Math.log10(value) >= low && Math.log10(value) <= high) found.push(Number(value.toPrecision(1)));
    }
  }
  return found;
}

/**
 * Labels beside their points where nothing lies under them.
 * @param {Point[]} points @param {{x: number, y: number}[]} dots @param {{low: number, high: number}[]} ends
 * @param {number[][]} line @param {{left: number, right: number, top: number, bottom: number, chosen: number}} box
 */
function placed(points, dots, ends, line, box) {
  /** @type {{x: number, y: number, w: number, h: number}[]} */
  const taken = dots.flatMap((dot, i) => {
    const r = points[i]?.index === box.chosen ? 11 : 7;
    return [{ x: dot.x - r, y: dot.y - r, w: 2 * r, h: 2 * r },
      { x: dot.x - 1, y: ends[i]?.high ?? dot.y, w: 2, h: (ends[i]?.low ?? dot.y) - (ends[i]?.high ?? dot.y) }];
  });
  for (const [i, [x2 = 0, y2 = 0]] of line.entries()) {
    const [x1 = x2, y1 = y2] = line[i - 1] ?? [];
    for (let t = 0; t < 1; t += 0.1) taken.push({ x: x1 + t * (x2 - x1) - 1, y: y1 + t * (y2 - y1) - 1, w: 2, h: 2 });
  }
  return points.map((p, i) => {
    const dot = dots[i] ?? { x: 0, y: 0 }, end = ends[i] ?? { low: dot.y, high: dot.y }, w = widthOf(p.name, TEXT, p.index === box.chosen) + 3;
    const tries = [[dot.x + 13, dot.y + 4], [dot.x - w - 12, dot.y + 4], [dot.x - w / 2, end.high - 7], [dot.x - w / 2, end.low + 14],
      [dot.x + 8, dot.y - 9], [dot.x + 8, dot.y + 17], [dot.x - w - 6, dot.y - 9], [dot.x - w - 6, dot.y + 17],
      ...[26, 40, 54, 68].flatMap((far) => [[dot.x - w / 2, dot.y - far], [dot.x - w / 2, dot.y + far], [dot.x + 8, dot.y - far],
        [dot.x - w - 6, dot.y - far], [dot.x + 8, dot.y + far], [dot.x - w - 6, dot.y + far]])];
    const free = (/** @type {number[]} */ [x = 0, y = 0]) => x >= box.left && x + w <= box.right + 12 && y - 11 >= box.top - 12
      && y <= box.bottom - 2 && !taken.some((t) => x < t.x + t.w && t.x < x + w && y - 11 < t.y + t.h && t.y < y + 3);
    const [x = 0, y = 0] = tries.find(free) ?? tries[0] ?? [];
    taken.push({ x, y: y - 11, w, h: 14 });
    return { x, y };
  });
}

/** @param {(Cell | null)[]} cells @param {boolean[]} front @param {string} what */
function frontTable(cells, front, what) {
  const figure = data.generates ? (/** @type {Cell} */ cell) => cell.decode : (/** @type {Cell} */ cell) => cell.prefill;
  return table("Presets at this context, cache and slots", [
    ["preset", "weights, MiB", "mean KLD, nats", what.split(":")[0] ?? "", "layers", "worth its size"],
    ...data.presets.map((preset, i) => {
      const cell = cells[i] ?? null, speed = cell && figure(cell);
      return [preset.name, mib(preset.bytes), preset.value ? `${preset.value}${preset.range ? ` (${preset.range})` : ""}` : "no figure yet",
        speed ? `${rate(speed[0])} (${rate(speed[1])} to ${rate(speed[2])})` : "not known", cell?.place ?? "–",
        !cell || cell.lacks ? "does not fit" : front[i] ? "yes" : "no: another is better in all"];
    })]);
}
