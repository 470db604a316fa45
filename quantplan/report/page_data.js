// The grid that the planner worked out, and what it says of one position of the sliders.
"use strict";

/**
 * @typedef {{name: string, capacity: number, free: number, margin: number, usable: number, unified: boolean}} Device
 * @typedef {{name: string, bytes: number, objection: string | null, kld: number | null, low: number | null,
 *   high: number | null, value: string | null, range: string | null, origin: string | null}} Preset
 * @typedef {[number, number, number, number]} Figure value, low, high, index of its origin
 * @typedef {[string | null, [number, number][], number, Figure | null, Figure | null, number, number, number]} RawCell
 * @typedef {[number, number, number, number]} Position preset, cache, slots, context
 * @typedef {{base: string, generates: boolean, presets: Preset[], caches: string[], slots: number[],
 *   contexts: number[], devices: Device[], planAt: Position, layers: number, wholeUpTo: number | null,
 *   fitsUpTo: number | null, memory: number[][], places: [string, [number, number][], number][],
 *   origins: string[], cells: (RawCell | null)[]}} Data
 * @typedef {{device: number, parts: number[], total: number}} Need
 * @typedef {{lacks: string | null, needs: Need[], place: string, counts: [number, number][], moe: number,
 *   decode: Figure | null, prefill: Figure | null, total: number, promptCache: number, ubatch: number,
 *   state: "whole" | "moved" | "none"}} Cell
 */

/** @type {Data} */
const data = JSON.parse(byId("data").textContent ?? "");
const HOST = data.devices.length - 1;
const PARTS = ["weights", "KV cache", "compute", "output", "driver"];
const STATES = { whole: HOST ? "fits, all layers on the GPU" : "fits", moved: "fits, some layers in RAM", none: "does not fit" };

/** @param {Position} at @returns {Cell | null} */
function cellAt([preset, cache, slots, context]) {
  const index = ((preset * data.caches.length + cache) * data.slots.length + slots) * data.contexts.length + context;
  const raw = data.cells[index];
  if (!raw) return null;
  const [lacks, indices, placeIndex, decode, prefill, total, promptCache, ubatch] = raw;
  const [place, counts, moe] = data.places[placeIndex] ?? ["", [], 0];
  const needs = indices.map(([device, row]) => {
    const parts = data.memory[row] ?? [];
    return { device, parts, total: parts.reduce((sum, part) => sum + part, 0) };
  });
  const onHost = HOST > 0 && (moe > 0 || counts.some(([device]) => device === HOST));
  const state = lacks ? "none" : onHost ? "moved" : "whole";
  return { lacks, needs, place, counts, moe, decode, prefill, total, promptCache, ubatch, state };
}

/** @param {Position} at @returns {"whole" | "moved" | "none"} */
function stateAt(at) {
  return cellAt(at)?.state ?? "none";
}

/** What a device must hold, what shares its memory included. @param {Cell} cell @param {number} device */
function heldBy(cell, device) {
  return cell.needs.reduce((sum, need) => {
    const shares = device === HOST && need.device !== HOST && data.devices[need.device]?.unified;
    return need.device === device || shares ? sum + need.total : sum;
  }, 0);
}

/** The verdict in a sentence or two. @param {Cell} cell */
function verdict(cell) {
  if (cell.lacks === "disk") return "Does not fit: its file has no room on the disk.";
  if (cell.lacks === "speed") return "Slower than the least speed that was asked for.";
  const used = data.devices.map((device, i) => ({ device, held: heldBy(cell, i) })).filter(({ held }) => held > 0);
  const short = used.filter(({ device, held }) => held > device.usable);
  if (cell.lacks) {
    const told = short.map(({ device, held }) =>
      `${device.name} would need ${mib(held)} MiB, ${mibDown(device.usable)} MiB may be used`);
    return `Does not fit: ${told.join("; ") || "no memory is left"}.`;
  }
  const spare = used.map(({ device, held }) => `${mibDown(device.usable - held)} MiB on ${device.name}`);
  return `Fits. To spare beside the reserve: ${spare.join(", ")}.`;
}

/** Which layers lie elsewhere than in the plan. @param {Cell} cell @param {Cell} plan */
function moves(cell, plan) {
  const mine = layerDevices(cell), its = layerDevices(plan);
  const moved = mine.map((device, i) => (device === its[i] ? -1 : i)).filter((i) => i >= 0);
  const said = [];
  if (moved.length) {
    const to = [...new Set(moved.map((i) => data.devices[mine[i] ?? HOST]?.name ?? ""))].join(" and ");
    said.push(`${moved.length} of ${data.layers} layers (${ranges(moved)}) lie on ${to} instead`);
  }
  if (cell.moe !== plan.moe) said.push(`experts of ${cell.moe} instead of ${plan.moe} layers on the host`);
  return said.length ? `Against the plan, ${said.join("; ")}.` : "";
}

/** The device of each layer, the head last. @param {Cell} cell @returns {number[]} */
function layerDevices(cell) {
  return cell.counts.flatMap(([device, count]) => Array.from({ length: count }, () => device));
}

/** 0–4, 7, head. @param {number[]} layers */
function ranges(layers) {
  const head = layers.includes(data.layers - 1);
  const plain = layers.filter((i) => i < data.layers - 1);
  /** @type {[number, number][]} */
  const runs = [];
  for (const layer of plain) {
    const last = runs[runs.length - 1];
    if (last && last[1] === layer - 1) last[1] = layer;
    else runs.push([layer, layer]);
  }
  const told = runs.map(([low, high]) => (low === high ? String(low) : `${low}–${high}`));
  return [...told, ...(head ? ["head"] : [])].join(", ");
}

/** The command that says the same. @param {Position} at */
function commandFor([preset, cache, slots, context]) {
  const cell = cellAt([preset, cache, slots, context]);
  return `${data.base} --quant ${data.presets[preset]?.name} --kv ${data.caches[cache]} --ctx ` +
    `${data.contexts[context]} --parallel ${data.slots[slots]} --ubatch ${cell?.ubatch ?? 512}`;
}
