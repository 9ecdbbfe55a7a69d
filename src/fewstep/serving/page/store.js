// The gallery's memory: this browser's storage, or this page's where there is none.

const KEY = "fewstep-gallery";
const MOST = 200;
let pictures = read();
const watching = new Set();

function read() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    return Array.isArray(kept) ? kept.filter((one) => typeof one?.png === "string" && one.made) : [];
  } catch {
    return [];
  }
}

function write() {
  for (let tries = 0; tries < 20; tries += 1) {
    try {
      localStorage.setItem(KEY, JSON.stringify(pictures));
      break;
    } catch {
      if (pictures.length < 2) break;
      pictures = pictures.slice(0, Math.floor(pictures.length * 0.8));
    }
  }
  for (const tell of watching) tell();
}

export const all = () => pictures;
export const has = (picture) => pictures.some((one) => one.png === picture.png);

export function keep(...more) {
  const fresh = more.filter((picture) => !has(picture)).map(({ png, made }) => ({ png, made }));
  pictures = [...fresh, ...pictures].slice(0, MOST);
  write();
  return fresh.length;
}

export function drop(picture) {
  pictures = pictures.filter((one) => one.png !== picture.png);
  write();
}

export function clear() {
  pictures = [];
  write();
}

export const watch = (tell) => watching.add(tell);
