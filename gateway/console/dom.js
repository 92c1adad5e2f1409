/** Elements made and changed in place. Data becomes text and attributes, never markup. */

/** An element with attributes, and children that are nodes or text. `onclick` and the like are listeners. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

export const byId = (id) => document.getElementById(id);

/** Say it there, and touch nothing if it says so already: a selection and a screen reader's place survive. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** A line that is there only with something to say. */
export function sayOrHide(node, text) {
  say(node, text ?? "");
  node.hidden = !text;
}

/**
 * Make the children of `parent` those of `items`, in order. A child that stays is updated where it is, so that it keeps
 * its focus, what was typed into it and what was opened. Focus in a child that goes moves on to the next one.
 */
export function reconcile(parent, items, keyOf, create, update = () => {}) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  const wanted = new Set(items.map((item) => String(keyOf(item))));
  for (const [key, child] of known) {
    if (!wanted.has(key)) remove(child, parent);
  }
  let next = parent.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    let child = known.get(key);
    if (child === undefined) {
      child = create(item);
      child.dataset.key = key;
      known.set(key, child);
    }
    update(child, item);
    if (child === next) next = next.nextElementSibling;
    else parent.insertBefore(child, next);
  }
}

function remove(child, parent) {
  const focused = child.contains(document.activeElement);
  const heir = child.nextElementSibling ?? child.previousElementSibling;
  child.remove();
  if (focused) (heir?.querySelector("a, button, input") ?? parent).focus();
}

/** A list of plain sentences; `none` where there are none. */
export function sentences(parent, texts, none = "nothing") {
  const shown = texts.length ? texts : [none];
  parent.classList.toggle("none", texts.length === 0);
  reconcile(parent, shown.map((text, n) => ({ text, n })), ({ n }) => n, () => el("li"), (child, { text }) => say(child, text));
}

/** Told to screen readers. The last few stay, so that nothing is announced twice. */
export function announce(text) {
  const log = byId("said");
  log.append(el("p", {}, text));
  while (log.childElementCount > 20) log.firstElementChild.remove();
}

/** Run what a button does, with the button held meanwhile; a failure is said in `fault`. */
export async function during(button, fault, work) {
  if (button.getAttribute("aria-disabled") === "true") return;
  button.setAttribute("aria-disabled", "true"); // not `disabled`, which would lose the focus
  try {
    sayOrHide(fault, null);
    await work();
  } catch (error) {
    sayOrHide(fault, error.message);
  } finally {
    button.removeAttribute("aria-disabled");
  }
}

/** An SVG element. */
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
