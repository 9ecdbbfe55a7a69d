// The gallery: what was kept, newest first.

import { tiles } from "./detail.js";
import { el } from "./dom.js";
import * as store from "./store.js";

export function build(panel) {
  const body = el("div", {});
  const clear = el("button", { type: "button", onclick: store.clear }, "Remove all");
  panel.append(el("div", { class: "actions" }, clear), el("p", { class: "facts" }, "This browser keeps these pictures; the server does not."), body);
  function show() {
    const pictures = store.all();
    clear.disabled = !pictures.length;
    body.replaceChildren(pictures.length ? tiles(pictures) : el("p", { class: "empty" }, "Nothing is kept yet. Open a picture and keep it, or keep all samples."));
  }
  store.watch(show);
  show();
}
