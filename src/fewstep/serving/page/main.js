// The page: tabs, and one part for each.

import * as api from "./api.js";
import * as between from "./between.js";
import { say } from "./dom.js";
import * as edit from "./edit.js";
import * as gallery from "./gallery.js";
import * as sample from "./sample.js";

const tabs = [...document.querySelectorAll("[role=tab]")];
const opened = {};
const panel = (tab) => document.getElementById(tab.getAttribute("aria-controls"));

export function show(tab, focus = false) {
  for (const one of tabs) {
    const on = one === tab;
    one.setAttribute("aria-selected", on);
    one.tabIndex = on ? 0 : -1;
    panel(one).hidden = !on;
    if (on) opened[one.id]?.();
  }
  if (focus) tab.focus();
}

tabs.forEach((tab, i) => {
  tab.addEventListener("click", () => show(tab));
  tab.addEventListener("keydown", (event) => {
    const turns = { ArrowRight: i + 1, ArrowLeft: i - 1 + tabs.length, Home: 0, End: tabs.length - 1 };
    if (event.key in turns) {
      event.preventDefault();
      show(tabs[turns[event.key] % tabs.length], true);
    }
  });
});

const open = (name) => show(document.getElementById(`tab-${name}`));

try {
  const { models, limits } = await api.models();
  gallery.build(document.getElementById("gallery"));
  edit.build(document.getElementById("edit"), models, limits, () => open("edit"));
  opened["tab-between"] = between.build(document.getElementById("between"), models, limits, () => open("between"));
  sample.build(document.getElementById("sample"), models, limits);
} catch (error) {
  say(error.message, true);
}
