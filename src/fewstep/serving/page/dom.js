// Elements. All text becomes text nodes, so nothing that a server or a user says is read as HTML.

export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked") made[name] = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

let count = 0;

/** A control under its label. */
export function field(label, control, hint = null) {
  control.id ||= `field-${(count += 1)}`;
  const parts = [el("label", { for: control.id }, label), control];
  if (hint) {
    const note = el("p", { class: "hint", id: `${control.id}-hint` }, hint);
    control.setAttribute("aria-describedby", note.id);
    parts.push(note);
  }
  return el("div", {}, ...parts);
}

export function check(label, checked, onchange) {
  const box = el("input", { type: "checkbox", checked, onchange });
  return { box, whole: el("label", { class: "check" }, box, label) };
}

export function number(attributes) {
  return el("input", { type: "number", inputmode: "decimal", autocomplete: "off", ...attributes });
}

export function select(options, value) {
  const made = el("select", {}, ...options.map(([key, text]) => el("option", { value: key }, text)));
  if (value !== undefined) made.value = value;
  return made;
}

/** The number in a control, or undefined where it is empty. */
export function numeric(control) {
  return control.value.trim() === "" ? undefined : Number(control.value);
}

export function say(text, bad = false) {
  const line = document.getElementById("status");
  line.textContent = text;
  line.classList.toggle("bad", bad);
}

export const source = (png) => `data:image/png;base64,${png}`;

export function image(picture, alt) {
  const made = el("img", { src: source(picture.png), alt, decoding: "async" });
  const sharpen = () => made.classList.toggle("pixels", made.naturalWidth < 200);
  made.addEventListener("load", sharpen);
  return made;
}

export function milliseconds(seconds) {
  const value = 1000 * seconds;
  if (value >= 1000) return `${(value / 1000).toFixed(2)} s`;
  return `${value >= 10 ? Math.round(value) : value.toPrecision(2)} ms`;
}

export function randomSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000;
}

export async function base64(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  let text = "";
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return btoa(text);
}

/** Run one thing at a time: a newer one aborts the older, which then stops on the server, too. */
export function latest() {
  let current = null;
  return {
    start() {
      current?.abort();
      current = new AbortController();
      return current.signal;
    },
    stop: () => current?.abort(),
  };
}
