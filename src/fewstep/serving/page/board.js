// A board to draw on over a picture, by pointer or by keyboard: a mask, or strokes of colour.

import { el } from "./dom.js";

const MASK = "rgb(214 69 65)";
const HELP = "Draw with the pointer. By keyboard: arrows move, Space lowers or lifts the pen, E switches to the eraser and back, [ and ] change the brush.";

export function board(onchange) {
  const under = el("canvas"), over = el("canvas", { tabindex: -1 });
  const cursor = el("div", { class: "cursor", hidden: true });
  const state = { mode: "mask", colour: "#000000", brush: 1, erase: false, down: false, x: 0, y: 0, last: null };
  const help = el("p", { class: "hint", id: "board-help" }, HELP);
  const live = el("p", { class: "hint", "aria-live": "polite" });
  const whole = el("div", {
    class: "board", tabindex: 0, role: "application", "aria-roledescription": "drawing board",
    "aria-label": "Picture to draw on", "aria-describedby": "board-help",
  }, under, over, cursor);
  const ink = () => over.getContext("2d", { willReadFrequently: true });

  function load(drawable, width, height) {
    for (const canvas of [under, over]) Object.assign(canvas, { width, height });
    under.getContext("2d").drawImage(drawable, 0, 0, width, height);
    Object.assign(state, { x: Math.floor(width / 2), y: Math.floor(height / 2), down: false, last: null });
    state.brush = Math.max(1, Math.round(Math.min(width, height) / 8));
    clear();
  }

  function clear() {
    ink().clearRect(0, 0, over.width, over.height);
    state.down = false;
    place();
    onchange();
  }

  function dot(x, y) {
    const context = ink();
    context.globalCompositeOperation = state.erase ? "destination-out" : "source-over";
    context.fillStyle = state.mode === "mask" ? MASK : state.colour;
    const size = state.brush, left = Math.round(x - size / 2 + 0.5), top = Math.round(y - size / 2 + 0.5);
    if (size < 5) context.fillRect(left, top, size, size);
    else {
      context.beginPath();
      context.arc(x + 0.5, y + 0.5, size / 2, 0, 2 * Math.PI);
      context.fill();
    }
  }

  function line(x, y) {
    const from = state.last ?? { x, y };
    const steps = Math.max(1, Math.ceil(Math.hypot(x - from.x, y - from.y)));
    for (let i = 1; i <= steps; i += 1) dot(from.x + ((x - from.x) * i) / steps, from.y + ((y - from.y) * i) / steps);
    state.last = { x, y };
    onchange();
  }

  function at(event) {
    const box = over.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * over.width - 0.5, ((event.clientY - box.top) / box.height) * over.height - 0.5];
  }

  over.addEventListener("pointerdown", (event) => {
    over.setPointerCapture(event.pointerId);
    state.last = null;
    line(...at(event));
  });
  over.addEventListener("pointermove", (event) => { if (event.buttons && state.last) line(...at(event)); });
  over.addEventListener("pointerup", () => { state.last = null; });

  const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  whole.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in MOVES) {
      const step = event.shiftKey ? Math.max(2, Math.round(over.width / 8)) : Math.max(1, Math.round(over.width / 64));
      const [dx, dy] = MOVES[event.key].map((d) => d * step);
      state.x = Math.min(over.width - 1, Math.max(0, state.x + dx));
      state.y = Math.min(over.height - 1, Math.max(0, state.y + dy));
      if (state.down) line(state.x, state.y);
    } else if (event.key === " ") {
      state.down = !state.down;
      state.last = null;
      if (state.down) line(state.x, state.y);
    } else if (event.key === "e" || event.key === "E") state.erase = !state.erase;
    else if (event.key === "[") state.brush = Math.max(1, state.brush - 1);
    else if (event.key === "]") state.brush = Math.min(over.width, state.brush + 1);
    else return;
    event.preventDefault();
    place();
    const pen = state.erase ? "eraser" : "pen";
    live.textContent = `Column ${state.x + 1}, row ${state.y + 1}, ${pen} ${state.down ? "down" : "up"}, brush ${state.brush}.`;
  });
  whole.addEventListener("focus", () => { cursor.hidden = !over.width; place(); });
  whole.addEventListener("blur", () => { cursor.hidden = true; state.down = false; });

  function place() {
    cursor.style.left = `${(100 * state.x) / over.width}%`;
    cursor.style.top = `${(100 * state.y) / over.height}%`;
    cursor.style.width = `${Math.max(2, 100 / over.width)}%`;
    cursor.style.height = `${Math.max(2, 100 / over.height)}%`;
    cursor.classList.toggle("down", state.down);
  }

  const png = (canvas) => canvas.toDataURL("image/png").split(",")[1];

  /** The drawn places as white on black. */
  function mask(invert) {
    const copy = el("canvas", { width: over.width, height: over.height });
    const drawn = ink().getImageData(0, 0, over.width, over.height);
    for (let i = 0; i < drawn.data.length; i += 4) {
      const on = drawn.data[i + 3] >= 128 ? 255 : 0;
      drawn.data.fill(invert ? 255 - on : on, i, i + 3);
      drawn.data[i + 3] = 255;
    }
    copy.getContext("2d").putImageData(drawn, 0, 0);
    return png(copy);
  }

  function painted() {
    const copy = el("canvas", { width: over.width, height: over.height });
    const context = copy.getContext("2d");
    context.drawImage(under, 0, 0);
    context.drawImage(over, 0, 0);
    return png(copy);
  }

  const drawn = () => over.width > 0 && ink().getImageData(0, 0, over.width, over.height).data.some((value, i) => i % 4 === 3 && value >= 128);
  return { whole, help, live, state, load, clear, mask, painted, picture: () => png(under), drawn };
}
