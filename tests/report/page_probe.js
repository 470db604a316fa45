// What a test asks of the page as it is drawn: text that overlaps, is cut off or is hard to read.
"use strict";
(() => {
  const shown = (/** @type {Element} */ el) => {
    const box = el.getBoundingClientRect(), style = getComputedStyle(el);
    return box.width > 0 && box.height > 0 && style.visibility !== "hidden" && !el.closest(".hidden, .skip");
  };
  const inScroll = (/** @type {Element} */ el) => el.closest(".scroll") !== null;

  /** Colours as [r, g, b, a]. */
  const colour = (/** @type {string} */ text) => {
    const found = text.match(/[\d.]+/g)?.map(Number) ?? [0, 0, 0, 0];
    return [found[0] ?? 0, found[1] ?? 0, found[2] ?? 0, found[3] ?? 1];
  };
  const luminance = (/** @type {number[]} */ rgb) => {
    const [r, g, b] = rgb.slice(0, 3).map((v) => { const c = v / 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * (r ?? 0) + 0.7152 * (g ?? 0) + 0.0722 * (b ?? 0);
  };
  const ratio = (/** @type {number[]} */ a, /** @type {number[]} */ b) => {
    const [low = 0, high = 0] = [luminance(a), luminance(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  const behind = (/** @type {Element | null} */ el) => {
    for (let at = el; at; at = at.parentElement) {
      const found = colour(getComputedStyle(at).backgroundColor);
      if ((found[3] ?? 0) > 0.99) return found;
    }
    return [255, 255, 255, 1];
  };

  const texts = () => {
    const found = [];
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node = walk.nextNode(); node; node = walk.nextNode()) {
      const el = node.parentElement, text = node.textContent?.trim() ?? "";
      if (!el || !text || ["SCRIPT", "STYLE", "NOSCRIPT", "OPTION"].includes(el.tagName) || el.tagName === "title") continue;
      if (shown(el)) found.push({ el, text, svg: el instanceof SVGElement });
    }
    return found;
  };

  const contrast = () => texts().filter(({ el }) => !(el instanceof HTMLButtonElement && el.disabled)).flatMap(({ el, text, svg }) => {
    const style = getComputedStyle(el), size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const found = ratio(colour(svg ? style.fill : style.color), behind(el));
    return found < (large ? 3 : 4.5) ? [`${text.slice(0, 30)}: ${found.toFixed(2)}`] : [];
  });

  /** Texts of one picture, or labels of one slider, that lie on each other. */
  const overlaps = () => {
    const groups = [...document.querySelectorAll("svg[role=img]")].map((svg) => [...svg.querySelectorAll("text")])
      .concat([...document.querySelectorAll(".marks")].map((marks) => [...marks.querySelectorAll("b")]));
    return groups.flatMap((group) => {
      const boxes = group.filter((el) => el.textContent && shown(el)).map((el) => ({ text: el.textContent, box: el.getBoundingClientRect() }));
      return boxes.flatMap((a, i) => boxes.slice(i + 1).flatMap((b) => {
        const w = Math.min(a.box.right, b.box.right) - Math.max(a.box.left, b.box.left);
        const h = Math.min(a.box.bottom, b.box.bottom) - Math.max(a.box.top, b.box.top);
        return w > 1 && h > 3 ? [`${a.text} and ${b.text}`] : [];
      }));
    });
  };

  /** What leaves the window, or is cut off by what it lies in. */
  const cut = () => {
    const width = document.documentElement.clientWidth, said = [];
    if (document.documentElement.scrollWidth > width) said.push(`the page is ${document.documentElement.scrollWidth} wide`);
    for (const { el, text } of texts()) {
      if (inScroll(el)) continue;
      const box = el.getBoundingClientRect();
      if (box.left < -0.5 || box.right > width + 0.5) said.push(`${text.slice(0, 30)} leaves the window`);
      if (el instanceof HTMLElement && el.scrollWidth > el.clientWidth + 1 && getComputedStyle(el).overflowX !== "visible"
        && el.clientWidth) said.push(`${text.slice(0, 30)} is cut off`);
    }
    return said;
  };

  /** Pictures' colours against the card they lie on. */
  const pictures = () => {
    const root = getComputedStyle(document.documentElement), card = getComputedStyle(/** @type {Element} */ (document.querySelector(".card"))).backgroundColor;
    const names = ["part0", "part1", "part2", "part3", "part4", "gpu0", "gpu1", "gpu2", "gpu3", "host", "over", "good", "warn", "accent", "control"];
    const probe = document.body.appendChild(document.createElement("i"));
    const said = names.flatMap((name) => {
      probe.style.color = root.getPropertyValue(`--${name}`);
      const found = ratio(colour(getComputedStyle(probe).color), colour(card));
      return found < 3 ? [`${name}: ${found.toFixed(2)}`] : [];
    });
    probe.remove();
    return said;
  };

  const small = () => texts().filter(({ el }) => parseFloat(getComputedStyle(el).fontSize) < 11).map(({ text }) => text);

  return { contrast: contrast(), overlaps: overlaps(), cut: cut(), pictures: pictures(), small: small() };
})()
