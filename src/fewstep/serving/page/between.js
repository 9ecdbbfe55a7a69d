// Interpolation between the noises of two seeds: all pictures in one request, chosen by a slider.

import * as api from "./api.js";
import { conditions, options } from "./conditions.js";
import { download, offer, tiles, title } from "./detail.js";
import { el, field, image, latest, milliseconds, number, numeric, randomSeed, say, select } from "./dom.js";
import * as store from "./store.js";

export function build(panel, all, limits, open) {
  const models = all.filter((one) => one.drawable && !one.conditions.some(({ kind }) => kind === "mask") && one.shape.length > 1);
  if (!models.length) {
    panel.append(el("p", { class: "empty" }, "None of these models makes pictures between two others."));
    return undefined;
  }
  const model = select(models.map((one) => [one.name, one.name]));
  const seeds = [0, 1].map((value) => number({ min: 0, max: Number.MAX_SAFE_INTEGER, step: 1, value, required: true }));
  const frames = number({ min: 2, max: limits.samples, step: 1, value: Math.min(21, limits.samples), required: true });
  const slider = el("input", { type: "range", min: 0, max: 1, step: 1, value: 0 });
  const place = el("div", { class: "stack" }), shown = el("div", {}), strip = el("div", {}), cost = el("p", { class: "facts" });
  const running = latest();
  const kept = new Map();
  let own = null, form = null, pictures = [];

  const current = () => models.find(({ name }) => name === model.value);

  function renew() {
    const one = current();
    own = options({ ...one, solvers: [], gamma: null }, limits);
    form = conditions([one], kept);
    place.replaceChildren(own.whole, ...(form.whole ? [form.whole] : []));
  }

  async function run() {
    const one = current(), signal = running.start();
    try {
      const asked = { model: one.name, seeds: seeds.map(numeric), frames: numeric(frames), ...own.read(), ...(await form.read(one)) };
      delete asked.solver;
      delete asked.gamma;
      const answer = await api.post("interpolate", asked, signal);
      if (signal.aborted) return;
      pictures = answer.pictures;
      slider.max = pictures.length - 1;
      slider.value = Math.floor(pictures.length / 2);
      strip.replaceChildren(tiles(pictures));
      cost.textContent = `${answer.calls} network call${answer.calls === 1 ? "" : "s"} a picture, ${milliseconds(answer.seconds)} measured for ${pictures.length}`;
      show();
      say(`From seed ${asked.seeds[0]} to seed ${asked.seeds[1]}: done.`);
    } catch (error) {
      if (error.name !== "AbortError") say(error.message, true);
    }
  }

  function show() {
    const picture = pictures[Number(slider.value)];
    if (!picture) return;
    const way = `${Math.round(100 * picture.made.fraction)} % of the way`;
    slider.setAttribute("aria-valuetext", way);
    const large = image(picture, title(picture));
    large.classList.add("shown");
    shown.replaceChildren(el("figure", {}, large, el("figcaption", {}, way),
      el("div", { class: "actions" }, download(picture),
        el("button", { type: "button", onclick: () => { store.keep(picture); say("The picture was added to the gallery."); } }, "Keep in the gallery"))));
  }

  slider.addEventListener("input", show);
  model.addEventListener("change", () => { renew(); run(); });
  const fresh = el("button", { type: "button", onclick: () => { for (const box of seeds) box.value = randomSeed(); run(); } }, "New seeds");
  panel.append(el("div", { class: "split" },
    el("form", { "aria-label": "What to interpolate", onsubmit: (event) => { event.preventDefault(); run(); } },
      field("Model", model),
      el("div", { class: "row" }, field("From seed", seeds[0]), field("To seed", seeds[1]), field("Pictures", frames)),
      place,
      el("div", { class: "actions" }, el("button", { class: "primary" }, "Interpolate"), fresh)),
    el("div", { class: "between" }, field("Way from one seed to the other", slider), cost, shown, strip)));
  offer("Interpolate from here", ({ made }) => made.seed !== undefined && !made.index && !made.first && models.some(({ name }) => name === made.model), ({ made }) => {
    model.value = made.model;
    seeds[0].value = made.seed;
    renew();
    open();
    run();
  });
  renew();
  return () => { if (!pictures.length) run(); };
}
