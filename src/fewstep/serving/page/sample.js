// Sampling: several models side by side, from the same seeds and conditions.

import * as api from "./api.js";
import { conditions, options } from "./conditions.js";
import { tiles } from "./detail.js";
import { check, el, field, latest, milliseconds, number, numeric, randomSeed, say } from "./dom.js";
import * as store from "./store.js";

export function build(panel, models, limits) {
  const rows = models.map((model, i) => row(model, i < 2, limits));
  const seed = number({ min: 0, max: Number.MAX_SAFE_INTEGER, step: 1, value: 0, required: true });
  const lock = check("Keep this seed", false);
  const count = number({ min: 1, max: limits.samples, step: 1, value: Math.min(16, limits.samples), required: true });
  const place = el("div", {});
  const results = el("div", { class: "results" });
  const stop = el("button", { type: "button", hidden: true, onclick: () => running.stop() }, "Stop");
  const keep = el("button", { type: "button", hidden: true, onclick: () => say(`${store.keep(...last)} pictures were added to the gallery.`) }, "Keep all");
  const running = latest();
  const kept = new Map();
  let form = null, last = [], first = true;

  const chosen = () => rows.filter((one) => one.on());
  function renew() {
    form = conditions(chosen().map((one) => one.model), kept);
    place.replaceChildren(...(form.whole ? [form.whole] : []));
  }
  for (const one of rows) one.changed(renew);
  renew();

  async function run() {
    if (!chosen().length) return say("Choose at least one model.", true);
    if (!first && !lock.box.checked) seed.value = randomSeed();
    const byHand = !first;
    first = false;
    const signal = running.start();
    stop.hidden = false;
    say("Sampling.");
    const cards = chosen().map((one) => ({ ...one, card: el("article", { class: "result" }, el("h2", {}, one.model.name)) }));
    const made = [];
    try {
      for (const { model, read, card } of cards) {
        const asked = { model: model.name, seed: numeric(seed), n: numeric(count), ...read(), ...(await form.read(model)) };
        const answer = await api.post("sample", asked, signal);
        if (signal.aborted) return undefined;
        card.append(...shown(answer, asked.n));
        made.push(...answer.pictures);
      }
      results.replaceChildren(...cards.map(({ card }) => card));
      last = made;
      keep.hidden = !made.length;
      if (byHand) results.scrollIntoView({ block: "nearest" });
      say(`${cards.map(({ model }) => model.name).join(" and ")}: done, seed ${seed.value}.`);
    } catch (error) {
      if (error.name !== "AbortError") say(error.message, true);
      else if (signal.aborted) say("Stopped.");
    } finally {
      if (!signal.aborted) stop.hidden = true;
    }
    return undefined;
  }
  running.stop = ((stopped) => () => { stopped(); stop.hidden = true; })(running.stop);

  panel.append(el("div", { class: "split" },
    el("form", { "aria-label": "What to sample", onsubmit: (event) => { event.preventDefault(); run(); } },
      el("fieldset", {}, el("legend", {}, models.length > 1 ? "Models" : "Model"), ...rows.map((one) => one.whole)),
      el("fieldset", {}, el("legend", {}, "Noise"),
        el("div", { class: "row" }, field("Seed", seed), field("Samples", count)), lock.whole),
      place,
      el("div", { class: "actions" }, el("button", { class: "primary" }, "Sample"), stop, keep)),
    results));
  run();
}

function row(model, on, limits) {
  const own = options(model, limits);
  const tick = check(model.name, on);
  const whole = el("div", { class: "model" }, tick.whole, own.whole);
  const show = () => { own.whole.hidden = !tick.box.checked; whole.classList.toggle("off", !tick.box.checked); };
  show();
  tick.box.addEventListener("change", show);
  return {
    model, whole, read: own.read,
    on: () => tick.box.checked,
    changed: (tell) => tick.box.addEventListener("change", tell),
  };
}

/** The measured time, notes, and pictures or numbers of an answer. */
export function shown(answer, n) {
  const calls = `${answer.calls} network call${answer.calls === 1 ? "" : "s"} a sample`;
  const time = `${milliseconds(answer.seconds)} measured${n > 1 ? ` for ${n}` : ""}`;
  const parts = [el("p", { class: "facts" }, `${calls}, ${time}`)];
  for (const note of answer.notes) parts.push(el("p", { class: "hint" }, `Note: ${note}.`));
  if (answer.pictures.length) parts.push(tiles(answer.pictures));
  if (answer.values) parts.push(el("pre", { class: "values", tabindex: 0, "aria-label": "Values" }, JSON.stringify(answer.values)));
  return parts;
}
