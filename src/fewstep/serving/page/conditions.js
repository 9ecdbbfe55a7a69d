// The part of a form that a model's declared conditions make.

import { base64, el, field, number, numeric, select } from "./dom.js";

const MANY = 12;

/**
 * Controls for the conditions of some models; `read(model)` gives what one of them is asked.
 * `kept` holds the controls that were made before, so that what was typed outlives another choice.
 */
export function conditions(models, kept = new Map()) {
  const known = new Map();
  const once = (key, make) => kept.get(key) ?? kept.set(key, make()).get(key);
  for (const model of models) {
    for (const one of model.conditions) {
      if (!known.has(one.name)) known.set(one.name, once(JSON.stringify(one), () => control(one)));
    }
  }
  const parts = [...known.values()].map((one) => one.whole);
  let prompt = null;
  if (models.some((model) => model.prompts)) {
    const made = once("prompt", () => {
      const box = el("textarea", { maxlength: 4000 });
      return { box, whole: field("Prompt", box) };
    });
    prompt = made.box;
    parts.unshift(made.whole);
  }
  const whole = parts.length ? el("fieldset", {}, el("legend", {}, "Conditions"), ...parts) : null;

  async function read(model) {
    const asked = { cond: {} };
    if (model.prompts && prompt?.value.trim()) asked.prompt = prompt.value.trim();
    for (const one of model.conditions) {
      const value = await known.get(one.name).read();
      if (value === undefined) continue;
      if (one.name === "label") asked.label = value;
      else if (one.kind === "mask") asked.length = value;
      else asked.cond[one.name] = value;
    }
    return asked;
  }
  /** Choose a class, as that of a picture. */
  function classed(label) {
    const box = known.get("label")?.box;
    if (box) box.value = label ?? "";
  }
  return { whole, read, classed };
}

function control(one) {
  const title = one.name === "label" ? "Class" : one.name === "mask" ? "Length" : one.name;
  if (one.kind === "label") {
    const names = one.names ?? Array.from({ length: one.classes }, (_, i) => String(i));
    const options = [["", "each in turn"], ...names.map((name, i) => [i, name]), [one.classes, "none"]];
    const box = select(options);
    return { box, whole: field(title, box), read: () => numeric(box) };
  }
  if (one.kind === "mask") {
    const box = number({ min: 1, step: 1, placeholder: one.length ?? "" });
    return { whole: field(title, box), read: () => numeric(box) };
  }
  if (one.kind === "image") {
    const box = el("input", { type: "file", accept: "image/*" });
    const read = async () => (box.files[0] ? base64(box.files[0]) : undefined);
    return { whole: field(`${title} (a picture)`, box), read };
  }
  const total = one.kind === "vector" ? one.shape.reduce((a, b) => a * b, 1) : Infinity;
  if (one.kind === "vector" && one.shape.length === 1 && total <= MANY) return vector(title, total);
  const box = el("textarea", { spellcheck: "false" });
  const shape = [...(one.length ? [`1 to ${one.length}`] : []), ...(one.shape ?? [])].join(" x ");
  const hint = `Numbers as JSON, of the shape ${shape}. Empty means none.`;
  const read = () => {
    if (!box.value.trim()) return undefined;
    try {
      const text = box.value.trim();
      return JSON.parse(text.startsWith("[") ? text : `[${text}]`);
    } catch {
      throw new Error(`The field ${title} holds no list of numbers.`);
    }
  };
  return { whole: field(title, box, hint), read };
}

/** A few numbers; none of them, or all of them, empty ones as 0. */
function vector(title, total) {
  const boxes = Array.from({ length: total }, (_, i) => number({ step: "any", "aria-label": `${title} ${i + 1}` }));
  const whole = el("div", { role: "group", "aria-label": title },
    el("span", { class: "label" }, title), el("div", { class: "row" }, ...boxes));
  const read = () => {
    const values = boxes.map(numeric);
    return values.every((value) => value === undefined) ? undefined : values.map((value) => value ?? 0);
  };
  return { whole, read };
}

/** What only one model is asked: steps, solver, guidance and gamma. */
export function options(model, limits) {
  const listed = Object.keys(model.times);
  const steps = number({ min: 1, max: limits.steps, step: 1, value: model.steps });
  const solver = model.solvers.length ? select(model.solvers.map((name) => [name, name])) : null;
  const allowed = model.guidance;
  const guidance = allowed && number({ min: allowed.min, max: allowed.max, step: "any", placeholder: allowed.embedded ? allowed.min : 1 });
  const gamma = model.gamma === null ? null : number({ min: 0, max: 1, step: "any", placeholder: model.gamma });
  const hint = listed.length ? `Made for ${listed.join(", ")}.` : null;
  const boxes = [["Steps", steps], ["Solver", solver], ["Guidance", guidance], ["Noise share", gamma]];
  const whole = el("div", {},
    el("div", { class: "row" }, ...boxes.filter(([, box]) => box).map(([label, box]) => field(label, box))),
    hint && el("p", { class: "hint" }, hint));
  const read = () => ({
    steps: numeric(steps),
    solver: solver?.value,
    guidance: guidance ? numeric(guidance) : undefined,
    gamma: gamma ? numeric(gamma) : undefined,
  });
  return { whole, read };
}
