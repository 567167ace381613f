// A virtual tree as text, for the engine that has no document. Components here are plain functions.
import { Fragment } from "preact";

const ENTITIES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
const VOID = new Set(["input", "img", "br"]);

const escape = (text) => String(text).replace(/[&<>"]/g, (sign) => ENTITIES[sign]);

export function html(node) {
  if (Array.isArray(node)) return node.map(html).join("");
  if (node === null || node === undefined || typeof node === "boolean") return "";
  if (typeof node !== "object") return escape(node);
  const { type, props } = node;
  if (type === Fragment) return html(props.children);
  if (typeof type === "function") return html(type(props));
  let text = `<${type}`;
  for (const [name, value] of Object.entries(props)) {
    if (name === "children" || name === "key" || name === "ref" || typeof value === "function") continue;
    // As in a document: `aria-` and `data-` say true and false, other attributes are there or not.
    const spoken = name.startsWith("aria-") || name.startsWith("data-");
    if (value === null || value === undefined || (value === false && !spoken)) continue;
    text += value === true && !spoken ? ` ${name}=""` : ` ${name}="${escape(value)}"`;
  }
  return VOID.has(type) ? `${text}>` : `${text}>${html(props.children)}</${type}>`;
}
