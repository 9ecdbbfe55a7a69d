// Editing: a picture, a task, and what the model makes of it.

import * as api from "./api.js";
import { board as makeBoard } from "./board.js";
import { conditions } from "./conditions.js";
import { offer, tiles } from "./detail.js";
import { check, el, field, latest, milliseconds, number, numeric, randomSeed, say, select, source } from "./dom.js";

const TASKS = {
  inpaint: ["Inpaint", "Draw over what the model should draw anew."],
  strokes: ["Strokes to picture", "Paint roughly; the model makes a picture that follows it."],
  vary: ["Vary", "The model draws variations of the picture."],
  upscale: ["Upscale", "The picture is made larger; its means stay as they are."],
  colourise: ["Colourise", "The brightness stays, and the model draws the colour."],
  deblur: ["Deblur", "The picture is taken for a blurred one."],
  denoise: ["Denoise", "Noise is removed in one call."],
};
const RENOISED = ["strokes", "vary", "denoise"];
const GRAPHS = ["onnx", "openvino"]; // engines without gradients
const DRAWN = ["inpaint", "strokes"];
const LARGEST = 256;

export function build(panel, all, limits, open) {
  const models = all.filter((one) => one.edits.length);
  if (!models.length) {
    panel.append(el("p", { class: "empty" }, "None of these models can edit pictures."));
    return;
  }
  const model = select(models.map((one) => [one.name, one.name]));
  const task = select([]);
  const upload = el("input", { type: "file", accept: "image/*" });
  const whole = check("Keep its own size", false, () => place());
  const outside = check("Draw anew outside of the marks instead", false);
  const search = check("Search the noise (slower, follows the picture better)", false);
  const colour = el("input", { type: "color", value: "#ffffff" });
  const factor = number({ min: 2, max: 8, step: 1, value: 2, required: true });
  const width = number({ min: 0.1, max: 20, step: "any", value: 1, required: true });
  const sigma = number({ min: 0.001, step: "any", placeholder: "by itself" });
  const steps = number({ min: 1, max: limits.steps, step: 1, placeholder: "by itself" });
  const guidance = number({ step: "any", placeholder: 1 });
  const seed = number({ min: 0, max: Number.MAX_SAFE_INTEGER, step: 1, value: 0, required: true });
  const lock = check("Keep this seed", true);
  const count = number({ min: 1, max: Math.min(16, limits.samples), step: 1, value: 4, required: true });
  const hint = el("p", { class: "hint" }), cost = el("p", { class: "facts" });
  const options = el("div", { class: "row" }), place_ = el("div", {}), result = el("div", {});
  const stop = el("button", { type: "button", hidden: true, onclick: () => { running.stop(); stop.hidden = true; } }, "Stop");
  const empty = el("p", { class: "empty" }, "Choose a picture, take a sample, or open one and choose Edit.");
  const tools = el("div", { class: "actions", hidden: true });
  const running = latest();
  const board = makeBoard(() => {});
  const kept = new Map();
  let picture = null, form = null;

  const current = () => models.find(({ name }) => name === model.value);
  const fits = { factor: ["upscale"], width: ["deblur"], sigma: ["vary", "denoise"] };

  function renewModel() {
    const one = current(), before = task.value;
    task.replaceChildren(...one.edits.map((name) => el("option", { value: name }, TASKS[name][0])));
    if (one.edits.includes(before)) task.value = before;
    form = conditions([{ ...one, conditions: one.conditions.filter(({ kind }) => kind !== "mask") }], kept);
    place_.replaceChildren(...(form.whole ? [form.whole] : []));
    renewTask();
  }

  function renewTask() {
    const name = task.value, one = current();
    const solves = one.kind === "ode";
    const boxes = [["Factor", factor, "factor"], ["Blur in pixels", width, "width"], ["Noise level", sigma, "sigma"]]
      .filter(([, , key]) => fits[key].includes(name)).map(([label, box]) => field(label, box));
    if (!RENOISED.includes(name) || (solves && name !== "denoise")) boxes.push(field("Calls", steps));
    if (one.guidance) boxes.push(field("Guidance", guidance));
    options.replaceChildren(...boxes);
    hint.textContent = TASKS[name][1];
    outside.whole.hidden = name !== "inpaint";
    search.whole.hidden = solves || one.codec !== null || GRAPHS.includes(one.engine) || RENOISED.includes(name);
    colour.parentElement.hidden = name !== "strokes";
    board.state.mode = name === "strokes" ? "strokes" : "mask";
    board.whole.classList.toggle("strokes", name === "strokes");
    place();
  }

  /** Put the picture on the board, in the size that the model and the task ask for. */
  function place() {
    if (!picture) return;
    const [, rows, columns] = current().shape;
    const by = task.value === "upscale" ? Math.max(1, numeric(factor) ?? 2) : 1;
    let size = [Math.max(1, Math.round(columns / by)), Math.max(1, Math.round(rows / by))];
    let cut = [0, 0, picture.width, picture.height];
    if (whole.box.checked) {
      const scale = Math.min(1, LARGEST / Math.max(picture.width, picture.height));
      size = [picture.width, picture.height].map((side, i) => Math.max(1, Math.round(side * scale)));
    } else {
      const scale = Math.min(picture.width / size[0], picture.height / size[1]);
      const [w, h] = size.map((side) => side * scale);
      cut = [(picture.width - w) / 2, (picture.height - h) / 2, w, h];
    }
    const fitted = el("canvas", { width: size[0], height: size[1] });
    fitted.getContext("2d").drawImage(picture, ...cut, 0, 0, ...size);
    board.load(fitted, ...size);
    empty.hidden = true;
    tools.hidden = false;
    board.whole.hidden = false;
    const draws = DRAWN.includes(task.value);
    for (const part of [board.help, board.live, clear]) part.hidden = !draws;
  }

  async function take(from) {
    const bitmap = el("img", { alt: "" });
    bitmap.src = from;
    try {
      await bitmap.decode();
    } catch {
      say("This file is no picture that the browser can show.", true);
      return;
    }
    const [w, h] = [bitmap.naturalWidth, bitmap.naturalHeight];
    picture = el("canvas", { width: w, height: h });
    picture.getContext("2d").drawImage(bitmap, 0, 0);
    result.replaceChildren();
    cost.textContent = "";
    place();
    board.whole.scrollIntoView({ block: "nearest" });
  }

  async function run() {
    const one = current(), name = task.value;
    if (!picture) return say("Choose a picture first.", true);
    if (name === "inpaint" && !board.drawn()) return say("Mark first what the model should draw anew.", true);
    if (!lock.box.checked) seed.value = randomSeed();
    const signal = running.start();
    stop.hidden = false;
    say("Editing.");
    try {
      const asked = {
        model: one.name, task: name, seed: numeric(seed), n: numeric(count),
        image: name === "strokes" ? board.painted() : board.picture(),
        mask: name === "inpaint" ? board.mask(outside.box.checked) : undefined,
        guidance: guidance.isConnected ? numeric(guidance) : undefined,
        search: !search.whole.hidden && search.box.checked,
        steps: steps.isConnected ? numeric(steps) : undefined,
        factor: factor.isConnected ? numeric(factor) : undefined,
        width: width.isConnected ? numeric(width) : undefined,
        sigma: sigma.isConnected ? numeric(sigma) : undefined,
        ...(await form.read(one)),
      };
      const answer = await api.post("edit", asked, signal);
      if (signal.aborted) return undefined;
      result.replaceChildren(tiles(answer.pictures), ...answer.notes.map((note) => el("p", { class: "hint" }, `Note: ${note}.`)));
      cost.textContent = `${answer.calls} network call${answer.calls === 1 ? "" : "s"}, ${milliseconds(answer.seconds)} measured for ${asked.n}`;
      result.scrollIntoView({ block: "nearest" });
      say(`${TASKS[name][0]}: done, seed ${seed.value}.`);
    } catch (error) {
      if (error.name !== "AbortError") say(error.message, true);
      else say("Stopped.");
    } finally {
      if (!signal.aborted) stop.hidden = true;
    }
    return undefined;
  }

  async function takeSample() {
    try {
      const asked = { model: model.value, seed: numeric(seed), ...(await form.read(current())) };
      const { pictures } = await api.post("sample", asked);
      await take(source(pictures[0].png));
      form.classed(pictures[0].made.label);
      say("The sample is on the board.");
    } catch (error) {
      say(error.message, true);
    }
  }

  function start() {
    const [, rows, columns] = current().shape;
    picture = el("canvas", { width: columns, height: rows });
    const context = picture.getContext("2d");
    context.fillStyle = "#000000";
    context.fillRect(0, 0, columns, rows);
    place();
  }

  const clear = el("button", { type: "button", onclick: board.clear }, "Clear the marks");
  tools.append(clear);
  colour.addEventListener("input", () => { board.state.colour = colour.value; });
  board.state.colour = colour.value;
  board.whole.hidden = true;
  board.help.hidden = true;
  upload.addEventListener("change", async () => {
    if (!upload.files[0]) return;
    const url = URL.createObjectURL(upload.files[0]);
    await take(url);
    URL.revokeObjectURL(url);
  });
  model.addEventListener("change", renewModel);
  task.addEventListener("change", renewTask);
  factor.addEventListener("change", place);

  panel.append(el("div", { class: "split" },
    el("form", { "aria-label": "What to edit", onsubmit: (event) => { event.preventDefault(); run(); } },
      el("fieldset", {}, el("legend", {}, "Picture"), field("A file of yours", upload), whole.whole,
        el("div", { class: "actions" },
          el("button", { type: "button", onclick: takeSample }, "Take a sample"),
          el("button", { type: "button", onclick: start }, "Start empty"))),
      el("fieldset", {}, el("legend", {}, "Edit"), field("Model", model), field("Task", task), hint,
        field("Colour", colour), outside.whole, options, search.whole),
      place_,
      el("fieldset", {}, el("legend", {}, "Noise"), el("div", { class: "row" }, field("Seed", seed), field("Results", count)), lock.whole),
      el("div", { class: "actions" }, el("button", { class: "primary" }, "Edit"), stop)),
    el("div", { class: "easel" },
      el("figure", {}, el("figcaption", {}, "Before"), empty, board.whole, board.help, board.live, tools),
      el("figure", {}, el("figcaption", {}, "After"), cost, result))));

  offer("Edit", ({ made }) => made.model !== undefined, (chosen) => {
    if (models.some(({ name }) => name === chosen.made.model)) model.value = chosen.made.model;
    open();
    renewModel();
    form.classed(chosen.made.label);
    take(source(chosen.png));
  });
  renewModel();
}
