// One picture, what made it, and what can be done with it.

import { el, image, milliseconds, source } from "./dom.js";
import * as store from "./store.js";

const NAMES = { digest: "weights (sha256)", fewstep: "version", n: "made together", index: "number" };
const uses = [];

/** Something to do with a picture, such as to edit it. */
export const offer = (label, fits, act) => uses.push({ label, fits, act });

export function title({ made }) {
  const parts = [made.model, made.verb, made.seed === undefined ? null : `seed ${made.seed}`];
  if (made.index !== undefined) parts.push(`number ${made.index}`);
  if (made.label !== undefined) parts.push(`class ${made.label}`);
  if (made.fraction !== undefined) parts.push(`at ${made.fraction}`);
  return parts.filter(Boolean).join(", ");
}

export function fileName({ made }) {
  const parts = [made.model, made.verb, made.seed, made.index].filter((part) => part !== undefined);
  return `${parts.join("-").replace(/[^\w.-]+/g, "-")}.png`;
}

export function download(picture) {
  return el("a", { class: "button", href: source(picture.png), download: fileName(picture) }, "Download");
}

function shown(key, value) {
  if (key === "seconds") return milliseconds(value);
  if (Array.isArray(value)) return value.map((one) => (typeof one === "number" ? Number(one.toPrecision(4)) : one)).join(", ");
  return String(value);
}

export function facts(made) {
  const parts = Object.entries(made).flatMap(([key, value]) => [
    el("dt", {}, NAMES[key] ?? key), el("dd", {}, shown(key, value)),
  ]);
  return el("dl", {}, ...parts);
}

export function open(picture) {
  const dialog = document.getElementById("detail");
  const kept = el("button", { type: "button" });
  const name = () => (kept.textContent = store.has(picture) ? "Remove from the gallery" : "Keep in the gallery");
  kept.addEventListener("click", () => {
    if (store.has(picture)) store.drop(picture);
    else store.keep(picture);
    name();
  });
  name();
  const large = image(picture, title(picture));
  large.classList.add("picture");
  const actions = uses.filter((use) => use.fits(picture)).map((use) =>
    el("button", { type: "button", onclick: () => { dialog.close(); use.act(picture); } }, use.label));
  dialog.replaceChildren(
    el("h2", { id: "detail-title" }, title(picture)),
    el("div", { class: "detail" }, large, facts(picture.made)),
    el("div", { class: "actions" }, download(picture), kept, ...actions,
      el("button", { type: "button", onclick: () => dialog.close() }, "Close")),
  );
  dialog.showModal();
}

export function tiles(pictures) {
  const list = el("ul", { class: `tiles${pictures.length <= 4 ? " few" : ""}` });
  for (const picture of pictures) {
    const tile = el("button", { type: "button", class: "tile", onclick: () => open(picture) }, image(picture, title(picture)));
    list.append(el("li", {}, tile));
  }
  return list;
}
